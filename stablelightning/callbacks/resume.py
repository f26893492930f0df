"""Whether a run will go on from a checkpoint, asked before Lightning says so."""

import inspect
from typing import Any

import lightning as L


def checkpoint_to_load(trainer: L.Trainer) -> Any:
    """The checkpoint that this run of the Trainer will load; ``None`` if it starts afresh.

    For ``setup`` of a callback. ``trainer.ckpt_path`` is set when the checkpoint is read, which is
    after ``setup``; before, the path of ``fit(ckpt_path=...)`` is known to ``Trainer._run`` alone,
    which is below us on the stack. A run that a cluster interrupted and starts again counts, too.

    Args:
        trainer: inside one of its hooks.

    Example:
        >>> checkpoint_to_load(L.Trainer(accelerator="cpu", logger=False, barebones=True)) is None
        True
    """
    if trainer.ckpt_path:
        return trainer.ckpt_path
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_code is L.Trainer._run.__code__ and frame.f_locals.get("self") is trainer:
            return frame.f_locals.get("ckpt_path")
        frame = frame.f_back
    return None
