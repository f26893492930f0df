"""The backbone of a training as a file, which fine-tuning takes by its path."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import nn

from stablelightning.callbacks.base import StableCallback
from stablelightning.callbacks.kept import best_checkpoint, folder_for_results
from stablelightning.callbacks.shards import is_sharded
from stablelightning.errors import ModelError, StableLightningWarning
from stablelightning.model.backbone_file import FILE_NAME, save_backbone
from stablelightning.optional import require
from stablelightning.words import reason_of


class SaveBackbone(StableCallback):
    """Write the trained network as ``backbone.safetensors`` at the end of ``fit``.

    The weights are those of the best checkpoint. Of a pretraining module
    (:class:`~stablelightning.pretraining.Pretraining`) only what gives the features is written; of
    any other, its ``network`` if it has one, else the whole module, head included. The file goes by
    its path to :func:`~stablelightning.model.weights_file.load_weights`, to
    :func:`~stablelightning.model.backbones.backbone`, or to fine-tuning on the command line.

    The module is never touched, and a training that has come to its end does not fail here: what
    cannot be written is said in a warning. With several processes the first one writes. A
    ``fast_dev_run`` writes nothing.

    Args:
        folder: where the file goes; ``None`` takes the folder of the first logger, or the Trainer's
            ``default_root_dir``.
        best: take the best checkpoint's weights, where one is kept; ``False``: the last ones.
        required: ``False`` writes the backbones of pretraining modules only; ``True`` of any.

    Attributes:
        path: of the file that the last fit left, ``None`` if it left none.

    Raises:
        MissingPackageError: when fitting begins: safetensors is not installed.

    Example:
        >>> import tempfile
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> save = SaveBackbone(tempfile.mkdtemp())
        >>> trainer = L.Trainer(
        ...     accelerator="cpu", logger=False, enable_progress_bar=False, max_steps=1,
        ...     enable_checkpointing=False, enable_model_summary=False, callbacks=[save],
        ... )
        >>> trainer.fit(BoringModel())
        >>> save.path.name
        'backbone.safetensors'
    """

    def __init__(
        self,
        folder: str | os.PathLike[str] | None = None,
        *,
        best: bool = True,
        required: bool = True,
    ) -> None:
        self.folder = folder
        self.best = best
        self.required = required
        self.path: Path | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Find out before training whether the file can be written.

        Raises:
            MissingPackageError: safetensors is not installed.
        """
        super().setup(trainer, pl_module, stage)
        if stage == "fit" and self._is_wanted(pl_module):
            require("safetensors", extra="recipes")

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the file."""
        self.path = None
        dry = trainer.fast_dev_run  # type: ignore[attr-defined]
        if not trainer.is_global_zero or dry or not self._is_wanted(pl_module):
            return
        try:
            self.path = self._write(trainer, pl_module)
        except Exception as error:  # a training that is over must not fail at its file
            reason = reason_of(error)
            _warn(reason)
            return
        rank_zero_info(f"Backbone: {self.path}")

    def _is_wanted(self, pl_module: L.LightningModule) -> bool:
        return self.required or hasattr(pl_module, "export_backbone")

    def _write(self, trainer: L.Trainer, pl_module: L.LightningModule) -> Path:
        if is_sharded(trainer):
            raise ModelError(
                "a backbone is written whole, and "
                f"{type(trainer.strategy).__name__} spreads it; write it from a checkpoint instead."
            )
        path = folder_for_results(trainer, self.folder) / FILE_NAME
        kept = best_checkpoint(trainer) if self.best else None
        state = None
        if kept is not None:
            # Written by this very run, so that objects in it may be trusted.
            state = torch.load(kept, map_location="cpu", weights_only=False)["state_dict"]
            if state.keys() != pl_module.state_dict().keys():
                _warn(f"{kept.name} does not fit the model as it is now: the last weights are used")
                state = None
        export = getattr(pl_module, "export_backbone", None)
        if export is not None:
            return Path(export(path, state=state))
        return _write_any(pl_module, path, state)


def _write_any(pl_module: L.LightningModule, path: Path, state: Mapping[str, Any] | None) -> Path:
    network = getattr(pl_module, "network", None)
    if not isinstance(network, nn.Module):
        return save_backbone(pl_module, path, state=state)
    own = "network."
    if state is not None:
        state = {n.removeprefix(own): v for n, v in state.items() if n.startswith(own)}
    return save_backbone(network, path, state=state)


def _warn(words: str) -> None:
    rank_zero_warn(f"SaveBackbone steps aside: {words}", category=StableLightningWarning)
