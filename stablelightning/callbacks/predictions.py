"""``Trainer.predict`` leaves one table: every row once, in the order of the dataset."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor
from torch.utils._pytree import tree_leaves

from stablelightning.callbacks.base import StableCallback
from stablelightning.callbacks.kept import folder_for_results
from stablelightning.callbacks.places import RowPlaces
from stablelightning.callbacks.predicted import predicted_columns, rows_by
from stablelightning.callbacks.prediction_file import PredictionFile
from stablelightning.callbacks.uncertainty import gives_features
from stablelightning.errors import RecipeError
from stablelightning.optional import require
from stablelightning.report.columns import Column, flat_columns

_INDEX = "index"


class WritePredictions(StableCallback):
    """Write what ``Trainer.predict`` predicts to one Parquet file, on any number of processes.

    Every row of the dataset stands in it once, in the order of the dataset, whichever process
    predicted it and in whatever order the loader gave it; padding and repetitions are left out.
    Rows are streamed to disk while they are predicted and merged in bounded memory at the end, so
    that predictions may be larger than memory: pass ``return_predictions=False`` to
    ``Trainer.predict``, which else keeps them all. The file appears whole at the end, in place of
    an old one, or not at all.

    Works around any LightningModule. What becomes a column is the rule of
    :func:`~stablelightning.callbacks.predicted.predicted_columns`: with
    :class:`~stablelightning.callbacks.uncertainty.EstimateUncertainty` beside it, or with a
    :class:`~stablelightning.mixin.StableMixin`, the mean and every uncertainty. Override
    :meth:`columns_of` where it does not fit.

    ``index`` is the position in the dataset. Where rows have none (an ``IterableDataset``, a loader
    that is no ``DataLoader``) they are numbered as they come, in a single process; several need to
    be told: by an entry ``index`` of what ``predict_step`` returns. With several dataloaders a
    column ``dataloader`` comes first. A data module that knows files (``predict_files``), rows of
    its source (``test_rows``) or names of classes (``class_names``) adds them.

    A ``fast_dev_run`` writes nothing.

    Args:
        folder: where the file goes; ``None`` takes the folder of the first logger, or the Trainer's
            ``default_root_dir``. With several machines, one that all of them share.
        name: of the file; its suffix is ``.parquet``.

    Attributes:
        path: of the file that the last prediction left; ``None`` if it left none.
        rows: how many rows are in it.

    Raises:
        RecipeError: ``name`` is no name of a Parquet file; a ``predict_step`` that takes an
            iterator.
        MissingPackageError: pyarrow is not installed.
        DataError: nobody can say which row is which; a process shuffles in its own way.
        ModelError: ``predict_step`` returns nothing that has rows.
        OutputError: the folder cannot be written.

    Example:
        >>> import tempfile, pyarrow.parquet
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> write = WritePredictions(tempfile.mkdtemp())
        >>> trainer = L.Trainer(
        ...     accelerator="cpu", logger=False, enable_progress_bar=False,
        ...     enable_checkpointing=False, enable_model_summary=False, callbacks=[write],
        ... )
        >>> _ = trainer.predict(BoringModel(), return_predictions=False)
        >>> write.path.name, pyarrow.parquet.read_table(write.path).shape
        ('predictions.parquet', (64, 4))
    """

    def __init__(
        self,
        folder: str | os.PathLike[str] | None = None,
        *,
        name: str = "predictions.parquet",
    ) -> None:
        if Path(name).suffix != ".parquet" or Path(name).name != name:
            raise RecipeError(
                f"name must be that of a .parquet file, without a folder, got {name!r}; folders go "
                "into folder."
            )
        self.folder = folder
        self.name = name
        self.path: Path | None = None
        self.rows = 0
        self._file: PredictionFile | None = None
        self._places: list[RowPlaces] = []

    def columns_of(self, output: Any) -> Mapping[str, Column]:
        """What of an output is written, by name; override it where the rule does not fit.

        Args:
            output: of ``predict_step``, on the device.

        Returns:
            Tensors on the CPU, or lists, with one entry for each row. An entry ``index`` says
            which rows these are.

        Example:
            >>> class Classes(WritePredictions):
            ...     def columns_of(self, output):
            ...         return {"best": output.argmax(1).cpu()}
        """
        return predicted_columns(output)

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Find out before the first batch whether a table can be written.

        Raises:
            MissingPackageError: pyarrow is not installed.
            RecipeError: ``predict_step`` takes an iterator.
        """
        super().setup(trainer, pl_module, stage)
        if stage != "predict":
            return
        require("pyarrow.parquet", extra="recipes")
        if is_param_in_hook_signature(pl_module.predict_step, "dataloader_iter", explicit=True):
            raise RecipeError(
                "WritePredictions needs a predict_step that takes a batch, got one that takes "
                "dataloader_iter; write it as predict_step(self, batch, batch_idx)."
            )

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Open the file, on every process."""
        self.leave()
        self.path, self.rows = None, 0
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        loaders = tree_leaves(trainer.predict_dataloaders)
        self._places = [RowPlaces(loader, world=trainer.world_size) for loader in loaders]
        target = folder_for_results(trainer, self.folder) / self.name
        self._file = PredictionFile(trainer, target)

    def on_predict_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Add the rows of the batch."""
        if self._file is None:
            return
        pyarrow = require("pyarrow", extra="recipes")
        columns = dict(self.columns_of(outputs))
        places = self._places[dataloader_idx]
        index = places.of(batch_idx, own=columns.pop(_INDEX, None), columns=columns)
        columns = rows_by(columns, len(index))
        table: dict[str, Any] = {_INDEX: index.numpy()}
        named: list[str] = []
        if len(self._places) > 1:
            table = {"dataloader": torch.full_like(index, dataloader_idx).numpy(), **table}
        else:  # a data module speaks of the one that it gives itself
            table |= _places_in_words(trainer, index)
            named = _names(trainer, columns)
        if gives_features(pl_module) and "mean" in columns:  # whose largest is no class
            columns = {"feature" if name == "mean" else name: c for name, c in columns.items()}
        flat = flat_columns(columns, classification=_is_classified(outputs, pl_module))
        if named and "prediction" in flat:
            flat["prediction_name"] = [named[number] for number in flat["prediction"]]
        self._file.add(dataloader_idx, pyarrow.table({**table, **flat}), size=places.size)

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Put together what all processes have written."""
        if self._file is None:
            return
        rows = self._file.finish()
        if rows:
            self.path, self.rows = self._file.path, rows
            rank_zero_info(f"Predictions: {self.path}")
        self.leave()

    def leave(self) -> None:
        """Delete what was written of a prediction that did not come to its end."""
        if self._file is not None:
            self._file.discard()
        self._file, self._places = None, []


def _is_classified(output: Any, pl_module: L.LightningModule) -> bool | None:
    """Whether the mean holds the classes of a row; ``None`` where only its shape can tell."""
    task = getattr(output, "task", None) or getattr(pl_module, "task", None)
    return task == "classification" if isinstance(task, str) else None


def _places_in_words(trainer: L.Trainer, index: Tensor) -> dict[str, Any]:
    """Which row of the source, and which file, as far as the data module knows."""
    data = getattr(trainer, "datamodule", None)
    last = int(index.max()) if len(index) else -1
    known: dict[str, Any] = {}
    files = getattr(data, "predict_files", None)
    # Of other data the rows of the test set are not asked for: their source may be gone.
    predicts_test = getattr(data, "predict_path", None) is None
    rows = getattr(data, "test_rows", None) if predicts_test else None
    if isinstance(rows, Tensor) and last < len(rows):
        known["row"] = rows[index].numpy()
    if files is not None and last < len(files):
        known["file"] = [str(files[place]) for place in index]
    return known


def _names(trainer: L.Trainer, columns: Mapping[str, Column]) -> list[str]:
    """Names of the classes, if they are those of the ``mean``."""
    names = getattr(getattr(trainer, "datamodule", None), "class_names", None)
    mean = columns.get("mean")
    fits = isinstance(mean, Tensor) and mean.ndim == 2 and names and len(names) == mean.shape[1]
    return [str(name) for name in names] if fits else []  # type: ignore[union-attr]
