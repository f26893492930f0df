"""Rows of training and validation data as pairs of inputs and target, read beside the loaders."""

from collections.abc import Iterator
from typing import Any

import lightning as L
from lightning.pytorch.utilities import CombinedLoader
from torch.utils.data import DataLoader, IterableDataset

from stablelightning.callbacks.batches import inputs_and_target
from stablelightning.callbacks.first_batches import training_source
from stablelightning.callbacks.spread_rows import spread_batches
from stablelightning.errors import DataError
from stablelightning.model.generators import undisturbed_generators

_END = object()


class LabelledRows:
    """The training rows of a run, the same on every process and at every call.

    Spread evenly over the dataset, collated as the loader does, on the module's device and in the
    Trainer's precision. Samplers are not asked, workers not started, generators left alone.

    Args:
        trainer: about to fit.
        pl_module: its module, whose batch transfer hooks are run.
        rows: at most about so many.

    Attributes:
        total: rows of the whole training set; ``None`` where it does not say.

    Raises:
        DataError: there is no training data.

    Example:
        >>> import torch
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> class Look(L.Callback):
        ...     def on_fit_start(self, trainer, pl_module):
        ...         rows = LabelledRows(trainer, pl_module, 10)
        ...         self.seen = rows.total, len(list(rows.batches()))
        >>> look = Look()
        >>> trainer = L.Trainer(
        ...     accelerator="cpu", logger=False, enable_progress_bar=False, max_steps=1,
        ...     enable_checkpointing=False, enable_model_summary=False, callbacks=[look],
        ... )
        >>> trainer.fit(BoringModel())
        >>> look.seen
        (64, 10)
    """

    def __init__(self, trainer: L.Trainer, pl_module: L.LightningModule, rows: int) -> None:
        source, self._device = training_source(trainer, pl_module)
        self._trainer, self._module, self._rows = trainer, pl_module, rows
        with undisturbed_generators():
            self._loaders = _parts(source.dataloader())
        self.total = _length(self._loaders)

    def batches(self) -> Iterator[Any]:
        """Whole batches, as ``training_step`` gets them."""
        unmoved = spread_batches(self._loaders, self._rows)
        while True:
            with undisturbed_generators():  # not around a yield: others draw meanwhile
                batch = next(unmoved, _END)
                if batch is _END:
                    return
                moved = self._module._apply_batch_transfer_handler(batch, device=self._device)
            yield self._trainer.precision_plugin.convert_input(moved)

    def pairs(self) -> Iterator[tuple[Any, Any]]:
        """Inputs, as the module's forward takes them, and the target.

        Raises:
            DataError: a batch does not say which is which, or has no target.
        """
        for batch in self.batches():
            inputs, target = inputs_and_target(self._module, batch)
            if target is None:
                raise DataError(
                    "rows must have a target to be probed, and these have none; choose a plan of "
                    "unfreezing by hand."
                )
            yield inputs, target


def validation_batches(trainer: L.Trainer, pl_module: L.LightningModule, rows: int) -> list[Any]:
    """Batches of the first validation loader, spread evenly over its dataset.

    Args:
        trainer: about to fit.
        pl_module: its module, whose batch transfer hooks are run.
        rows: at most so many.

    Returns:
        On the device of the module's parameters; empty where there is no validation data.
    """
    source = trainer.fit_loop.epoch_loop.val_loop._data_source
    if not trainer.enable_validation or source.instance is None or not source.is_defined():
        return []
    device = training_source(trainer, pl_module)[1]
    with undisturbed_generators():
        loaders = _parts(source.dataloader())
        first = loaders[0] if isinstance(loaders, list | tuple) else loaders
        return [
            pl_module._apply_batch_transfer_handler(batch, device=device)
            for batch in spread_batches(first, rows)
        ]


def _parts(loader: Any) -> Any:
    if not isinstance(loader, CombinedLoader):
        return loader
    if loader._mode == "sequential":
        several = loader.iterables
        return several[0] if isinstance(several, list | tuple) else several
    return loader.iterables


def _length(loaders: Any) -> int | None:
    """Rows of a dataset that can be indexed; of a structure of loaders nobody can say."""
    ordinary = isinstance(loaders, DataLoader) and not isinstance(loaders.dataset, IterableDataset)
    if not ordinary or loaders.batch_size is None or not hasattr(loaders.dataset, "__len__"):
        return None
    return len(loaders.dataset)
