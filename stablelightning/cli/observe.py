"""Sampling beyond the test set: a try before training, and inputs unlike the training data."""

import logging
import zlib
from dataclasses import replace
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from stablelightning.callbacks.records import Observation, Record
from stablelightning.callbacks.sampling import BatchPredictor, target_scale
from stablelightning.callbacks.steps import step_arguments, unobserved
from stablelightning.callbacks.uncertainty import EstimateUncertainty, gives_features
from stablelightning.errors import NothingRandomError

_log = logging.getLogger(__name__)


class ObserveUnknown(L.Callback):
    """After a test, predict the data module's out-of-distribution sets, on process 0.

    The sets are what ``ood_dataloaders()`` of the data module gives, by name; without such a method
    nothing happens. They are predicted as the test set was, by the settings of ``estimate``.

    Args:
        estimate: the callback that estimates the uncertainty of the test set.

    Attributes:
        rows: after a test, ``EstimateUncertainty.rows`` of every set, corrected as those are.
    """

    def __init__(self, estimate: EstimateUncertainty) -> None:
        self.estimate = estimate
        self.rows: dict[str, dict[str, Tensor]] = {}

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Predict every set, while the model is still where it was tested."""
        self.rows = {}
        sets = getattr(getattr(trainer, "datamodule", None), "ood_dataloaders", None)
        if sets is None or not trainer.is_global_zero or not self.estimate.rows:
            return
        for name, loader in sets().items():
            if rows := self._observe(trainer, pl_module, name, loader):
                self.rows[name] = rows

    def _observe(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        name: str,
        loader: DataLoader[Any],
    ) -> dict[str, Tensor]:
        predictor = _predictor(self.estimate, pl_module, samples=self.estimate.samples)
        corrections = self.estimate.corrections  # its own: this runs on one process alone
        record: Record | None = None
        for number, batch in enumerate(loader):
            batch = trainer.strategy.batch_to_device(batch)
            inputs, target = self.estimate.inputs_and_target(pl_module, batch)
            arguments = step_arguments(pl_module.predict_step, batch, number, None)
            seed = zlib.crc32(repr((self.estimate.seed, name, number)).encode())
            with unobserved(trainer, pl_module):
                seen = predictor.observation(inputs, target, arguments, seed=seed)
            record = record or Record(seen.plain.task)
            # No score against the targets, if there are any: no class of the model is right.
            seen = replace(seen, target=None).in_target_units(target_scale(trainer))
            if corrections:
                seen = replace(seen, corrected=corrections(seen.sampled, inputs))
            _keep(record, seen)
        if record is None or not record.rows:
            return {}
        return Record.merged([record]).rows[0]


class TrySampling(L.Callback):
    """Before training, find out whether there is anything random to sample.

    A model without dropout would otherwise be refused after training, when its test begins. The
    first validation batch of Lightning's sanity check is tried; what else could go wrong with it is
    left for the test to say.

    Args:
        estimate: the callback that will sample.
    """

    def __init__(self, estimate: EstimateUncertainty) -> None:
        self.estimate = estimate

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Draw one sample."""
        wanted = trainer.sanity_checking and self.estimate.required
        if not wanted or batch_idx > 0 or dataloader_idx > 0 or gives_features(pl_module):
            return
        predictor = _predictor(self.estimate, pl_module, samples=1)
        try:
            inputs, target = self.estimate.inputs_and_target(pl_module, batch)
            arguments = step_arguments(pl_module.predict_step, batch, batch_idx, None)
            with unobserved(trainer, pl_module):
                predictor.observation(inputs, target, arguments, seed=0)
        except NothingRandomError as error:
            raise NothingRandomError(
                f"{error} To do without uncertainty, set stable.uncertainty to null."
            ) from error
        except Exception as error:
            _log.debug("sampling could not be tried before training: %s", error)


def _predictor(
    estimate: EstimateUncertainty, pl_module: L.LightningModule, *, samples: int
) -> BatchPredictor:
    return BatchPredictor(
        pl_module,
        pl_module.predict_step,
        task=estimate.task,
        samples=samples,
        engine=estimate.engine,
        tolerance=estimate.tolerance,
    )


def _keep(record: Record, seen: Observation) -> None:
    first = sum(len(batch["index"]) for batch in record.rows)
    index = torch.arange(first, first + seen.rows)
    record.add(seen, index, torch.ones(seen.rows, dtype=torch.bool))
