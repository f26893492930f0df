"""How well a score tells rows that the model was made for from rows of something else.

A score is any number that is larger for what looks strange: an entropy, a mutual information, an
energy, or one minus the largest probability. Rows of equal score count half, as usual.
"""

import torch
from torch import Tensor

from stablelightning.errors import RecipeError
from stablelightning.functional.checked import check_scores
from stablelightning.functional.rank_groups import (
    RankGroups,
    check_both_kinds,
    harmonic_between,
    reversed_groups,
    tie_groups,
)
from stablelightning.functional.scores import at_least_single
from stablelightning.functional.selective import check_share

#: A share that is missed by this part of it is met: 0.95 * 20 may be a little more than 19.
_ROUNDING = 1e-12


def energy_score(logits: Tensor, *, temperature: float = 1.0, dim: int = 1) -> Tensor:
    """Free energy of each row: minus the soft maximum of its logits.

    Args:
        logits: ``(N, C, ...)`` with the classes on ``dim``; logits, since a softmax has lost what
            is asked for here.
        temperature: > 0.
        dim: dimension of the classes.

    Returns:
        ``(N, ...)``, in the logits' unit; larger where the row looks less like the training data.

    Raises:
        RecipeError: ``temperature`` is not positive.

    Source:
        Liu et al. 2020, arXiv:2010.03759, equation 4.

    Example:
        >>> energy_score(torch.tensor([[9.0, 0.0], [0.0, 0.0]]))
        tensor([-9.0001, -0.6931])
    """
    if isinstance(temperature, bool) or not temperature > 0:
        raise RecipeError(f"temperature must be > 0, got {temperature}; 1 is the usual choice.")
    scaled = at_least_single(logits) / temperature
    energy: Tensor = -temperature * scaled.logsumexp(dim)
    return energy


def ood_auroc(score: Tensor, out: Tensor) -> Tensor:
    """Probability that a row out of distribution has a larger score than one in distribution.

    Args:
        score: ``(N,)``, larger for what looks strange; any range (torchmetrics' AUROC would send
            what is not in [0, 1] through a sigmoid, where large scores become equal).
        out: ``(N,)``, 1 or ``True`` for rows out of distribution.

    Returns:
        A scalar in [0, 1]; 0.5 is a guess.

    Raises:
        DataError: NaN, different lengths, or rows of one kind only.

    Source:
        Hendrycks, Gimpel 2017, arXiv:1610.02136; Hanley, McNeil 1982 (the area as a probability).

    Example:
        >>> ood_auroc(torch.tensor([0.1, 0.4, 0.3, 0.9]), torch.tensor([0, 0, 1, 1]))
        tensor(0.7500)
    """
    return _as(auroc_of(_groups(score, out)), score)


def ood_aupr_out(score: Tensor, out: Tensor) -> Tensor:
    """Average precision in finding the rows *out of* distribution, the largest score first.

    Args:
        score: ``(N,)``, larger for what looks strange.
        out: ``(N,)``, 1 or ``True`` for rows out of distribution.

    Returns:
        A scalar in [0, 1]; a guess reaches the share of rows out of distribution.

    Raises:
        DataError: NaN, different lengths, or rows of one kind only.

    Source:
        Hendrycks, Gimpel 2017, arXiv:1610.02136; the step sum, not the trapezoid, after Davis,
        Goadrich 2006, "The relationship between precision-recall and ROC curves".

    Example:
        >>> ood_aupr_out(torch.tensor([0.1, 0.4, 0.3, 0.9]), torch.tensor([0, 0, 1, 1]))
        tensor(0.8333)
    """
    return _as(aupr_out_of(_groups(score, out)), score)


