"""Rows in the order of a score, as groups of equal score: what every rank statistic is made of.

A group is either one value that occurs, which makes the statistics exact, or one bin of a histogram
of fixed size, which makes them constant in memory. Rows of a group count in every order with equal
weight, so that no result depends on the order in which rows came.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from stablelightning.errors import DataError

#: A score keeps so many binary digits behind its first one in a histogram: two scores that differ
#: by more than a thousandth of themselves are never in one bin.
_DIGITS = 10

#: Scores nearer to zero than 2^_LEAST count as zero, and those beyond 2^_MOST as this far: from a
#: ten-billionth to four billion, in whatever unit.
_LEAST, _MOST = -32, 32

_SIDE = (_MOST - _LEAST) << _DIGITS

#: Bins of the histogram, negative and positive scores together.
BINS = 2 * _SIDE


class RankGroups(NamedTuple):
    """Groups of equal score, the smallest score first.

    Attributes:
        score: ``(G,)``, ascending.
        rows: ``(G,)`` float64, how many there are in the group.
        mark: ``(G,)`` float64, the sum over its rows of what is looked at: losses, or 1 for each
            row of one kind.
    """

    score: Tensor
    rows: Tensor
    mark: Tensor


def tie_groups(score: Tensor, mark: Tensor) -> RankGroups:
    """One group for every score that occurs: exact.

    Args:
        score: ``(N,)``.
        mark: ``(N,)``, losses or booleans.

    Example:
        >>> groups = tie_groups(torch.tensor([2.0, 1.0, 2.0]), torch.tensor([1, 0, 0]))
        >>> groups.score.tolist(), groups.rows.tolist(), groups.mark.tolist()
        ([1.0, 2.0], [1.0, 2.0], [0.0, 1.0])
    """
    values, index, count = score.unique(return_inverse=True, return_counts=True)
    marks = torch.zeros(len(values), dtype=torch.float64, device=score.device)
    return RankGroups(values, count.double(), marks.index_add_(0, index, mark.double()))


def histogram_index(score: Tensor) -> Tensor:
    """The bin of each score: bins become wider in proportion to the score, so any unit will do.

    Args:
        score: ``(N,)``, no NaN.

    Returns:
        ``(N,)`` int64 in [0, :data:`BINS`), never decreasing with the score.

    Example:
        >>> a, b, c = histogram_index(torch.tensor([-1.0, 1.0, 1.002])).tolist()
        >>> a < b < c
        True
    """
    fraction, exponent = torch.frexp(score.abs())  # a fraction in [0.5, 1), or 0
    digits = ((fraction - 0.5) * 2 ** (_DIGITS + 1)).nan_to_num(posinf=0.0).long()
    place = ((exponent.long() - 1 - _LEAST) << _DIGITS) + digits
    zero, huge = score.abs() < 2.0**_LEAST, score.abs() >= 2.0**_MOST
    place = place.masked_fill(zero, 0).masked_fill(huge, _SIDE - 1)
    return torch.where((score < 0) & ~zero, _SIDE - 1 - place, _SIDE + place)


def histogram_groups(count: Tensor, mark: Tensor) -> RankGroups:
    """The bins of a histogram that are not empty.

    Args:
        count: ``(BINS,)`` rows in each bin of :func:`histogram_index`.
        mark: ``(BINS,)`` sum of their marks.

    Returns:
        The groups; ``score`` is the end of each bin that is nearer to zero.

    Example:
        >>> histogram = torch.zeros(BINS, dtype=torch.float64)
        >>> histogram[histogram_index(torch.tensor([0.75]))] = 4
        >>> histogram_groups(histogram, histogram).score
        tensor([0.7500])
    """
    bins = count.nonzero().squeeze(1)
    place = torch.where(bins < _SIDE, _SIDE - 1 - bins, bins - _SIDE)
    fraction = 1 + (place % (1 << _DIGITS)).float() / (1 << _DIGITS)
    size = torch.ldexp(fraction, (place >> _DIGITS) + _LEAST)
    size = size.masked_fill(bins == _SIDE, 0.0)
    return RankGroups(
        torch.where(bins < _SIDE, -size, size), count[bins].double(), mark[bins].double()
    )


def marked_last(groups: RankGroups) -> RankGroups:
    """The order within each group that puts its marked rows last: one end of what it can be.

    Args:
        groups: with marks of 0 or 1 per row.

    Example:
        >>> groups = tie_groups(torch.tensor([1.0, 1.0, 1.0]), torch.tensor([1, 0, 0]))
        >>> marked_last(groups).mark.tolist(), marked_last(groups).rows.tolist()
        ([0.0, 1.0], [2.0, 1.0])
    """
    return _ordered(groups, torch.stack([groups.rows - groups.mark, groups.mark], 1), 1)


def marked_first(groups: RankGroups) -> RankGroups:
    """The order within each group that puts its marked rows first: the other end.

    Args:
        groups: with marks of 0 or 1 per row.

    Example:
        >>> groups = tie_groups(torch.tensor([1.0, 1.0, 1.0]), torch.tensor([1, 0, 0]))
        >>> marked_first(groups).mark.tolist(), marked_first(groups).rows.tolist()
        ([1.0, 0.0], [1.0, 2.0])
    """
    return _ordered(groups, torch.stack([groups.mark, groups.rows - groups.mark], 1), 0)


def reversed_groups(groups: RankGroups) -> RankGroups:
    """The largest score first, as if all scores had the other sign."""
    score, rows, mark = (part.flip(0) for part in groups)
    return RankGroups(-score, rows, mark)


def check_both_kinds(groups: RankGroups) -> tuple[Tensor, Tensor]:
    """The numbers of marked and of other rows, which must both be positive.

    Raises:
        DataError: one of them is 0.
    """
    marked = groups.mark.sum()
    others = groups.rows.sum() - marked
    if not bool((marked > 0) & (others > 0)):
        raise DataError(
            f"rows of both kinds are needed, got {int(others)} in and {int(marked)} out of "
            "distribution; pass the scores of both data sets."
        )
    return marked, others


def check_any(groups: RankGroups) -> Tensor:
    """The number of rows, which must be positive.

    Raises:
        DataError: there are none.
    """
    if len(groups.rows) == 0:
        raise DataError("at least one row is needed, got none; look at what was selected.")
    return groups.rows.sum()


def harmonic_between(start: Tensor, end: Tensor) -> Tensor:
    """Sum of 1/i over the whole numbers i with start < i <= end.

    Args:
        start: any shape, float64, >= 0.
        end: the same shape, >= start.

    Example:
        >>> harmonic_between(torch.tensor([0.0, 2.0]), torch.tensor([2.0, 3.0]))
        tensor([1.5000, 0.3333])
    """
    total: Tensor = torch.special.digamma(end + 1) - torch.special.digamma(start + 1)
    return total


def _ordered(groups: RankGroups, counts: Tensor, marked: int) -> RankGroups:
    marks = torch.zeros_like(counts)
    marks[:, marked] = groups.mark
    kept = counts > 0
    return RankGroups(groups.score[:, None].expand_as(counts)[kept], counts[kept], marks[kept])
