"""Predicting with several checkpoints as one ensemble."""

from collections.abc import Sequence
from pathlib import Path

import lightning as L
from lightning.pytorch.utilities import rank_zero_warn

from stablelightning.callbacks.corrections import Correction
from stablelightning.callbacks.uncertainty import EstimateUncertainty, gives_features
from stablelightning.errors import ModelError, StableLightningWarning
from stablelightning.model.ensemble import LoadedMembers, read_state


class SpeakForCheckpoints(L.Callback):
    """Let a model predict for the weights of several checkpoints, each of which counts the same.

    Args:
        checkpoints: their paths; all of the model that predicts.
        weights_only: refuse objects in them, which run code.
    """

    def __init__(self, checkpoints: Sequence[Path], *, weights_only: bool = True) -> None:
        self._states = [read_state(path, weights_only=weights_only) for path in checkpoints]

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take the members, now that the module has the structure of its checkpoints."""
        if gives_features(pl_module):
            raise ModelError(
                f"{type(pl_module).__name__} gives features, and those of several networks have "
                "nothing in common; name one checkpoint."
            )
        LoadedMembers(pl_module, self._states)


def predict_for_all(
    trainer: L.Trainer, checkpoints: Sequence[Path], *, weights_only: bool = True
) -> None:
    """Make a Trainer predict for several checkpoints.

    Uncertainty is estimated even where the recipe does not ask for it: only so are members told
    apart. What was fitted to one checkpoint (a temperature, a conformal set, thresholds) does not
    hold for their mixture, and is left out.

    Args:
        trainer: its callbacks are changed.
        checkpoints: two or more paths.
        weights_only: as for Lightning.

    Raises:
        CheckpointError: one cannot be read.
    """
    callbacks: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    kept = [callback for callback in callbacks if not isinstance(callback, Correction)]
    if len(kept) < len(callbacks):
        rank_zero_warn(
            "what was calibrated or decided for one checkpoint does not hold for several, and is "
            "left out of their predictions.",
            category=StableLightningWarning,
        )
    if not any(isinstance(callback, EstimateUncertainty) for callback in kept):
        kept.append(EstimateUncertainty())
    kept.append(SpeakForCheckpoints(checkpoints, weights_only=weights_only))
    trainer.callbacks = kept  # type: ignore[attr-defined]
