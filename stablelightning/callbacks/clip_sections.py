"""What the doctor and a run say of gradient norms: how they are distributed, and how they were."""

import math
from statistics import median
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from stablelightning.callbacks.clip_base import ClipGradients
from stablelightning.callbacks.first_batches import first_batches
from stablelightning.functional.clip import joint_norm
from stablelightning.model.clip import BOUNDS, MULTIPLE, threshold_from
from stablelightning.model.preserve import preserved
from stablelightning.model.step import TrainingStep
from stablelightning.report.clip import clipping_curve, threshold_histogram
from stablelightning.report.section import Section

#: Batches whose gradients the doctor looks at: enough for a mean, in seconds.
DOCTOR_BATCHES = 16


def doctor_section(patient: Any) -> Section | None:
    """Measure the gradient norms of a few batches at the present weights, and choose a threshold.

    Nothing is trained, and the model is left as it was.

    Args:
        patient: with a ``trainer`` that is connected to its data, and a ``model``.
    """
    batches = first_batches(patient.trainer, patient.model, DOCTOR_BATCHES)
    norms = gradient_norms(patient.model, batches)
    finite = [norm for norm in norms if math.isfinite(norm) and norm > 0]
    if not finite:
        return Section(
            "clipping",
            "Gradient norms",
            f"none of {len(norms)} batches has a gradient that is finite and above zero",
        )
    threshold = threshold_from(finite)
    mean = math.fsum(finite) / len(finite)
    lead = (
        f"a threshold of {threshold:.3g} is recommended: {MULTIPLE:g} times the mean norm of "
        f"{len(finite)} batches at the present weights ({mean:.3g}), within "
        f"{BOUNDS[0]:g} and {BOUNDS[1]:g}"
    )
    notes = ["norms change as training goes on; max_norm: auto measures the first steps of it"]
    if len(finite) < len(norms):
        notes.append(f"{len(norms) - len(finite)} norms were zero or not finite")
    return Section(
        "clipping",
        "Gradient norms",
        lead,
        ["batches", "smallest", "median", "mean", "largest", "recommended max_norm"],
        [[len(finite), min(finite), median(finite), mean, max(finite), threshold]],
        threshold_histogram(finite, threshold),
        notes,
        {"clip/recommended": threshold, "clip/mean_norm": mean},
    )


def gradient_norms(model: nn.Module, batches: list[Any], *, norm_type: float = 2.0) -> list[float]:
    """The joint gradient norm of each batch at the present weights.

    Args:
        model: in training mode while it is measured, and left as it was.
        batches: as its training step takes them.
        norm_type: the p of the norm, >= 1.

    Example:
        >>> torch.manual_seed(0)
        <torch._C.Generator object at ...>
        >>> batch = torch.ones(4, 2), torch.zeros(4, 1)
        >>> [norm > 0 for norm in gradient_norms(nn.Linear(2, 1), [batch])]
        [True]
    """
    norms: list[Tensor] = []
    with torch.enable_grad(), preserved(model):
        model.train()
        for batch in batches:
            model.zero_grad(set_to_none=True)
            TrainingStep(model, batch).run().backward()
            gradients = [p.grad for p in model.parameters() if p.grad is not None]
            norms.append(joint_norm(gradients, norm_type).detach())
    return [float(norm) for norm in norms]


def run_section(trainer: L.Trainer, model: L.LightningModule) -> Section | None:
    """What clipping did in a run."""
    callbacks: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    clip = next((c for c in callbacks if isinstance(c, ClipGradients)), None)
    if clip is None or not clip.records or not clip.curve:
        return None
    several = len(clip.records) > 1
    rows: list[list[Any]] = []
    numbers: dict[str, float] = {}
    for number, (record, threshold) in enumerate(zip(clip.records, clip.thresholds, strict=True)):
        share = record.clipped / max(record.steps, 1)
        row: list[Any] = [record.steps, record.clipped, f"{share:.1%}", record.not_finite]
        end = f"/{number}" if several else ""
        numbers[f"clip/share{end}"] = share
        if threshold > 0:  # a share of clipped units is counted from zero on, and has none
            numbers[f"clip/threshold{end}"] = threshold
            row.append(threshold)
        rows.append([number, *row] if several else row)
    columns = ["steps", "clipped", "share", "not finite"]
    columns += ["threshold"] if any(threshold > 0 for threshold in clip.thresholds) else []
    record, first = clip.records[0], clip.first_norms[0]
    drawn = any(math.isfinite(high) and high > 0 for high in record.highs)
    were = "was" if record.clipped == 1 else "were"  # as the title of the figure says it
    by = type(clip).__name__
    lead = f"{record.clipped:,} of {record.steps:,} steps {were} clipped by {by}"
    return Section(
        "clipping",
        "Gradient clipping",
        lead,
        ["optimizer", *columns] if several else columns,
        rows,
        clipping_curve(record, label=clip.curve, first=first) if drawn else None,
        ["the picture is of the first optimizer"] if several else [],
        numbers,
    )
