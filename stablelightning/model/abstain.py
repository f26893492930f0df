"""Thresholds on what a Prediction says of its own uncertainty, and the decision for every row."""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from stablelightning.errors import DataError, RecipeError
from stablelightning.functional.abstain import (
    ANSWERED,
    Operating,
    operating_point_at_coverage,
    operating_point_at_risk,
    operating_point_with_guarantee,
    reasons_to_abstain,
)
from stablelightning.functional.scores import at_least_single
from stablelightning.model.prediction import Prediction

#: Share of the rows that thresholds are chosen on whose epistemic part counts as unheard of.
UNFAMILIAR = 0.01


@dataclass(frozen=True)
class Thresholds:
    """Up to which uncertainty a row is answered; everything in the units of the prediction.

    A row is *out of distribution* if its epistemic part is above ``epistemic``. Otherwise it is
    answered if its total is at most ``total``. Otherwise the reason is *aleatoric* if its noise by
    itself is above ``total`` (a model that knew everything would not answer either), and
    *epistemic* if it is not (with more data like it, the row could be answered).

    Args:
        total: largest total uncertainty of a row that is answered: nats, or squared target units;
            >= 0.
        epistemic: largest epistemic part of a row that is like those known, >= 0; infinity calls
            no row unfamiliar.
        coverage: share of the rows answered where it was chosen, if it was.
        risk: of the answered rows there: share of wrong answers (of a regression, the root of the
            mean squared error in target units).
        bound: what the risk of later rows is promised to stay below, if that was asked for.

    Raises:
        RecipeError: a threshold is negative or NaN, so that no row could ever meet it.

    Example:
        >>> Thresholds(total=0.5, epistemic=0.2)
        Thresholds(total=0.5, epistemic=0.2, coverage=None, risk=None, bound=None)
    """

    total: float
    epistemic: float = math.inf
    coverage: float | None = None
    risk: float | None = None
    bound: float | None = None

    def __post_init__(self) -> None:
        for name, value in (("total", self.total), ("epistemic", self.epistemic)):
            if not value >= 0:
                raise RecipeError(
                    f"{name} must be >= 0, got {value}: no uncertainty is below 0, so no row would "
                    "be answered; take choose_thresholds to find one."
                )


def choose_thresholds(
    prediction: Prediction,
    target: Tensor,
    *,
    risk: float | None = None,
    coverage: float | None = None,
    confidence: float | None = None,
    unfamiliar: float = UNFAMILIAR,
) -> Thresholds:
    """Choose thresholds on rows of known target that the model was not trained on.

    Args:
        prediction: of N rows.
        target: ``(N,)`` class indices, labels or values, as for the prediction's scores.
        risk: the most that answered rows may cost on average: share of wrong answers (of labels or
            pixels, for several of them in a row); of a regression, the root of their mean squared
            error, in target units. As many rows are answered as that allows.
        coverage: share of rows to answer, in (0, 1]; either this or ``risk``.
        confidence: promise the risk for later rows, with this probability over the draw of these
            ones; in (0, 1). For classes only, whose answers are right or wrong.
        unfamiliar: share of the rows whose epistemic part is taken for unheard of, in [0, 1); 0
            calls nothing out of distribution that shows no more than these rows do.

    Returns:
        The thresholds, with the coverage and the risk that they have here.

    Raises:
        RecipeError: neither or both of ``risk`` and ``coverage``, one out of its range, or one
            that no threshold reaches; the message says the best that can be had.
        DataError: no rows, lengths that differ, NaN.

    Source:
        Geifman, El-Yaniv 2017, arXiv:1705.08500 (the choice); the reasons follow from the total
        being the sum of its parts.

    Example:
        >>> import torch, stablelightning as sl
        >>> from torch.nn import Dropout, Linear, Sequential
        >>> net = Sequential(Linear(4, 8), Dropout(0.5), Linear(8, 3))
        >>> inputs, target = torch.randn(200, 4), torch.randint(3, (200,))
        >>> known = sl.mc_dropout(net, inputs, samples=20, seed=0)
        >>> thresholds = choose_thresholds(known, target, coverage=0.75)
        >>> thresholds.coverage
        0.75
        >>> new = sl.mc_dropout(net, torch.randn(5, 4), samples=20, seed=0).abstain(thresholds)
        >>> new.answered.shape, len(new.reasons)
        (torch.Size([5]), 5)
    """
    check_choice(risk, coverage, confidence, unfamiliar)
    if len(target) != len(prediction.mean) or not len(target):
        raise DataError(
            "thresholds need a target for every row and at least one row, got "
            f"{len(prediction.mean)} predictions and {len(target)} targets; pass those of the same "
            "rows."
        )
    total, _, epistemic = _parts(prediction)
    loss = _losses(prediction, target)
    familiar = _largest_familiar(epistemic, unfamiliar)
    gated = total.masked_fill(epistemic > familiar, math.inf)
    squared = prediction.task == "regression"
    if coverage is not None:
        point = operating_point_at_coverage(gated, loss, coverage=coverage)
    elif confidence is not None:
        point = operating_point_with_guarantee(gated, loss, risk=risk or 0, confidence=confidence)
    else:
        point = _at_risk(gated, loss, risk or 0, squared=squared)
    met = math.sqrt(point.risk) if squared else point.risk
    return Thresholds(point.threshold, familiar, point.coverage, met, point.bound)


