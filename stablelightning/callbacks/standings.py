"""Scores that no longer count: of checkpoints and of early stopping, once the model is another."""

import lightning as L
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from stablelightning.callbacks.stop_early import StopEarly


def forget_best_checkpoints(trainer: L.Trainer) -> None:
    """Let the next checkpoint of each ``ModelCheckpoint`` be better than those it has kept.

    The files stay until better ones replace them, worst first. ``StopEarly`` keeps weights, and
    lets go of them.

    Args:
        trainer: with its callbacks; their scores are changed.

    Example:
        >>> keeper = ModelCheckpoint(monitor="val/loss")
        >>> keeper.best_k_models = {"old.ckpt": torch.tensor(0.1)}
        >>> trainer = L.Trainer(accelerator="cpu", logger=False, callbacks=[keeper])
        >>> forget_best_checkpoints(trainer)
        >>> keeper.best_k_models
        {'old.ckpt': tensor(inf)}
    """
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, StopEarly):
            callback.forget_best()
        if not isinstance(callback, ModelCheckpoint) or not callback.best_k_models:
            continue
        worst = torch.tensor(torch.inf if callback.mode == "min" else -torch.inf)
        for path, score in callback.best_k_models.items():
            callback.best_k_models[path] = worst.to(score)
        if callback.kth_value is not None:
            callback.kth_value = worst
        if callback.best_model_score is not None:
            callback.best_model_score = worst


def hold_early_stopping(trainer: L.Trainer) -> None:
    """Let the next score of each ``EarlyStopping`` (or ``StopEarly``) be better than any before.

    Its thresholds, and its check that a score is finite, still stop a run.

    Args:
        trainer: with its callbacks; their scores are changed.

    Example:
        >>> stopping = EarlyStopping("val/loss", patience=1)
        >>> stopping.best_score, stopping.wait_count = torch.tensor(0.1), 1
        >>> hold_early_stopping(
        ...     L.Trainer(accelerator="cpu", logger=False, callbacks=[stopping])
        ... )
        >>> stopping.best_score, stopping.wait_count
        (tensor(inf), 0)
    """
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        judge = callback._stopping if isinstance(callback, StopEarly) else callback
        if isinstance(judge, EarlyStopping):
            worst = torch.inf if judge.mode == "min" else -torch.inf
            judge.best_score = torch.full_like(judge.best_score, worst)
            judge.wait_count = 0
