"""The activation of an output, as its targets ask for it."""

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from stablelightning.errors import DataError, StableLightningWarning
from stablelightning.model.prediction import Task
from stablelightning.model.recommendation import ActivationRecommendation
from stablelightning.model.structure import find_heads

#: Rows of probabilities add up to one but for rounding.
_ROUNDING = 1e-4
#: Targets that all lie nearer to zero than this do not use the range [-1, 1].
_USED_RANGE = 0.5
#: Classes have more rows than this in most data; counts and years may not.
_FEW_PER_CLASS = 5
#: Fewer rows than this say little about what targets may be.
_FEW_ROWS = 10

_OPEN = ("linear", "identity")
#: Outputs that no target outside of [low, high] can be fitted with.
_RANGES = {
    "tanh": (-1.0, 1.0),
    "hardtanh": (-1.0, 1.0),
    "softsign": (-1.0, 1.0),
    "sigmoid": (0.0, 1.0),
    "hardsigmoid": (0.0, 1.0),
    "softmax": (0.0, 1.0),
    "scaled_sigmoid": (-2.0, 2.0),
    "relu": (0.0, float("inf")),
    "softplus": (0.0, float("inf")),
}


@dataclass(frozen=True)
class TargetFacts:
    """What targets look like.

    Args:
        low: smallest value.
        high: largest value.
        rows: number of rows.
        columns: values of a row; 1 for a single dimension.
        whole: whether every value is a whole number.
        integers: whether they are stored as whole numbers.
        binary: whether every value is 0 or 1.
        ones: whether every row of several columns adds up to 1.
        several: share of the rows with two or more labels, where they are binary.
    """

    low: float
    high: float
    rows: int
    columns: int
    whole: bool
    integers: bool
    binary: bool
    ones: bool
    several: float


def read_targets(targets: Any) -> TargetFacts:
    """Describe targets.

    Args:
        targets: ``(N,)`` or ``(N, ...)``; a tensor, an array or a list.

    Raises:
        DataError: there are none, they are no numbers, or some are not finite.

    Example:
        >>> read_targets([[1, 0, 1], [0, 1, 0]]).several
        0.5
    """
    try:
        values = torch.as_tensor(targets).detach()
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"targets must be numbers in a regular shape, got {error}.") from error
    if values.numel() == 0 or values.is_complex():
        raise DataError(f"targets must hold real numbers, got {tuple(values.shape)} of them.")
    integers = not values.is_floating_point()
    values = values.double()
    if not bool(values.isfinite().all()):
        raise DataError(
            "targets must be finite, got NaN or infinite ones; drop these rows before training."
        )
    rows = values.reshape(len(values), -1) if values.ndim > 1 else values.reshape(-1, 1)
    binary = bool(((values == 0) | (values == 1)).all())
    several = rows.shape[1] > 1
    totals = rows.sum(1)
    return TargetFacts(
        low=float(values.min()),
        high=float(values.max()),
        rows=len(rows),
        columns=rows.shape[1],
        whole=bool((values == values.round()).all()),
        integers=integers,
        binary=binary,
        ones=several and bool(((totals - 1).abs() < _ROUNDING).all()) and float(values.min()) >= 0,
        several=float((totals > 1).double().mean()) if several and binary else 0.0,
    )


def recommend_output(
    model: nn.Module | None, targets: Any, task: Task | None, activation: str | None
) -> ActivationRecommendation:
    """The rules for an output; see :func:`stablelightning.recommend_activation`.

    Args:
        model: checked against the classes in the targets, if given.
        targets: what is to be predicted, ``None`` if only the task is known.
        task: what they are.
        activation: the one in use.

    Raises:
        DataError: the targets contradict the task, the activation or the model.

    Example:
        >>> recommend_output(None, [[1, 0, 1], [0, 1, 0]], None, None).name
        'sigmoid'
    """
    if targets is None:
        if task is None:
            raise DataError(
                "the activation of an output follows from its targets, got neither targets nor a "
                "task; pass targets= (best) or task=."
            )
        name = {"classification": "softmax", "multilabel": "sigmoid", "regression": "linear"}[task]
        return _say(name, f"the task is {task}, and no targets were given to check it")
    facts = read_targets(targets)
    if task is not None:
        _check_task(task, facts)
    said = _classes(facts, task) or _numbers(facts)
    if activation is not None:
        _check_activation(activation, said, facts)
    if model is not None and said.name == "softmax" and facts.columns == 1:
        _check_width(model, facts)
    return said


def _classes(facts: TargetFacts, task: Task | None) -> ActivationRecommendation | None:
    """What labels ask for; ``None`` if the targets are quantities."""
    if task == "regression":
        return None
    if task == "multilabel" or (facts.columns > 1 and facts.binary and not facts.ones):
        share = f"{facts.several:.0%} of the rows have two or more labels"
        reason = "the labels are independent" + (f": {share}" if facts.several else "")
        return _say("sigmoid", f"{reason}; each is a yes or no of its own")
    if facts.columns > 1 and facts.ones:
        kind = "exactly one label" if facts.binary else "probabilities that add up to 1"
        return _say("softmax", f"the classes are exclusive: every row has {kind}")
    if facts.columns > 1 or not facts.whole or facts.low < 0:
        return None
    if facts.binary and task is None:
        return _say("sigmoid", "the target is one yes or no per row: one output")
    if task is None and not facts.integers:
        return None
    classes = int(facts.high) + 1
    notes = []
    if task is None and classes > facts.rows // _FEW_PER_CLASS:
        notes.append(f"with {facts.rows} rows for {classes} values: counts are task='regression'")
    reason = f"the classes are exclusive: one index per row, 0 to {classes - 1}"
    return _say("softmax", reason, notes)