def decide(prediction: Prediction, thresholds: Thresholds) -> Prediction:
    """Say of every row whether it is answered, and why not.

    Args:
        prediction: of N rows, in the units of those that the thresholds were chosen on.
        thresholds: see :class:`Thresholds` for the rule.

    Returns:
        The same prediction with ``answered`` and ``reason``.

    Raises:
        DataError: an uncertainty is NaN.

    Example:
        >>> import torch, stablelightning as sl
        >>> from torch.nn import Dropout, Linear, Sequential
        >>> net = Sequential(Linear(4, 8), Dropout(0.5), Linear(8, 3))
        >>> prediction = sl.mc_dropout(net, torch.randn(5, 4), samples=20, seed=0)
        >>> decide(prediction, Thresholds(total=2.0)).reasons
        ['answered', 'answered', 'answered', 'answered', 'answered']
    """
    total, aleatoric, epistemic = _parts(prediction)
    reason = reasons_to_abstain(
        total, aleatoric, epistemic, largest=thresholds.total, familiar=thresholds.epistemic
    )
    return replace(prediction, answered=reason == ANSWERED, reason=reason)


def check_choice(
    risk: float | None, coverage: float | None, confidence: float | None, unfamiliar: float
) -> None:
    """Refuse a choice that cannot be made, before there are rows to make it on.

    Args:
        risk: as for :func:`choose_thresholds`.
        coverage: as there.
        confidence: as there.
        unfamiliar: as there.

    Raises:
        RecipeError: neither or both of ``risk`` and ``coverage``, or one out of its range.

    Example:
        >>> check_choice(0.05, None, None, 0.01)
    """
    if confidence is not None and risk is None:
        raise RecipeError(
            f"confidence promises a risk, got {confidence} without one; give risk, or leave "
            "confidence out."
        )
    if (risk is None) == (coverage is None):
        raise RecipeError(
            f"either risk or coverage must be given, got risk={risk} and coverage={coverage}; the "
            "one follows from the other."
        )
    if risk is not None and not risk > 0:
        raise RecipeError(f"risk must be > 0, got {risk}; 0.05 is usual for wrong answers.")
    if coverage is not None and not 0 < coverage <= 1:
        raise RecipeError(f"coverage must be in (0, 1], got {coverage}; 0.9 is usual.")
    if confidence is not None and not 0 < confidence < 1:
        raise RecipeError(f"confidence must be in (0, 1), got {confidence}; 0.95 is usual.")
    if not 0 <= unfamiliar < 1:
        raise RecipeError(f"unfamiliar must be in [0, 1), got {unfamiliar}; 0.01 is usual.")
    if coverage is not None and coverage > 1 - unfamiliar:
        raise RecipeError(
            f"coverage and unfamiliar must be at most 1 together, got {coverage:g} and "
            f"{unfamiliar:g}: what is unfamiliar is not answered; lower one of them."
        )


def _at_risk(total: Tensor, loss: Tensor, risk: float, *, squared: bool) -> Operating:
    if not squared:
        return operating_point_at_risk(total, loss, risk=risk)
    try:
        return operating_point_at_risk(total, loss, risk=risk * abs(risk))
    except RecipeError as error:
        raise RecipeError(
            f"{error} (Of a regression these are squares: {risk:g} squared is {risk**2:g}.)"
        ) from error


def _largest_familiar(epistemic: Tensor, unfamiliar: float) -> float:
    """The epistemic part that all but the share ``unfamiliar`` of the rows stay at or below."""
    kept = math.ceil(len(epistemic) * (1 - unfamiliar))
    return float(epistemic.double().sort().values[kept - 1])


def _parts(prediction: Prediction) -> tuple[Tensor, Tensor, Tensor]:
    """Total, aleatoric and epistemic of each row: the mean, where a row holds several.

    Not below 0: the entropy of a mean that rounds to a probability over 1 is -1e-7.
    """
    parts = [
        (
            at_least_single(part).flatten(1).mean(1) if part.ndim > 1 else at_least_single(part)
        ).clamp(min=0)
        for part in (prediction.total, prediction.aleatoric, prediction.epistemic)
    ]
    bad = int(torch.stack(parts).isnan().any(0).sum())
    if bad:
        raise DataError(
            f"an uncertainty must not be NaN, got {bad} such rows of {len(parts[0])}; look for it "
            "in the inputs, or in the model."
        )
    return parts[0], parts[1], parts[2]


def _losses(prediction: Prediction, target: Tensor) -> Tensor:
    """What the answer to each row would cost: share of it that is wrong, or its squared error."""
    mean = prediction.mean
    target = target.to(mean.device)
    wanted = mean[:, 0].shape if prediction.task == "classification" else mean.shape
    if target.numel() != wanted.numel() or (
        prediction.task == "classification" and target.shape != wanted
    ):
        raise DataError(
            f"targets must be of shape {tuple(wanted)} for this prediction, got "
            f"{tuple(target.shape)}; pass the class, label or value of each row."
        )
    if prediction.task == "classification":
        cost = mean.argmax(1) != target
    elif prediction.task == "multilabel":
        cost = (mean > 0.5) != (target > 0.5)
    else:
        cost = (at_least_single(mean) - target.reshape(mean.shape)).square()
    cost = at_least_single(cost)
    return cost.flatten(1).mean(1) if cost.ndim > 1 else cost
