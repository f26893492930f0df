"""Discriminative learning rates: how fast each depth of a network learns against its output."""

import math

from stablelightning.checks import check_whole
from stablelightning.errors import RecipeError
from stablelightning.functional.schedules import check_positive, check_share


def decayed_factors(groups: int, decay: float) -> list[float]:
    r"""Rates that fall by one factor for each group from the output, as shares of the output's.

    The group that is :math:`k` groups below the output learns at :math:`\eta \xi^k`.

    Args:
        groups: how many there are, >= 1.
        decay: the factor :math:`\xi`, in (0, 1]; 0.65 to 0.9 is usual, less for few groups.

    Returns:
        One factor in (0, 1] for each group, from input to output; the last is 1.

    Raises:
        RecipeError: a setting is out of its range.

    Source:
        Howard, Ruder 2018, arXiv:1801.06146, section 3.2 (:math:`\xi` = 1/2.6); Clark et al. 2020,
        arXiv:2003.10555, appendix B.

    Example:
        >>> decayed_factors(3, 0.5)
        [0.25, 0.5, 1.0]
    """
    check_whole("groups", groups, least=1)
    check_positive("layer_decay", decay)
    check_share("layer_decay", decay)
    return [float(decay) ** (groups - 1 - place) for place in range(groups)]


def sliced_rates(groups: int, lowest: float, highest: float) -> list[float]:
    """Rates from ``lowest`` at the input to ``highest`` at the output, by equal factors.

    Args:
        groups: how many there are, >= 1; a single one gets ``highest``.
        lowest: rate of the first group, > 0.
        highest: rate of the last group, >= ``lowest``.

    Returns:
        One rate for each group, from input to output.

    Raises:
        RecipeError: a setting is out of its range.

    Source:
        Howard, Ruder 2018, arXiv:1801.06146, section 3.2; the slice of rates is an idea of fastai's
        (Howard, Gugger 2020, arXiv:2002.04688).

    Example:
        >>> [round(rate, 9) for rate in sliced_rates(3, 1e-5, 1e-3)]
        [1e-05, 0.0001, 0.001]
    """
    check_whole("groups", groups, least=1)
    if not _is_positive(lowest) or not _is_positive(highest) or lowest > highest:
        raise RecipeError(
            "rates must be two finite numbers > 0, that of the input first and not above that of "
            f"the output, got {lowest!r} and {highest!r}; such as 1e-5 and 1e-3."
        )
    if groups == 1:
        return [float(highest)]
    steps = groups - 1
    ratio = math.log(highest / lowest)
    between = [lowest * math.exp(ratio * place / steps) for place in range(1, steps)]
    return [float(lowest), *between, float(highest)]


def _is_positive(value: object) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and 0 < value < math.inf  # type: ignore[operator]
