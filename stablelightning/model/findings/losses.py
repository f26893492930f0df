"""Findings about what the loss is given: logits, probabilities, or their logarithms."""

from collections.abc import Iterator

import torch
from torch import Tensor

from stablelightning.functional.scores import at_least_single
from stablelightning.functional.uncertainty import is_probabilities
from stablelightning.model.diagnosis import Finding
from stablelightning.model.findings.examination import Examination
from stablelightning.model.watched import LossCall

#: How far the log of the sum of the probabilities may be from zero; half precision of a thousand
#: classes stays within it, logits of an untrained network are at log(classes).
LOG_SUM_TOLERANCE = 0.05


def loss_expects_other(examination: Examination) -> Iterator[Finding]:
    """A softmax too many (loss-expects-logits), or too few (loss-expects-probabilities)."""
    seen: set[str] = set()
    for call in examination.measurement.losses:
        if call.name in seen or call.input.numel() == 0:
            continue
        problem = _problem(call)
        if problem is not None:
            seen.add(call.name)
            message, remedy, evidence = problem
            last = _output_layer(examination)
            yield Finding(_code(call), "error", last, message, evidence, remedy)


def _code(call: LossCall) -> str:
    takes_logits = call.name in ("cross_entropy", "binary_cross_entropy_with_logits")
    return "loss-expects-logits" if takes_logits else "loss-expects-probabilities"


def _problem(call: LossCall) -> tuple[str, str, dict[str, float]] | None:
    values = at_least_single(call.input)
    evidence = {"smallest": float(values.min()), "largest": float(values.max())}
    if call.name == "cross_entropy" and _class_axis(values) is not None:
        if is_probabilities(values, 1 if values.ndim > 1 else 0):
            return (
                "cross_entropy takes logits and was given probabilities: it applies softmax a "
                "second time, and the loss can hardly fall.",
                "leave out the softmax at the end, or use nll_loss of its logarithm.",
                evidence,
            )
    elif call.name == "binary_cross_entropy_with_logits":
        if call.after.startswith("Sigmoid") and bool(((values >= 0) & (values <= 1)).all()):
            return (
                "binary_cross_entropy_with_logits takes logits and was given probabilities: it "
                "applies the sigmoid a second time.",
                "leave out the sigmoid at the end of the network, or use binary_cross_entropy.",
                evidence,
            )
    elif call.name == "binary_cross_entropy" and bool(((values < 0) | (values > 1)).any()):
        return (
            "binary_cross_entropy takes probabilities and was given logits: it refuses values "
            "outside of [0, 1].",
            "use binary_cross_entropy_with_logits.",
            evidence,
        )
    elif call.name == "nll_loss" and _class_axis(values) is not None:
        off = float(values.logsumexp(1 if values.ndim > 1 else 0).abs().max())
        if off > LOG_SUM_TOLERANCE:
            return (
                "nll_loss takes log-probabilities and was given something else: the loss has no "
                "lower bound.",
                "use cross_entropy, or end the network with log_softmax.",
                {**evidence, "log_sum": off},
            )
    return None


def _class_axis(values: Tensor) -> int | None:
    if values.ndim == 0 or not torch.isfinite(values).all():
        return None
    return 1 if values.ndim > 1 else 0


def _output_layer(examination: Examination) -> str:
    outputs = [layer.name for layer in examination.layers if layer.is_output]
    return outputs[-1] if outputs else ""
