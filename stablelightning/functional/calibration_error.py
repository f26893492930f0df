"""Whether a confidence of 0.8 is right eight times in ten, in bins of equal mass or per class.

The usual error, of the largest probability in bins of equal width, is torchmetrics'
``MulticlassCalibrationError``.
"""

import torch
from torch import Tensor

from stablelightning.checks import check_whole
from stablelightning.errors import DataError
from stablelightning.functional.checked import class_rows
from stablelightning.functional.rank_groups import RankGroups, check_any, tie_groups

#: See :func:`equal_mass_bound_of`: a quarter for each of two bins, and some for the group's width.
_PER_ROW = 0.501


def adaptive_calibration_error(
    probabilities: Tensor, target: Tensor, *, bins: int = 15, dim: int = 1
) -> Tensor:
    """Mean gap of confidence and accuracy over bins that each hold the same number of rows.

    Bins of equal width hold nearly all rows of a sure classifier in the last one. Here a bin ends
    where it is full; a row, or rows of equal confidence, on its end are shared between two.

    Args:
        probabilities: ``(N, C, ...)`` with the classes on ``dim``, or ``(N, ...)`` of labels.
        target: class indices ``(N, ...)``, or 0 and 1 in the shape of the labels.
        bins: >= 1.
        dim: dimension of the classes.

    Returns:
        A scalar in [0, 1].

    Raises:
        DataError: what are no probabilities, targets out of range, or no rows.
        RecipeError: ``bins`` is no positive whole number.

    Source:
        Nguyen, O'Connor 2015, arXiv:1508.05154, section 3.2 (bins of equal mass); Mukhoti et al.
        2020, arXiv:2002.09437 (of the largest probability).

    Example:
        >>> probabilities = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.7, 0.3], [0.8, 0.2]])
        >>> adaptive_calibration_error(probabilities, torch.tensor([0, 1, 0, 0]), bins=2)
        tensor(0.1500)
    """
    check_whole("bins", bins, least=1, hint="15 is usual")
    rows, index = class_rows(probabilities, target, dim=dim)
    confidence, gap = top_gaps(rows, index)
    return equal_mass_error_of(tie_groups(confidence, gap), bins).to(rows.dtype)


def classwise_calibration_error(
    probabilities: Tensor, target: Tensor, *, bins: int = 15, dim: int = 1
) -> Tensor:
    """Mean over the classes of the gap between a class's probability and its frequency.

    The whole row of probabilities is judged, not only its largest entry. Bins are of equal width.

    Args:
        probabilities: ``(N, C, ...)`` with the classes on ``dim``, or ``(N, ...)`` of labels.
        target: class indices ``(N, ...)``, or 0 and 1 in the shape of the labels.
        bins: >= 1.
        dim: dimension of the classes.

    Returns:
        A scalar in [0, 1].

    Raises:
        DataError: what are no probabilities, targets out of range, or no rows.
        RecipeError: ``bins`` is no positive whole number.

    Source:
        Kull et al. 2019, arXiv:1910.12656, equation 4; Nixon et al. 2019, arXiv:1904.01685 (static
        calibration error).

    Example:
        >>> probabilities = torch.tensor([[0.75, 0.25], [0.25, 0.75]])
        >>> classwise_calibration_error(probabilities, torch.tensor([0, 1]))
        tensor(0.2500)
    """
    check_whole("bins", bins, least=1, hint="15 is usual")
    sums = class_bins(probabilities, target, bins=bins, dim=dim)
    return classwise_error_of(sums).to(torch.promote_types(probabilities.dtype, torch.float32))


