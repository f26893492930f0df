"""What all processes of a run must agree on before any of them goes its own way."""

from typing import Any

import lightning as L
import torch

from stablelightning.errors import ModelError


def anyones_failure(trainer: L.Trainer, failure: Exception | None) -> Exception | None:
    """This process's own failure, or that of another; every process must ask.

    Args:
        trainer: of the run.
        failure: of this process, ``None`` where all went well.

    Example:
        >>> trainer = L.Trainer(accelerator="cpu", logger=False, barebones=True)
        >>> anyones_failure(trainer, None) is None
        True
    """
    if trainer.world_size == 1:
        return failure
    told: list[Any] = [None] * trainer.world_size
    words = None if failure is None else str(failure) or type(failure).__name__
    torch.distributed.all_gather_object(told, words)
    others = [ModelError(words) for words in told if words is not None]
    return failure or next(iter(others), None)