def _numbers(facts: TargetFacts) -> ActivationRecommendation:
    span = f"the targets lie in [{facts.low:.4g}, {facts.high:.4g}]"
    limits = (
        "targets at the very ends are reached in the limit only: scale them to 0.9 of the range"
    )
    if facts.low >= -1 and facts.high <= 1 and facts.low < 0:
        if max(-facts.low, facts.high) < _USED_RANGE:
            return _say("linear", f"{span}, far inside of what tanh would allow")
        notes = [limits] if max(-facts.low, facts.high) == 1 else []
        beyond = {"linear": "if values beyond [-1, 1] may come"}
        return _say("tanh", f"{span}, and tanh can give nothing else", notes, beyond)
    if facts.low >= 0 and facts.high <= 1 and facts.high > _USED_RANGE:
        notes = [limits] if facts.low == 0 or facts.high == 1 else []
        beyond = {"linear": "if values beyond [0, 1] may come"}
        return _say("sigmoid", f"{span}: shares of something", notes, beyond)
    if facts.low >= 0:
        positive = {"softplus": "where a negative prediction would be nonsense"}
        notes = ["standardise the targets; counts and prices often as logarithms"]
        return _say("linear", f"{span}, which bounds nothing from above", notes, positive)
    return _say("linear", f"{span}, on both sides of zero without a bound")


def _say(
    name: str,
    reason: str,
    notes: list[str] | None = None,
    alternatives: dict[str, str] | None = None,
) -> ActivationRecommendation:
    told = list(notes or ())
    if name == "softmax":
        told.append("F.cross_entropy applies it: let forward return logits")
    if name == "sigmoid":
        told.append("F.binary_cross_entropy_with_logits applies it: let forward return logits")
    return ActivationRecommendation(
        name=name,
        position="output",
        reason=reason,
        initialization="Glorot, std sqrt(2/(fan_in + fan_out)), zero biases",
        alternatives=alternatives or {},
        notes=tuple(told),
    )


# ---- contradictions -----------------------------------------------------------------------------


def _check_task(task: Task, facts: TargetFacts) -> None:
    if task == "classification":
        if facts.several:
            raise DataError(
                f"classes must be exclusive, and {facts.several:.0%} of the rows have two or more "
                "labels; use task='multilabel', with one sigmoid per label."
            )
        fits = facts.ones or (facts.columns == 1 and facts.whole)
        if not fits or facts.low < 0:
            raise DataError(
                f"classification needs class indices from 0, or rows that add up to 1, got values "
                f"in [{facts.low:.4g}, {facts.high:.4g}]; encode the classes, or use "
                "task='regression'."
            )
    if task == "multilabel":
        if facts.low < 0 or facts.high > 1:
            raise DataError(
                f"labels must be 0 or 1 each, got values in [{facts.low:.4g}, {facts.high:.4g}]; "
                "class indices are task='classification'."
            )
        if facts.binary and facts.ones and facts.rows >= _FEW_ROWS:
            _warn(
                f"every one of {facts.rows} rows has exactly one label: the classes look "
                "exclusive, and task='classification' (softmax) would use that."
            )
    if task == "regression" and facts.integers and facts.columns == 1 and facts.low >= 0:
        classes = int(facts.high) + 1
        if 2 <= classes <= max(2, facts.rows // _FEW_ROWS):
            _warn(
                f"the targets are the whole numbers 0 to {classes - 1}: if they name classes, use "
                "task='classification'."
            )


def _check_activation(activation: str, said: ActivationRecommendation, facts: TargetFacts) -> None:
    name = activation.partition("(")[0].lower()
    if name == "softmax" and said.name == "sigmoid":
        raise DataError(
            f"softmax makes classes exclusive, and {said.reason}; use sigmoid for each label."
        )
    if name == "sigmoid" and said.name == "softmax" and facts.columns > 1:
        _warn(f"a sigmoid per class lets several be true, and {said.reason}; softmax says so.")
    if said.name == "softmax" and facts.columns == 1:
        return  # indices are no values that the output has to reach
    low, high = _RANGES.get(name, (float("-inf"), float("inf")))
    if facts.low < low or facts.high > high:
        raise DataError(
            f"{name} gives values in [{low:g}, {high:g}], and the targets lie in [{facts.low:.4g}, "
            f"{facts.high:.4g}]; scale them, or use {said.name}."
        )
    if name in _RANGES and said.name in _OPEN:
        _warn(f"{name} bounds the output, and {said.reason}; the data asks for no bound.")


def _check_width(model: nn.Module, facts: TargetFacts) -> None:
    heads = find_heads(model)
    width = getattr(heads[-1], "out_features", None) if len(heads) == 1 else None
    if width is not None and facts.high >= width:
        raise DataError(
            f"the model must have an output for every class, and it has {width} for indices up to "
            f"{int(facts.high)}; give it {int(facts.high) + 1}."
        )


def _warn(message: str) -> None:
    warnings.warn(message, StableLightningWarning, stacklevel=5)
