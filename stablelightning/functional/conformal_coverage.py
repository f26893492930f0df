"""How far the coverage of conformal sets may stray from its level by the luck of the draw."""

import torch
from torch import Tensor

from stablelightning.errors import DataError, RecipeError
from stablelightning.functional.conformal import conformal_rank


def coverage_distribution(calibration_rows: int, rows: int, alpha: float) -> Tensor:
    """How probable each number of held targets is among new rows: a beta-binomial distribution.

    Exact for scores without ties, also where calibration and new rows are one random split of a
    fixed set; ties only raise the coverage.

    Args:
        calibration_rows: n, at least ``1 / alpha``.
        rows: new rows m, >= 1.
        alpha: in (0, 1).

    Returns:
        ``(m + 1,)`` float64 probabilities of 0 to m held targets, with the parameters ``k`` and
        ``n + 1 - k``, k being
        :func:`~stablelightning.functional.conformal.conformal_rank`.

    Raises:
        RecipeError: ``alpha`` is not in (0, 1).
        DataError: too few rows.

    Source:
        Vovk 2012, arXiv:1209.2673; Angelopoulos, Bates 2021, arXiv:2107.07511, section 3.2.

    Example:
        >>> coverage_distribution(9, 2, alpha=0.5)  # uniform on the ranks: 5 of 10 gaps are below
        tensor([0.2727, 0.4545, 0.2727], dtype=torch.float64)
    """
    if rows < 1:
        raise DataError(f"coverage is that of one new row or more, got {rows}; give their number.")
    rank = conformal_rank(calibration_rows, alpha)
    held = torch.arange(rows + 1, dtype=torch.float64)
    below, above = torch.tensor([float(rank), calibration_rows + 1.0 - rank]).double()
    log_ways = _log_choose(held, rows - held)
    return (log_ways + _log_beta(held + below, rows - held + above) - _log_beta(below, above)).exp()


def coverage_band(
    calibration_rows: int, rows: int, alpha: float, *, probability: float = 0.95
) -> tuple[float, float]:
    """Between which shares of held targets the coverage on new rows lies this probably.

    Args:
        calibration_rows: n, at least ``1 / alpha``.
        rows: new rows, >= 1.
        alpha: in (0, 1).
        probability: of the band, in (0, 1); at most half of the rest lies on either side.

    Returns:
        The lowest and the highest share, in [0, 1].

    Raises:
        RecipeError: ``alpha`` or ``probability`` is not in (0, 1).
        DataError: too few rows.

    Source:
        As :func:`coverage_distribution`.

    Example:
        >>> coverage_band(1000, 1000, 0.1)
        (0.873, 0.925)
    """
    if not 0 < probability < 1:
        raise RecipeError(f"probability must be in (0, 1), got {probability}; 0.95 is usual.")
    up_to = coverage_distribution(calibration_rows, rows, alpha).cumsum(0)
    tail = (1 - probability) / 2
    low = int((up_to <= tail).sum())
    high = int((up_to < 1 - tail).sum())
    return low / rows, min(high, rows) / rows


def _log_beta(a: Tensor, b: Tensor) -> Tensor:
    return torch.lgamma(a) + torch.lgamma(b) - torch.lgamma(a + b)


def _log_choose(chosen: Tensor, others: Tensor) -> Tensor:
    return torch.lgamma(chosen + others + 1) - torch.lgamma(chosen + 1) - torch.lgamma(others + 1)
