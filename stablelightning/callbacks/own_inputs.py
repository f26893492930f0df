"""The inputs that a run trains on, also those whose labels are not used, as data of their own."""

from typing import Any

import lightning as L
from torch.utils.data import ConcatDataset, Dataset

from stablelightning.callbacks.first_batches import training_source


class OwnInputs(L.LightningDataModule):
    """Training and validation rows of a run that is about to begin, for objectives without labels.

    Where its data module keeps rows whose labels are not used (``unlabelled_part``), the inputs of
    these and of the labelled ones are trained on together.

    Args:
        trainer: about to fit; its data module is set up.
        pl_module: its module.

    Raises:
        DataError: there is no training data.

    Example:
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> class Look(L.Callback):
        ...     def setup(self, trainer, pl_module, stage):
        ...         self.batches = len(OwnInputs(trainer, pl_module).train_dataloader())
        >>> look = Look()
        >>> trainer = L.Trainer(
        ...     accelerator="cpu", logger=False, enable_progress_bar=False, max_steps=1,
        ...     enable_checkpointing=False, enable_model_summary=False, callbacks=[look],
        ... )
        >>> trainer.fit(BoringModel())
        >>> look.batches
        64
    """

    def __init__(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().__init__()
        self._train = training_source(trainer, pl_module)[0]
        self._validation = trainer.fit_loop.epoch_loop.val_loop._data_source
        self._data: Any = getattr(trainer, "datamodule", None)
        self.name = type(self._data if self._data is not None else pl_module).__name__

    def train_dataloader(self) -> Any:
        """Inputs of all training rows, or the loader of the run where it has one part only."""
        part = getattr(self._data, "unlabelled_part", lambda: None)()
        if part is None:
            return self._train.dataloader()
        everything = [_Inputs(self._data.part("train")), part]
        return self._data.loader(ConcatDataset(everything), shuffle=True)

    def val_dataloader(self) -> Any:
        """The validation rows of the run; none where it has none."""
        source = self._validation
        known = source.instance is not None and source.is_defined()
        loader = source.dataloader() if known else None
        return [] if loader is None else loader


class _Inputs(Dataset[Any]):
    """Rows without their targets."""

    def __init__(self, rows: Any) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> Any:
        return self.rows[place][0]
