"""What a training leaves behind: its best checkpoint, and the folder for further files."""

import os
from pathlib import Path

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint


def best_checkpoint(trainer: L.Trainer) -> Path | None:
    """The best checkpoint that was written, ``None`` where none was kept.

    Args:
        trainer: after a fit.

    Example:
        >>> print(best_checkpoint(L.Trainer(enable_checkpointing=False, logger=False)))
        None
    """
    keeper = trainer.checkpoint_callback
    path = keeper.best_model_path if isinstance(keeper, ModelCheckpoint) else ""
    return Path(path) if path and Path(path).is_file() else None


def folder_for_results(trainer: L.Trainer, wanted: str | os.PathLike[str] | None = None) -> Path:
    """Where files of a training go: where they are wanted, or beside what the logger writes.

    Args:
        trainer: without a logger, its ``default_root_dir`` counts.
        wanted: by the user.

    Example:
        >>> folder_for_results(L.Trainer(logger=False, default_root_dir="here")).name
        'here'
    """
    first = next(iter(trainer.loggers), None)
    beside = None if first is None else first.log_dir or first.save_dir
    return Path(wanted or beside or trainer.default_root_dir)
