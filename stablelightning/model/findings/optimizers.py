"""Findings about the optimizer: its rate, its memory, and what it decays."""

import math
from collections.abc import Iterator

from torch import nn

from stablelightning.model.diagnosis import Finding
from stablelightning.model.findings.examination import Examination
from stablelightning.model.findings.structure import PLAIN_DEPTH
from stablelightning.model.optimizer_settings import harmful_settings

#: A first step that promises (gradient times step) more than the whole loss leaves the range
#: in which a gradient says anything: a loss cannot fall below zero ...
PROMISED_TOO_MUCH = 1.0
#: ... and one that keeps less than this share of its promise, and less than half of the loss, went
#: past the valley.
KEPT_TOO_LITTLE = 0.1
STILL_THERE = 0.5
#: In deep plain networks the changes of all layers multiply, and the curvature grows while they
#: train: there the promise alone is a warning. Measured, isometric stacks whose first step promised
#: 1.2 to 4.6 times the loss trained badly though it kept a third or a half of it; up to 0.8, well.
DEEP_PROMISED = 1.0
#: A loss that one step has raised by so much, on its own batch, has been thrown out.
RAISED = 1.5
#: Behind norms a step that is too long also lengthens the weights, which shortens the steps that
#: follow (arXiv:1706.05350): such networks recover, ResNets at SGD 0.1 among them. Only a loss that
#: is many times what it was says that they may not.
RAISED_BEHIND_NORMS = 5.0
MOSTLY = 0.5


def learning_rate_too_high(examination: Examination) -> Iterator[Finding]:
    """One trial step, and how far it throws the loss on its own batch."""
    trial = examination.trial
    if trial is None or trial.loss_before <= 0 or not math.isfinite(trial.loss_before):
        return
    after = trial.loss_after if math.isfinite(trial.loss_after) else math.inf
    promised = trial.promised / trial.loss_before
    kept = (trial.loss_before - after) / trial.promised if trial.promised > 0 else 1.0
    normalised = _share_normalised(examination) > MOSTLY
    overshot = (
        not normalised
        and promised > PROMISED_TOO_MUCH
        and kept < KEPT_TOO_LITTLE
        and after > STILL_THERE * trial.loss_before
    )
    deep = not normalised and promised > DEEP_PROMISED and _is_deep(examination)
    raised = after > (RAISED_BEHIND_NORMS if normalised else RAISED) * trial.loss_before
    if not (overshot or deep or raised):
        return
    factor = max(promised, 2.0)  # the rate at which the promise is the loss itself
    yield Finding(
        "learning-rate-too-high",
        "error" if raised else "warning",
        "",
        f"one step at rate {trial.learning_rate:.2g} promises to lower the loss of "
        f"{trial.loss_before:.3g} by {trial.promised:.3g}, and takes it to {after:.3g}: the rate "
        "is at fault, whatever the initialization.",
        {
            "learning_rate": trial.learning_rate,
            "loss_before": trial.loss_before,
            "loss_after": after,
            "promised": trial.promised,
            "kept": kept,
            "moved": trial.moved,
        },
        f"lower the rate to about {trial.learning_rate / factor:.1g}, or warm it up from there; "
        "deeper networks need smaller steps, since the changes of all layers multiply.",
    )


def _is_deep(examination: Examination) -> bool:
    attribution = examination.measurement.attribution
    return attribution is not None and attribution.plain_depth > PLAIN_DEPTH


def _share_normalised(examination: Examination) -> float:
    hidden = [layer for layer in examination.layers if not layer.is_output]
    return sum(layer.normalised for layer in hidden) / len(hidden) if hidden else 0.0


def settings_known_to_hurt(examination: Examination) -> Iterator[Finding]:
    """Momentum, betas, epsilon and decay out of reason, and AdaGrad on a deep network."""
    if examination.optimizer is None:
        return
    for setting in harmful_settings(examination.optimizer, examination.model):
        yield Finding(
            setting.code,
            setting.severity,
            "",
            setting.message,
            setting.evidence,
            setting.remedy,
        )


def decayed_prelu(examination: Examination) -> Iterator[Finding]:
    """Weight decay pulls a PReLU's slope to zero, and makes a ReLU of it."""
    if examination.optimizer is None:
        return
    decayed = {
        id(p): float(group.get("weight_decay", 0.0) or 0.0)
        for group in examination.optimizer.param_groups
        for p in group["params"]
    }
    found = [
        (name, decayed.get(id(module.weight), 0.0))
        for name, module in examination.measurement.modules.items()
        if isinstance(module, nn.PReLU) and decayed.get(id(module.weight), 0.0) > 0
    ]
    if not found:
        return
    names = tuple(name for name, _ in found)
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    yield Finding(
        "decayed-prelu",
        "warning",
        names[0],
        f"weight decay {found[0][1]:g} acts on the slope of {names[0]}{more}: it pulls a PReLU "
        "towards a plain ReLU.",
        {"weight_decay": found[0][1], "modules": float(len(found))},
        "put the slopes into a parameter group with weight_decay=0.",
        modules=names,
    )