def ood_aupr_in(score: Tensor, out: Tensor) -> Tensor:
    """Average precision in finding the rows *in* distribution, the smallest score first.

    Args:
        score: ``(N,)``, larger for what looks strange.
        out: ``(N,)``, 1 or ``True`` for rows out of distribution.

    Returns:
        A scalar in [0, 1]; a guess reaches the share of rows in distribution.

    Raises:
        DataError: NaN, different lengths, or rows of one kind only.

    Source:
        As :func:`ood_aupr_out`.

    Example:
        >>> ood_aupr_in(torch.tensor([0.1, 0.4, 0.3, 0.9]), torch.tensor([0, 0, 1, 1]))
        tensor(0.8333)
    """
    return _as(aupr_in_of(_groups(score, out)), score)


def false_positive_rate(score: Tensor, out: Tensor, *, recall: float = 0.95) -> Tensor:
    """Share of rows out of distribution that pass for known ones when most known rows must pass.

    The threshold is the smallest score that lets at least ``recall`` of the rows in distribution
    pass. In distribution is the positive kind here, as in the papers; for the other reading, call
    it with ``-score`` and ``~out``.

    Args:
        score: ``(N,)``, larger for what looks strange.
        out: ``(N,)``, 1 or ``True`` for rows out of distribution.
        recall: share of rows in distribution that must pass, in (0, 1].

    Returns:
        A scalar in [0, 1]; smaller is better.

    Raises:
        RecipeError: ``recall`` is not in (0, 1].
        DataError: NaN, different lengths, or rows of one kind only.

    Source:
        Liang, Li, Srikant 2018, arXiv:1706.02690, section 4.3 (FPR at 95% TPR).

    Example:
        >>> false_positive_rate(torch.tensor([0.1, 0.4, 0.3, 0.9]), torch.tensor([0, 0, 1, 1]))
        tensor(0.5000)
    """
    check_share("recall", recall)
    return _as(false_positive_rate_of(_groups(score, out), recall), score)


def auroc_of(groups: RankGroups) -> Tensor:
    """:func:`ood_auroc` of groups, in float64."""
    out, known = check_both_kinds(groups)
    inside = groups.rows - groups.mark
    below = inside.cumsum(0) - inside
    return (groups.mark * (below + inside / 2)).sum() / (out * known)


def aupr_out_of(groups: RankGroups) -> Tensor:
    """:func:`ood_aupr_out` of groups, in float64."""
    out, _ = check_both_kinds(groups)
    groups = reversed_groups(groups)
    precision = groups.mark.cumsum(0) / groups.rows.cumsum(0)
    return (precision * groups.mark).sum() / out


def least_aupr_out_of(groups: RankGroups) -> Tensor:
    """The least that :func:`ood_aupr_out` can be for any order within the groups, in float64."""
    out, _ = check_both_kinds(groups)
    groups = reversed_groups(groups)
    found = groups.mark.cumsum(0) - groups.mark
    others = (groups.rows - groups.mark).cumsum(0)
    # The others first, then the j-th row that is looked for at (found + j) / (found + j + others).
    harmonic = harmonic_between(found + others, found + others + groups.mark)
    return (groups.mark - others * harmonic).sum() / out


def aupr_in_of(groups: RankGroups) -> Tensor:
    """:func:`ood_aupr_in` of groups, in float64."""
    return aupr_out_of(swapped_kinds(groups))


def false_positive_rate_of(groups: RankGroups, recall: float) -> Tensor:
    """:func:`false_positive_rate` of groups, in float64."""
    out, known = check_both_kinds(groups)
    passed = (groups.rows - groups.mark).cumsum(0)
    enough = passed >= recall * known * (1 - _ROUNDING)
    return groups.mark.cumsum(0)[enough][0] / out


def swapped_kinds(groups: RankGroups) -> RankGroups:
    """The same rows with the scores' sign and the two kinds exchanged."""
    return reversed_groups(groups._replace(mark=groups.rows - groups.mark))


def _groups(score: Tensor, out: Tensor) -> RankGroups:
    score = check_scores("score", score)
    return tie_groups(score, check_scores("out", out, rows=len(score)) > 0)


def _as(value: Tensor, like: Tensor) -> Tensor:
    return value.to(torch.promote_types(like.dtype, torch.float32))
