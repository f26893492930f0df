"""What the model says of inputs that are unlike its training data."""

import zlib
from functools import partial
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from stablelightning.callbacks.records import Observation, Record
from stablelightning.callbacks.sampling import BatchPredictor, rows_in
from stablelightning.callbacks.steps import step_arguments, unobserved
from stablelightning.callbacks.uncertainty import EstimateUncertainty
from stablelightning.model.sample import mc_dropout


class ObserveUnknown(L.Callback):
    """After a test, predict the data module's out-of-distribution sets, on process 0.

    The sets are what ``ood_dataloaders()`` of the data module gives, by name; without such a method
    nothing happens. They are predicted as the test set was, by the settings of ``estimate``.

    Args:
        estimate: the callback that estimates the uncertainty of the test set.

    Attributes:
        rows: after a test, ``EstimateUncertainty.rows`` of every set.
    """

    def __init__(self, estimate: EstimateUncertainty) -> None:
        self.estimate = estimate
        self.rows: dict[str, dict[str, Tensor]] = {}

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Predict every set, while the model is still where it was tested."""
        self.rows = {}
        sets = getattr(_data(trainer), "ood_dataloaders", None)
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
        loader: DataLoader[object],
    ) -> dict[str, Tensor]:
        estimate = self.estimate
        draw = partial(
            mc_dropout,
            samples=estimate.samples,
            engine=estimate.engine,
            tolerance=estimate.tolerance,
        )
        step = pl_module.predict_step
        predictor = BatchPredictor(pl_module, step, task=estimate.task, draw=draw)
        record: Record | None = None
        scale = getattr(_data(trainer), "target_scale", None)
        for number, batch in enumerate(loader):
            batch = trainer.strategy.batch_to_device(batch)
            inputs, target = estimate.inputs_and_target(pl_module, batch)
            arguments = step_arguments(step, batch, number, None)
            seed = zlib.crc32(repr((estimate.seed, name, number)).encode())
            with unobserved(trainer, pl_module):
                plain = predictor.plain(inputs, target, arguments, seed=seed)
                sampled = predictor.sampled(inputs, arguments, seed=seed)
            rows = rows_in(inputs, plain)
            seen = Observation(sampled, plain, None, predictor.class_dim, rows)
            record = record or Record(plain.task)
            _keep(record, seen.in_target_units(scale))
        if record is None or not record.rows:
            return {}
        return Record.merged([record]).rows[0]


def _data(trainer: L.Trainer) -> Any:
    return getattr(trainer, "datamodule", None)


def _keep(record: Record, seen: Observation) -> None:
    first = sum(len(batch["index"]) for batch in record.rows)
    index = torch.arange(first, first + seen.rows)
    record.add(seen, index, torch.ones(seen.rows, dtype=torch.bool))