def top_gaps(rows: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Largest probability of each row, and what it is above 1 if right, above 0 if wrong.

    Args:
        rows: ``(M, C)`` probabilities.
        target: ``(M,)`` class indices.

    Returns:
        ``(M,)`` each; the second is float64.
    """
    confidence, chosen = rows.max(1)
    return confidence, confidence.double() - (chosen == target).double()


def equal_mass_error_of(groups: RankGroups, bins: int) -> Tensor:
    """:func:`adaptive_calibration_error` of groups by confidence with :func:`top_gaps` as marks."""
    rows = check_any(groups)
    count = torch.cat([groups.rows.new_zeros(1), groups.rows.cumsum(0)])
    gap = torch.cat([groups.mark.new_zeros(1), groups.mark.cumsum(0)])
    ends = torch.arange(1, bins + 1, dtype=count.dtype, device=count.device) * rows / bins
    # The group in which each bin ends, and how much of the group lies below that end.
    place = torch.searchsorted(count, ends).clamp(1, len(count) - 1)
    share = (ends - count[place - 1]) / (count[place] - count[place - 1])
    below = gap[place - 1] + share.clamp(max=1) * (gap[place] - gap[place - 1])
    first = below.new_zeros(1)
    return torch.diff(torch.cat([first, below])).abs().sum() / rows


def equal_mass_bound_of(groups: RankGroups, bins: int) -> Tensor:
    """How far :func:`equal_mass_error_of` of a histogram can be from that of the rows themselves.

    Only groups in which a bin ends matter. The gaps of its n rows differ by at most 1 and the
    group's width, so that any k of them sum to within n / 4 of their share, and two bins see it.
    """
    rows = check_any(groups)
    count = groups.rows.cumsum(0)
    ends = torch.arange(1, bins, dtype=count.dtype, device=count.device) * rows / bins
    place = torch.searchsorted(count, ends)
    whole = count[place] == ends
    return _PER_ROW * (groups.rows[place] * ~whole).sum() / rows


def class_bins(probabilities: Tensor, target: Tensor, *, bins: int, dim: int = 1) -> Tensor:
    """Sums per class and bin of equal width, from which binned scores of probabilities come.

    Args:
        probabilities: ``(N, C, ...)`` with the classes on ``dim``, or ``(N, ...)`` of labels.
        target: class indices ``(N, ...)``, or 0 and 1 in the shape of the labels.
        bins: >= 1; a bin holds its upper end.
        dim: dimension of the classes.

    Returns:
        ``(5, C, bins)`` float64: rows, probability, rows of the class, probability squared,
        probability of the rows of the class. Labels are one class: that they are 1.

    Raises:
        DataError: what are no probabilities, or targets out of range.

    Example:
        >>> sums = class_bins(torch.tensor([0.2, 0.9]), torch.tensor([0, 1]), bins=2)
        >>> sums.shape, sums[0].tolist(), sums[2].tolist()
        (torch.Size([5, 1, 2]), [[1.0, 1.0]], [[0.0, 1.0]])
    """
    rows, index = class_rows(probabilities, target, dim=dim)
    sums = _bin_sums(rows, index, bins)
    return sums[:, 1:] if probabilities.shape == target.shape else sums


def _bin_sums(rows: Tensor, target: Tensor, bins: int) -> Tensor:
    classes = rows.shape[1]
    # Rounded in the rows' own precision, where 0.2 * 15 is 3 and no more.
    place = (rows * bins).ceil().long().sub(1).clamp(0, bins - 1)
    place = (place + torch.arange(classes, device=rows.device) * bins).flatten()
    p = rows.double()
    hit = torch.zeros_like(p).scatter_(1, target[:, None], 1.0)
    parts = (torch.ones_like(p), p, hit, p.square(), p * hit)
    sums = torch.zeros(len(parts), classes * bins, dtype=torch.float64, device=rows.device)
    # Not bincount: with weights it has no deterministic kernel on CUDA, index_add_ has one.
    sums.index_add_(1, place, torch.stack([part.flatten() for part in parts]))
    return sums.view(len(parts), classes, bins)


def classwise_error_of(sums: Tensor) -> Tensor:
    """:func:`classwise_calibration_error` of :func:`class_bins`, in float64."""
    count, probability, hits = sums[:3]
    error: Tensor = (probability - hits).abs().sum() / check_count(count)
    return error


def check_count(count: Tensor) -> Tensor:
    """The sum of counts, which must be positive.

    Raises:
        DataError: there are no rows.
    """
    total: Tensor = count.sum()
    if not bool(total > 0):
        raise DataError("at least one row is needed, got none; look at what was selected.")
    return total
