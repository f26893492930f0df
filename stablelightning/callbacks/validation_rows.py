"""The validation data of a run, predicted after training as test data would be."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import lightning as L
import torch
from lightning.pytorch.trainer.states import RunningStage
from torch import Tensor
from torch.utils.data import IterableDataset

from stablelightning.callbacks.corrections import keys_of
from stablelightning.callbacks.records import Observation, Positions
from stablelightning.callbacks.sampling import target_scale
from stablelightning.callbacks.scoring import aligned_target
from stablelightning.callbacks.steps import step_arguments, unobserved
from stablelightning.callbacks.uncertainty import EstimateUncertainty
from stablelightning.errors import DataError
from stablelightning.model.generators import undisturbed_generators
from stablelightning.model.prediction import Prediction
from stablelightning.model.prediction_rows import join_rows, take_rows

#: Where validation rows are numbered among the dataloaders of a seed: no test loader has it.
_VALIDATION = -1


@dataclass(frozen=True)
class LabelledPredictions:
    """Predictions of rows whose targets are known.

    Args:
        prediction: of N rows, on the CPU, in target units.
        target: ``(N,)`` class indices, or values in target units in the shape of the mean.
        keys: ``(N,)`` int64, what names each row; ``None`` where rows have no name.
    """

    prediction: Prediction
    target: Tensor
    keys: Tensor | None

    def __len__(self) -> int:
        return len(self.target)

    def rows(self, index: Tensor) -> "LabelledPredictions":
        """Some of the rows."""
        keys = None if self.keys is None else self.keys[index]
        return LabelledPredictions(take_rows(self.prediction, index), self.target[index], keys)

    @staticmethod
    def joined(parts: list["LabelledPredictions"]) -> "LabelledPredictions":
        """The rows of all parts.

        Raises:
            DataError: there are none, or they are of different tasks.
        """
        keys = [part.keys for part in parts if part.keys is not None]
        return LabelledPredictions(
            join_rows([part.prediction for part in parts]),
            torch.cat([part.target for part in parts]),
            torch.cat(keys) if len(keys) == len(parts) else None,
        )


def predict_validation(
    trainer: L.Trainer, pl_module: L.LightningModule, estimate: EstimateUncertainty
) -> list[LabelledPredictions]:
    """Predict this process's rows of the first validation loader, batch by batch.

    Padding of a distributed sampler is left out. Generators, training flags and logs are left as
    they were.

    Args:
        trainer: after a fit.
        pl_module: with the weights that shall predict, on the strategy's device.
        estimate: says how a batch is read and how many samples are drawn.

    Returns:
        On the CPU; empty where this process has no rows.

    Raises:
        DataError: a batch without a target, or dense predictions (pixels, tokens).
    """
    loader, most = _loader(trainer)
    positions = Positions(loader, rank=trainer.global_rank, world=trainer.world_size)
    step = pl_module.predict_step
    predictor = estimate.predictor(pl_module, step)
    predictor.or_plainly = estimate.or_plainly
    found = []
    with ExitStack() as stack:
        stack.enter_context(undisturbed_generators())
        stack.enter_context(_in_eval(pl_module))
        stack.enter_context(_validating(trainer))
        for number, batch in enumerate(loader):
            if number >= most:
                break
            batch = trainer.precision_plugin.convert_input(batch)
            batch = pl_module._apply_batch_transfer_handler(
                batch, device=trainer.strategy.root_device
            )
            inputs, target = estimate.inputs_and_target(pl_module, batch)
            arguments = step_arguments(step, batch, number, None)
            seed = estimate.seed_of(_VALIDATION, trainer.global_rank, number)
            with unobserved(trainer, pl_module):
                seen = predictor.observation(inputs, target, arguments, seed=seed)
                seen = seen.in_target_units(target_scale(trainer))
            fresh = positions.next(seen.rows)[1]
            found.append(_labelled(seen, inputs, fresh))
    return found


def _labelled(seen: Observation, inputs: Any, fresh: Tensor) -> LabelledPredictions:
    prediction = seen.sampled
    if seen.target is None:
        raise DataError(
            "calibration needs validation rows with a target, and these have none; give batches "
            "(inputs, target), or override EstimateUncertainty.inputs_and_target."
        )
    if prediction.mean.ndim > 2 or len(prediction.mean) != seen.rows:
        raise DataError(
            "calibration needs one prediction per row, got dense ones of shape "
            f"{tuple(prediction.mean.shape)} for {seen.rows} rows; fit a calibrator on the pixels "
            "or tokens of your choice by hand: stablelightning.calibration."
        )
    target = seen.target.to(prediction.mean.device)
    target = aligned_target(prediction.task, prediction.mean, target, seen.class_dim)
    keys = keys_of(inputs, rows=seen.rows)
    # Without the samples, which would be many times as large as all the rest of the rows.
    alone = replace(prediction, samples=None).to("cpu")
    whole = LabelledPredictions(alone, target.cpu(), keys)
    return whole.rows(fresh)


def gathered(
    trainer: L.Trainer, parts: list[LabelledPredictions]
) -> list[LabelledPredictions] | None:
    """The parts of all processes on process 0, ``None`` elsewhere; every process takes part.

    Args:
        trainer: of the run.
        parts: of this process.
    """
    if trainer.world_size == 1:
        return parts
    everyone: list[Any] | None = [None] * trainer.world_size if trainer.is_global_zero else None
    torch.distributed.gather_object(parts, everyone)
    return None if everyone is None else [part for each in everyone for part in each]


def count_validation_rows(trainer: L.Trainer) -> int | None:
    """How many rows the first validation loader has, before training; ``None`` if it cannot tell.

    Raises:
        DataError: there is no validation data.
    """
    source = trainer.fit_loop.epoch_loop.val_loop._data_source
    if source.instance is None or not source.is_defined() or not trainer.enable_validation:
        raise DataError(
            "calibration needs validation data, and this run validates on none; give a "
            "val_dataloader and a validation_step, and leave limit_val_batches above 0."
        )
    with undisturbed_generators():
        loaders = source.dataloader()
    flat = torch.utils._pytree.tree_leaves(getattr(loaders, "iterables", loaders))
    if not flat:
        raise DataError(
            "calibration needs validation data, and val_dataloader gives no loader; return one."
        )
    dataset: Any = getattr(flat[0], "dataset", None)
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
        return None
    limit: Any = trainer.limit_val_batches
    size = getattr(flat[0], "batch_size", None)
    if isinstance(limit, int) and size is not None:
        return min(len(dataset), limit * int(size) * trainer.world_size)
    return int(len(dataset) * limit) if isinstance(limit, float) else len(dataset)


def _loader(trainer: L.Trainer) -> tuple[Any, float]:
    """The first validation loader as Lightning iterates it, and how many batches of it count."""
    val_loop = trainer.fit_loop.epoch_loop.val_loop
    val_loop.setup_data()
    combined = val_loop._combined_loader
    if combined is None or not combined.flattened:
        raise DataError(
            "calibration needs validation data, and this run validated on none; give a "
            "val_dataloader and a validation_step."
        )
    return combined.flattened[0], val_loop._max_batches[0]


@contextmanager
def _in_eval(pl_module: L.LightningModule) -> Iterator[None]:
    modes = {module: module.training for module in pl_module.modules()}
    pl_module.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def _validating(trainer: L.Trainer) -> Iterator[None]:
    """Hooks of the data that augment in training must know that this is none."""
    stage = trainer.state.stage
    trainer.state.stage = RunningStage.VALIDATING
    try:
        yield
    finally:
        trainer.state.stage = stage
