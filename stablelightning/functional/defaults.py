"""Whether numbers look as they were drawn: support, moments, distribution, and the grid.

torch draws float32 uniform numbers from 2^24 integers. What was drawn lies on that grid still; one
step of an optimizer takes it off, long before any moment shows it.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

#: Chance that a tensor fresh from torch fails its tests, all of them together.
FALSE_ALARM = 1e-6
_TESTS = 5  # spread, mean, mean square, distribution, extremes: each gets its share of it
_EACH = FALSE_ALARM / _TESTS
#: Two-sided quantile of the normal distribution for that share.
_DEVIATIONS = 5.2
#: Moments are normal enough from here on; below, the distribution's test is exact anyway.
_FOR_MOMENTS = 100
#: Fewer numbers say too little by their distribution alone.
_FOR_DISTRIBUTION = 64
#: Of larger tensors every k-th number is looked at; of its distribution, fewer still.
_MOST, _MOST_SORTED = 2**20, 2**17
#: Chance agreements that are believed: one in 2^10.
_ENOUGH_BITS = 10.0
#: No number says more than it has bits.
_MOST_BITS = 24.0
#: Error of a place on the grid, which has numbers up to 2^25, in float64.
_FLOAT64_ERROR = 1e-7
#: Devices whose uniform numbers are known to lie on the grid.
_ON_GRID = ("cpu", "cuda")


@dataclass(frozen=True)
class Evidence:
    """What the tests say of a tensor.

    Args:
        against: what contradicts the draw, in words; ``None`` if nothing does.
        bits: how much speaks for it, as the logarithm of the odds of chance agreement; the bits of
            tensors of one layer add up.
    """

    against: str | None
    bits: float

    @property
    def enough(self) -> bool:
        """Whether what speaks for it is more than chance."""
        return self.bits >= _ENOUGH_BITS


def uniform_evidence(values: Tensor, bound: float) -> Evidence:
    """Whether numbers look as drawn between ``-bound`` and ``bound``, and untouched since.

    Tested are the support, the largest number, mean and mean square (from 100 numbers on), the
    distribution by the inequality of Dvoretzky, Kiefer and Wolfowitz (exact for any number), and,
    in float32, the grid of the generator. A fresh tensor fails with a chance of at most 1e-6.

    Args:
        values: any shape, floating point; not changed.
        bound: > 0.

    Source:
        Massart 1990 (the inequality's constant); the grid by derivation from 24-bit integers.

    Example:
        >>> fresh = torch.empty(300).uniform_(-0.5, 0.5)
        >>> uniform_evidence(fresh, 0.5).enough, uniform_evidence(fresh + 1e-5, 0.5).against
        (True, 'it was moved since it was drawn')
    """
    n, slack = values.numel(), _slack(values)
    if not n:
        return Evidence(None, 0.0)
    largest = float(values.detach().abs().max()) / bound
    if not largest <= 1 + slack:
        return Evidence("it reaches beyond the default's bounds", 0.0)
    kept = _some(values)
    x = kept.double() / bound
    if n > 1 and bool((x == x[0]).all()):
        return Evidence("all its values are equal", 0.0)
    if largest < _EACH ** (1 / n) * (1 - slack):
        return Evidence("it stays far inside the default's bounds", 0.0)
    if _differs((x + 1) / 2, slack) or _moments_differ(x, 1 / 3, 4 / 45, slack):
        return Evidence("it is distributed unlike the default", 0.0)
    if values.dtype == torch.float32 and values.device.type in _ON_GRID:
        return _grid_evidence(kept, bound)
    return Evidence(None, _bits_of_distribution(n))


def normal_evidence(values: Tensor, std: float = 1.0) -> Evidence:
    """Whether numbers look as drawn from a normal distribution of mean 0.

    Normal draws lie on no grid: what was moved by a hundredth still looks fresh, and needs the
    testimony of other tensors.

    Args:
        values: any shape, floating point; not changed.
        std: of the distribution, > 0.

    Example:
        >>> normal_evidence(torch.randn(999)).against, normal_evidence(torch.rand(999)).against
        (None, 'it is distributed unlike the default')
    """
    x = _some(values).double() / std
    n, slack = x.numel(), _slack(values)
    if not n:
        return Evidence(None, 0.0)
    beyond = float(torch.special.erfc(x.abs().max() / math.sqrt(2)))
    if not n * beyond >= _EACH:
        return Evidence("it reaches beyond what the default's distribution allows", 0.0)
    if _differs(torch.special.ndtr(x), slack) or _moments_differ(x, 1.0, 2.0, slack):
        return Evidence("it is distributed unlike the default", 0.0)
    if n > 1 and bool((x == x[0]).all()):
        return Evidence("all its values are equal", 0.0)
    return Evidence(None, _bits_of_distribution(n))


def constant_evidence(values: Tensor, value: float) -> Evidence:
    """Whether all numbers are one value, to the bit.

    Args:
        values: any shape; not changed.
        value: what they should be, rounded to their dtype.

    Example:
        >>> constant_evidence(torch.ones(3), 1.0).against is None
        True
    """
    exact = torch.tensor(value, dtype=values.dtype, device=values.device)
    cast = exact.float().to(values.dtype)  # a float64 tensor may have been cast from float32
    same = bool(((values == exact) | (values == cast)).all())
    return Evidence(None, _MOST_BITS) if same else Evidence("it is not all at its default", 0.0)


# ---- by distribution --------------------------------------------------------------------------


def _some(values: Tensor) -> Tensor:
    flat = values.detach().flatten()
    return flat[:: _step(flat.numel(), _MOST)]


def _step(number: int, most: int) -> int:
    """Odd, so that it does not fall in step with the rows of a matrix."""
    return 1 if number <= most else number // most | 1


def _slack(values: Tensor) -> float:
    """What rounding may do: narrow dtypes draw from few values, and lose the last bits in casts."""
    # At least those of float32: a float64 tensor may have been cast from it.
    return 2 * max(torch.finfo(values.dtype).eps, torch.finfo(torch.float32).eps)


def _differs(probabilities: Tensor, slack: float) -> bool:
    """Whether probability-integral transforms are further from uniform than chance allows."""
    probabilities = probabilities[:: _step(probabilities.numel(), _MOST_SORTED)]
    n = probabilities.numel()
    ranks = torch.arange(n, dtype=torch.float64, device=probabilities.device)
    ordered = probabilities.sort().values
    above = float(((ranks + 1) / n - ordered).max())
    below = float((ordered - ranks / n).max())
    return max(above, below) > math.sqrt(math.log(2 / _EACH) / (2 * n)) + slack


def _moments_differ(x: Tensor, square: float, variance: float, slack: float) -> bool:
    """Mean, and mean square, whose terms have the given mean and variance."""
    n = x.numel()
    if n < _FOR_MOMENTS:
        return False
    off_mean = abs(float(x.mean()))
    off_square = abs(float(x.square().mean()) - square)
    return (
        off_mean > _DEVIATIONS * math.sqrt(square / n) + slack
        or off_square > _DEVIATIONS * math.sqrt(variance / n) + 2 * slack
    )


def _bits_of_distribution(n: int) -> float:
    return _ENOUGH_BITS * n / _FOR_DISTRIBUTION


# ---- by the grid ------------------------------------------------------------------------------


def _grid_evidence(values: Tensor, bound: float) -> Evidence:
    """Where the numbers lie relative to the generator's grid.

    A draw is ``u * 2b - b`` with ``u`` a multiple of 2^-24 (on a GPU of 2^-25), rounded once where
    the machine multiplies and adds in one operation, twice where it does not. Numbers near zero
    tell: their own rounding is much finer than the grid.
    """
    x = values.double()
    rounding = _spacing(values)
    best = Evidence("it was moved since it was drawn", 0.0)
    b = torch.tensor(bound, dtype=torch.float32)
    infinity = torch.tensor(math.inf)
    # The bound is computed in Python and may be rounded either way.
    for candidate in (b, torch.nextafter(b, infinity), torch.nextafter(b, -infinity)):
        side = float(candidate)
        for evidence in (_once_rounded(x, rounding, side), _twice_rounded(x, rounding, side)):
            if evidence.enough:
                return evidence
            if evidence.against is None and (best.against or evidence.bits > best.bits):
                best = evidence
    return best


def _once_rounded(x: Tensor, rounding: Tensor, bound: float) -> Evidence:
    step = 2 * bound * 2.0**-25
    place = (x + bound) / step
    tolerance = 0.5 * rounding / step + _FLOAT64_ERROR
    off = (place - place.round()).abs() > tolerance
    return _weighed(2 * tolerance, off)


def _twice_rounded(x: Tensor, rounding: Tensor, bound: float) -> Evidence:
    total = x + bound
    narrow = total.float()
    return _weighed(rounding / _spacing(narrow), narrow.double() != total)


def _weighed(chance: Tensor, off: Tensor) -> Evidence:
    telling = chance <= 0.5
    if bool((off & telling).any()):
        return Evidence("it was moved since it was drawn", 0.0)
    bits = -chance[telling].clamp(min=2.0**-_MOST_BITS).log2()
    return Evidence(None, float(bits.sum()))


def _spacing(values: Tensor) -> Tensor:
    """Distance from each float32 number to the next."""
    size = values.abs()
    return (torch.nextafter(size, torch.full_like(size, math.inf)) - size).double()
