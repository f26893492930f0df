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


def told_by_first(trainer: L.Trainer, item: Any) -> Any:
    """What process 0 has given; every process must ask.

    Args:
        trainer: of the run.
        item: of this process, plain values and tensors; that of process 0 counts.

    Example:
        >>> trainer = L.Trainer(accelerator="cpu", logger=False, barebones=True)
        >>> told_by_first(trainer, {"rows": 3})
        {'rows': 3}
    """
    if trainer.world_size == 1:
        return item
    told = [item]
    torch.distributed.broadcast_object_list(told, 0)
    return told[0]
