"""A model that is ready to be used when training is over: folded, exported, checked, timed."""

import logging
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import nn

from stablelightning.callbacks.base import StableCallback
from stablelightning.callbacks.batches import inputs_and_target
from stablelightning.callbacks.example import example_batch
from stablelightning.callbacks.kept import best_checkpoint, folder_for_results
from stablelightning.callbacks.shards import is_sharded
from stablelightning.errors import (
    ModelError,
    RecipeError,
    StableLightningError,
    StableLightningWarning,
)
from stablelightning.model.export import Exported, export_model, export_onnx, require_onnx
from stablelightning.model.fold import fold_batch_norm
from stablelightning.model.latency import LatencyReport, measure_latency
from stablelightning.model.modules import detached_copy
from stablelightning.report.wandb import log_table
from stablelightning.words import reason_of

_log = logging.getLogger(__name__)


class ExportModel(StableCallback):
    """Export the trained model at the end of ``fit``: folded, checked after loading, and timed.

    A copy of the module takes the weights of the best checkpoint, its batch norms are folded
    (:func:`stablelightning.fold_batch_norm`), and it is written as ``model.pt2``, a program that
    ``torch.export.load(path).module()`` runs without any of its Python, on batches of any size. The
    file is loaded again and held against the model. Then the latency of one pass and of Monte Carlo
    dropout is measured, before and after folding, in about two seconds.

    The module itself is never touched. What cannot be exported is said in a warning: a training
    that has come to its end does not fail there. With several processes the first one exports.

    Logged, to every logger of the Trainer: ``latency/one_pass_ms/<batch size>``, and likewise
    ``one_pass_folded_ms``, ``sampled_ms`` and ``sampled_folded_ms``; to W&B also the table
    ``latency/norms`` with the reason of every norm that was left.

    Args:
        folder: where the files go; ``None`` takes the folder of the first logger, or the Trainer's
            ``default_root_dir``. In a ``fast_dev_run`` they go to a temporary one, and are gone.
        fold: fold batch norms first.
        mc: write ``model_mc.pt2`` as well, in which dropout stays live: every call draws new masks.
        onnx: write ``model.onnx`` as well (and ``model_mc.onnx``); needs the extra ``onnx``.
        best: export the best checkpoint's weights, where one is kept; ``False``: the last ones.
        batch_sizes: for which latency is measured, each >= 1; none for no measurement.

    Attributes:
        exported: the files of the last fit.
        latency: the measurement of the last fit, ``None`` where there is none.

    Raises:
        RecipeError: a setting is out of its range.

    Example:
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> export = ExportModel(tempfile.mkdtemp(), batch_sizes=[1])
        >>> trainer = L.Trainer(
        ...     accelerator="cpu", logger=False, enable_progress_bar=False, max_steps=1,
        ...     enable_checkpointing=False, enable_model_summary=False, callbacks=[export],
        ... )
        >>> trainer.fit(BoringModel())
        >>> [Path(file.path).name for file in export.exported]
        ['model.pt2']
    """

    def __init__(
        self,
        folder: str | os.PathLike[str] | None = None,
        *,
        fold: bool = True,
        mc: bool = False,
        onnx: bool = False,
        best: bool = True,
        batch_sizes: Sequence[int] = (1, 8, 32),
    ) -> None:
        for size in batch_sizes:
            if isinstance(size, bool) or not isinstance(size, int) or size < 1:
                raise RecipeError(f"batch_sizes must be whole numbers >= 1, got {size!r}.")
        self.folder = folder
        self.fold = fold
        self.mc = mc
        self.onnx = onnx
        self.best = best
        self.batch_sizes = batch_sizes
        self.exported: list[Exported] = []
        self.latency: LatencyReport | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Find out before training whether the formats can be written.

        Raises:
            MissingPackageError: ``onnx`` was asked for, and its packages are not there.
        """
        super().setup(trainer, pl_module, stage)
        if stage == "fit" and self.onnx:
            require_onnx()

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Export, measure, and tell."""
        self.exported, self.latency = [], None
        if not trainer.is_global_zero:
            return
        try:
            model, inputs = self._copied(trainer, pl_module)
            with self._folder(trainer) as folder:
                self._export(model, inputs, folder)
            if self.batch_sizes:
                self.latency = measure_latency(model, inputs, batch_sizes=list(self.batch_sizes))
        except Exception as error:  # a training that is over must not fail at its export
            _step_aside(error)
        self._tell(trainer)

    # ---- what is exported -------------------------------------------------------------------

    def _copied(self, trainer: L.Trainer, pl_module: L.LightningModule) -> tuple[nn.Module, Any]:
        """A copy that nobody trains, with the weights that shall be used, and an example."""
        if is_sharded(trainer):
            raise ModelError(
                "an export needs the whole model in one place, and "
                f"{type(trainer.strategy).__name__} spreads it; export from a checkpoint instead."
            )
        inputs, _ = inputs_and_target(pl_module, example_batch(trainer, pl_module))
        model = detached_copy(pl_module).eval()
        path = best_checkpoint(trainer) if self.best else None
        if path is not None:
            # Written by this very run, so that objects in it may be trusted.
            checkpoint = torch.load(path, map_location="cpu", weights_only=False)
            try:
                model.load_state_dict(checkpoint["state_dict"])
            except RuntimeError:
                _warn(f"{path.name} does not fit the model as it is now: the last weights are used")
                model = detached_copy(pl_module).eval()
        return model, inputs

    def _export(self, model: nn.Module, inputs: Any, folder: Path) -> None:
        made = detached_copy(model)
        if self.fold:
            try:
                rank_zero_info(fold_batch_norm(made, inputs).summary())
            except StableLightningError as error:
                _warn(f"nothing was folded: {error}")
        formats = [(export_model, ".pt2"), *([(export_onnx, ".onnx")] if self.onnx else [])]
        for write, suffix in formats:
            for mc in (False, True) if self.mc else (False,):
                try:
                    file = folder / f"model{'_mc' if mc else ''}{suffix}"
                    self.exported.append(write(made, inputs, file, mc=mc))
                except StableLightningError as error:  # the other files may still be made
                    _step_aside(error)

    @contextmanager
    def _folder(self, trainer: L.Trainer) -> Iterator[Path]:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            with tempfile.TemporaryDirectory() as folder:
                yield Path(folder)
            return
        yield folder_for_results(trainer, self.folder)

    # ---- what is told -----------------------------------------------------------------------

    def _tell(self, trainer: L.Trainer) -> None:
        for file in self.exported:
            rank_zero_info(f"Exported {file}")
        if self.latency is None:
            return
        rank_zero_info(f"Latency: {self.latency.summary()}.")
        for logger in trainer.loggers:
            logger.log_metrics(self.latency.numbers(), step=trainer.global_step)
        folding = self.latency.folding
        if folding is not None and (folding.folded or folding.left):
            log_table(trainer.loggers, "latency/norms", *folding.rows_for_table())


def _step_aside(error: Exception) -> None:
    reason = reason_of(error)
    _log.debug("the export failed", exc_info=error)
    _warn(reason)


def _warn(words: str) -> None:
    rank_zero_warn(f"ExportModel steps aside: {words}", category=StableLightningWarning)
