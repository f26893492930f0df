"""The finding about recurrent networks: gradients through time are clipped, or break one day."""

from collections.abc import Iterator
from typing import Any

from torch import nn

from stablelightning.model.diagnosis import Finding
from stablelightning.model.findings.examination import Examination, about


def recurrent_without_clipping(examination: Examination) -> Iterator[Finding]:
    """A recurrent layer whose gradients nobody clips, or nobody is known to."""
    layers = [x for x in examination.layers if x.kind == "recurrent"]
    clipped = examination.clipped
    if clipped is None:
        clipped = clipped_by_trainer(examination.model)
    if not layers or clipped:
        return
    known = clipped is False
    said = "are not clipped" if known else "may not be clipped (nothing here says that they are)"
    yield about(
        layers,
        "recurrent-without-clipping",
        "warning" if known else "info",
        f"the gradients of {layers[0].name or 'the model'} {said}: over many time steps a "
        "single sequence can make them explode.",
        remedy="clip the norm of the gradient: Trainer(gradient_clip_val=1.0), or "
        "torch.nn.utils.clip_grad_norm_.",
        evidence={"known": float(known)},
    )


def clipped_by_trainer(model: nn.Module) -> bool | None:
    """Whether the trainer that a LightningModule is attached to clips; ``None`` without one.

    Example:
        >>> clipped_by_trainer(nn.Linear(1, 1)) is None
        True
    """
    trainer: Any = getattr(model, "_trainer", None)
    if trainer is None:
        return None
    if getattr(trainer, "gradient_clip_val", None) is not None:
        return True
    names = [type(callback).__name__ for callback in getattr(trainer, "callbacks", [])]
    return any("Clip" in name for name in names)
