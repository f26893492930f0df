"""Corrections of predictions: a chain of callbacks, each with its rank, applied to every batch."""

from abc import abstractmethod
from typing import Any, ClassVar

import lightning as L
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from stablelightning.callbacks.base import StableCallback
from stablelightning.functional.row_keys import row_keys
from stablelightning.model.prediction import Prediction


class Correction(StableCallback):
    """A callback that corrects each :class:`~stablelightning.Prediction` of a test or a prediction.

    Those of a Trainer form a chain in the order of their ``rank``: calibration (40) before
    conformal sets (50) before decisions (60), each on what those before it have made of the
    prediction. ``EstimateUncertainty`` applies the chain; it asks :meth:`usable` once in every
    loop, and :meth:`correct` for each batch.
    """

    rank: ClassVar[int]

    @abstractmethod
    def usable(self, trainer: L.Trainer, pl_module: L.LightningModule) -> bool:
        """Whether predictions of these weights can be corrected; ``False`` leaves them alone.

        Raises:
            StableLightningError: they must be corrected, and cannot be.
        """

    @abstractmethod
    def correct(self, prediction: Prediction, keys: Tensor | None) -> Prediction:
        """Correct the prediction of a batch.

        Args:
            prediction: in target units, on the module's device.
            keys: ``(N,)`` int64 by which rows are known again, ``None`` where they have none.
        """


class Corrections:
    """The chain of a Trainer as it is applied in one loop.

    Args:
        trainer: at the start of a test or a prediction.
        pl_module: with the weights that will predict.

    Attributes:
        refused: whether a correction has raised an error, which nobody may step over.
    """

    def __init__(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        chain = chain_of(trainer)
        self._chain = [step for step in chain if step.usable(trainer, pl_module)]
        self.refused = False

    def __bool__(self) -> bool:
        return bool(self._chain)

    def __call__(self, prediction: Prediction, inputs: Any) -> Prediction:
        """Correct the prediction of a batch of inputs."""
        if not self._chain:
            return prediction
        keys = keys_of(inputs, rows=len(prediction.mean))
        try:
            for step in self._chain:
                prediction = step.correct(prediction, keys)
        except Exception:
            self.refused = True
            raise
        return prediction


def chain_of(trainer: L.Trainer) -> list[Correction]:
    """The corrections of a Trainer, in the order in which they are applied.

    Example:
        >>> chain_of(L.Trainer(accelerator="cpu", logger=False, barebones=True))
        []
    """
    everything: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    found = [callback for callback in everything if isinstance(callback, Correction)]
    return sorted(found, key=lambda callback: callback.rank)


def keys_of(inputs: Any, *, rows: int) -> Tensor | None:
    """What names each row of a batch: a hash of its inputs.

    Args:
        inputs: a tensor, or a structure of tensors; those whose first axis is not the rows are left
            aside (the nodes of graphs).
        rows: their number.

    Returns:
        ``(rows,)`` int64; ``None`` where no tensor holds the rows.

    Example:
        >>> keys_of({"x": torch.zeros(3, 2)}, rows=3).shape
        torch.Size([3])
    """
    tensors = [leaf for leaf in tree_leaves(inputs) if isinstance(leaf, torch.Tensor)]
    fitting = [tensor for tensor in tensors if tensor.ndim and len(tensor) == rows]
    return row_keys(*fitting) if fitting else None
