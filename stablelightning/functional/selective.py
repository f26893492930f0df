"""Selective prediction: what is gained by leaving the most uncertain rows to somebody else.

Rows are ordered by their uncertainty. At *coverage* c the share c of the rows that are least
uncertain is answered, and the *risk* is their mean loss. Rows of equal uncertainty count in every
order with equal weight.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from stablelightning.errors import RecipeError
from stablelightning.functional.checked import check_scores
from stablelightning.functional.rank_groups import (
    RankGroups,
    check_any,
    harmonic_between,
    tie_groups,
)
from stablelightning.functional.scores import at_least_single

#: A risk that exceeds its bound by this share of it is at the bound: sums of floats round.
_ROUNDING = 1e-12


class RiskCoverage(NamedTuple):
    """The curve that a threshold of uncertainty can walk, one point per value that occurs.

    Attributes:
        coverage: ``(G,)`` share of rows whose uncertainty is at most ``threshold``, ascending to 1.
        risk: ``(G,)`` mean loss of those rows.
        threshold: ``(G,)`` the uncertainties, ascending.
    """

    coverage: Tensor
    risk: Tensor
    threshold: Tensor


def risk_coverage_curve(uncertainty: Tensor, loss: Tensor) -> RiskCoverage:
    """Coverage and risk at every threshold.

    Args:
        uncertainty: ``(N,)``, any score that is larger where the row is less certain.
        loss: ``(N,)``, 1 for a wrong row and 0 for a right one, or any loss.

    Raises:
        DataError: NaN, no rows, or different lengths.

    Source:
        El-Yaniv, Wiener 2010, "On the foundations of noise-free selective classification", JMLR 11.

    Example:
        >>> score, wrong = torch.tensor([0.1, 0.9, 0.4, 0.9]), torch.tensor([0, 1, 0, 0])
        >>> curve = risk_coverage_curve(score, wrong)
        >>> curve.coverage, curve.risk
        (tensor([0.2500, 0.5000, 1.0000]), tensor([0.0000, 0.0000, 0.2500]))
    """
    groups = _groups(uncertainty, loss)
    curve = curve_of(groups)
    return RiskCoverage(_as(curve.coverage, uncertainty), _as(curve.risk, uncertainty), curve[2])


def aurc(uncertainty: Tensor, loss: Tensor) -> Tensor:
    """Area under the risk-coverage curve: the mean risk of the i surest rows, over i = 1 to N.

    Args:
        uncertainty: ``(N,)``, larger where the row is less certain.
        loss: ``(N,)``, 1 for a wrong row and 0 for a right one, or any loss.

    Returns:
        A scalar in the loss's unit; smaller is better, and 0 is reached without errors only.

    Raises:
        DataError: NaN, no rows, or different lengths.

    Source:
        Geifman, Uziel, El-Yaniv 2018, arXiv:1805.08206, equation 3.

    Example:
        >>> aurc(torch.tensor([0.1, 0.4, 0.9]), torch.tensor([0, 0, 1]))  # (0 + 0 + 1/3) / 3
        tensor(0.1111)
    """
    return _as(aurc_of(_groups(uncertainty, loss)), uncertainty)


def excess_aurc(uncertainty: Tensor, loss: Tensor) -> Tensor:
    """What :func:`aurc` has above that of the best order, in which the losses ascend.

    The best order's area is computed for these very losses, not approximated by the integral
    r + (1 - r) log(1 - r) of the paper.

    Args:
        uncertainty: ``(N,)``, larger where the row is less certain.
        loss: ``(N,)``, 1 for a wrong row and 0 for a right one, or any loss.

    Returns:
        A scalar >= 0 in the loss's unit; 0 if no right row is less certain than a wrong one.

    Raises:
        DataError: NaN, no rows, or different lengths.

    Source:
        Geifman, Uziel, El-Yaniv 2018, arXiv:1805.08206, section 3.

    Example:
        >>> excess_aurc(torch.tensor([0.1, 0.4, 0.9]), torch.tensor([0, 0, 1]))
        tensor(0.)
    """
    groups = _groups(uncertainty, loss)
    flat = at_least_single(loss).flatten()
    return _as((aurc_of(groups) - aurc_of(tie_groups(flat, flat))).clamp(min=0), uncertainty)


def augrc(uncertainty: Tensor, loss: Tensor) -> Tensor:
    """Area under the generalised risk-coverage curve: the mean risk of an unnoticed failure.

    The generalised risk divides the losses of the answered rows by all rows instead of by the
    answered ones, so that few early errors do not outweigh all that follows. The curve is joined by
    straight lines and begins at 0. For 0/1 losses with error rate e and a rank statistic
    A = P(a wrong row is less certain than a right one) the area is (1 - A) e (1 - e) + e^2 / 2.

    Args:
        uncertainty: ``(N,)``, larger where the row is less certain.
        loss: ``(N,)``, 1 for a wrong row and 0 for a right one, or any loss.

    Returns:
        A scalar, in [0, 0.5] for 0/1 losses; smaller is better.

    Raises:
        DataError: NaN, no rows, or different lengths.

    Source:
        Traub et al. 2024, arXiv:2407.01032, equations 5 and 6.

    Example:
        >>> augrc(torch.tensor([0.1, 0.4, 0.9]), torch.tensor([0, 0, 1]))  # (1/3) ** 2 / 2
        tensor(0.0556)
    """
    return _as(augrc_of(_groups(uncertainty, loss)), uncertainty)


def risk_at_coverage(uncertainty: Tensor, loss: Tensor, *, coverage: float) -> Tensor:
    """Mean loss of the surest rows, so many of them that their share is at least ``coverage``.

    Args:
        uncertainty: ``(N,)``, larger where the row is less certain.
        loss: ``(N,)``, 1 for a wrong row and 0 for a right one, or any loss.
        coverage: in (0, 1].

    Raises:
        RecipeError: ``coverage`` is not in (0, 1].
        DataError: NaN, no rows, or different lengths.

    Source:
        Geifman, El-Yaniv 2017, arXiv:1705.08500.

    Example:
        >>> score, wrong = torch.tensor([0.1, 0.4, 0.6, 0.9]), torch.tensor([0, 1, 0, 0])
        >>> risk_at_coverage(score, wrong, coverage=0.5)
        tensor(0.5000)
    """
    check_share("coverage", coverage)
    return _as(risk_at_coverage_of(_groups(uncertainty, loss), coverage), uncertainty)


def coverage_at_risk(uncertainty: Tensor, loss: Tensor, *, risk: float) -> Tensor:
    """The largest share of rows that one threshold can answer with a mean loss of at most ``risk``.

    A threshold answers all rows of equal uncertainty or none of them.

    Args:
        uncertainty: ``(N,)``, larger where the row is less certain.
        loss: ``(N,)``, 1 for a wrong row and 0 for a right one, or any loss.
        risk: >= 0, in the loss's unit.

    Returns:
        A scalar in [0, 1]; 0 where no threshold is good enough.

    Raises:
        RecipeError: ``risk`` is negative.
        DataError: NaN, no rows, or different lengths.

    Source:
        Geifman, El-Yaniv 2017, arXiv:1705.08500.

    Example:
        >>> score, wrong = torch.tensor([0.1, 0.4, 0.6, 0.9]), torch.tensor([0, 0, 1, 0])
        >>> coverage_at_risk(score, wrong, risk=0.25), coverage_at_risk(score, wrong, risk=0.1)
        (tensor(1.), tensor(0.5000))
    """
    check_risk(risk)
    return _as(coverage_at_risk_of(_groups(uncertainty, loss), risk), uncertainty)


def curve_of(groups: RankGroups) -> RiskCoverage:
    """:func:`risk_coverage_curve` of groups, in float64."""
    rows = check_any(groups)
    answered = groups.rows.cumsum(0)
    return RiskCoverage(answered / rows, groups.mark.cumsum(0) / answered, groups.score)


def aurc_of(groups: RankGroups) -> Tensor:
    """:func:`aurc` of groups, in float64; ties in expectation over their order, in closed form."""
    rows = check_any(groups)
    before, lost = _before(groups.rows), _before(groups.mark)
    each = groups.mark / groups.rows
    # The j-th row of a group adds (lost + j * each) / (before + j).
    harmonic = harmonic_between(before, before + groups.rows)
    return (each * groups.rows + (lost - each * before) * harmonic).sum() / rows


def augrc_of(groups: RankGroups) -> Tensor:
    """:func:`augrc` of groups, in float64."""
    rows = check_any(groups)
    middle = _before(groups.mark) + groups.mark / 2
    return (middle * groups.rows).sum() / rows.square()


def best_aurc_of(groups: RankGroups) -> Tensor:
    """The area of the best order of the same rows, for losses of 0 and 1, in float64."""
    wrong = groups.mark.sum()
    both = torch.stack([check_any(groups) - wrong, wrong])
    best = RankGroups(both, both, torch.stack([torch.zeros_like(wrong), wrong]))
    kept = both > 0
    return aurc_of(RankGroups(*(part[kept] for part in best)))


def risk_at_coverage_of(groups: RankGroups, coverage: float) -> Tensor:
    """:func:`risk_at_coverage` of groups, in float64; part of a group brings its mean loss."""
    rows = check_any(groups)
    # Less a rounding error: 0.7 * 10 is a little more than 7.
    wanted = (coverage * rows * (1 - _ROUNDING)).ceil().clamp(min=1)
    before = _before(groups.rows)
    taken = (wanted - before).clamp(min=0).minimum(groups.rows)
    return (taken * groups.mark / groups.rows).sum() / wanted


def coverage_at_risk_of(groups: RankGroups, risk: float) -> Tensor:
    """:func:`coverage_at_risk` of groups, in float64."""
    coverage, risks, _ = curve_of(groups)
    # Less a rounding error of the sums: a risk of exactly 0.05 meets 0.05.
    good = risks <= risk * (1 + _ROUNDING)
    return torch.where(good, coverage, torch.zeros_like(coverage)).amax()


def most_coverage_at_risk_of(groups: RankGroups, risk: float) -> Tensor:
    """The most that :func:`coverage_at_risk` can be for any order within the groups, in float64.

    For losses of 0 and 1: the right rows of a group first, then as many wrong ones as can be borne.
    """
    rows = check_any(groups)
    lost, right = _before(groups.mark), groups.rows - groups.mark
    answered = _before(groups.rows) + right
    spare = risk * answered * (1 + _ROUNDING) - lost
    wrong = (spare / max(1 - risk, _ROUNDING)).floor().clamp(min=0).minimum(groups.mark)
    coverage = torch.where(spare >= 0, answered + wrong, torch.zeros_like(answered)) / rows
    return coverage.amax()


def check_share(name: str, value: float) -> None:
    """Refuse what is no share.

    Raises:
        RecipeError: it is not in (0, 1].
    """
    if isinstance(value, bool) or not 0 < value <= 1:
        raise RecipeError(f"{name} must be in (0, 1], got {value}; 0.8 is four rows of five.")


def check_risk(value: float) -> None:
    """Refuse what is no risk.

    Raises:
        RecipeError: it is negative or NaN.
    """
    if isinstance(value, bool) or not value >= 0:
        raise RecipeError(f"risk must be >= 0, got {value}; 0.05 is one error in twenty answers.")


def _groups(uncertainty: Tensor, loss: Tensor) -> RankGroups:
    uncertainty = check_scores("uncertainty", uncertainty)
    return tie_groups(uncertainty, check_scores("loss", loss, rows=len(uncertainty)))


def _before(each: Tensor) -> Tensor:
    return each.cumsum(0) - each


def _as(value: Tensor, like: Tensor) -> Tensor:
    return value.to(torch.promote_types(like.dtype, torch.float32))
