"""The batches of a race: the same for every candidate, and none that training would miss."""

from typing import Any

import lightning as L
from torch import Tensor
from torch.utils._pytree import tree_leaves

from stablelightning.callbacks.first_batches import first_batches
from stablelightning.model.activation_selection import RaceData

#: Batches are kept for the race: at most so many bytes of them.
_MOST_BYTES = 2**28
#: The loss is read on at most so many batches, and on a fifth of what there is.
_MOST_HELD_OUT = 4


def race_data(trainer: L.Trainer, pl_module: L.LightningModule, steps: int) -> RaceData:
    """Read the batches of a race from the training data, and hold some out.

    Batches with other numbers of rows than the first (the last of an epoch) are left out. Where
    there is one batch only, the loss is read on that one.

    Args:
        trainer: about to fit.
        pl_module: its module.
        steps: as many batches as these are enough, >= 1.

    Raises:
        DataError: there is no training data.

    Example:
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> class Look(L.Callback):
        ...     def setup(self, trainer, pl_module, stage):
        ...         data = race_data(trainer, pl_module, steps=10)
        ...         self.sizes = len(data.batches), len(data.held_out)
        >>> look = Look()
        >>> trainer = L.Trainer(
        ...     accelerator="cpu", logger=False, enable_progress_bar=False, max_steps=1,
        ...     enable_checkpointing=False, enable_model_summary=False, callbacks=[look],
        ... )
        >>> trainer.fit(BoringModel())
        >>> look.sizes
        (12, 2)
    """
    first = first_batches(trainer, pl_module, 1)[0]
    size = sum(t.numel() * t.element_size() for t in _tensors(first))
    wanted = min(steps + _MOST_HELD_OUT, max(2, _MOST_BYTES // max(size, 1)))
    batches = first_batches(trainer, pl_module, wanted)
    full = [batch for batch in batches if _rows(batch) == _rows(batches[0])]
    held_out = min(_MOST_HELD_OUT, len(full) // 5 or len(full) - 1)
    if held_out < 1:
        return RaceData(batches=full, held_out=full)
    return RaceData(batches=full[:-held_out], held_out=full[-held_out:])


def _tensors(batch: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(batch) if isinstance(leaf, Tensor)]


def _rows(batch: Any) -> int:
    return next((len(t) for t in _tensors(batch) if t.ndim), 0)
