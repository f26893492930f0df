"""What an activation function is like, asked of its values: names say nothing of a user's own."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from stablelightning.functional.depth import variance_map
from stablelightning.functional.quadrature import (
    REACH,
    Scalar,
    derivative,
    evaluate,
    gaussian_expectation,
    resolve,
)

#: Within four standard deviations a function that saturates has reached most of its bound (softsign
#: 0.8, arctan 0.84); ReLU6, a ReLU to any signal of unit variance, two thirds.
_WITHIN, _MOST_OF_BOUND = 4.0, 0.75
#: Beyond the first, a bounded function is where it goes; a logarithm grows on to the second.
_FAR, _FARTHEST = 1e4, 1e12
#: What still counts as growth between the two.
_GROWTH = 1.01
#: Distance from (mean 0, mean square 1) at which a function still has its fixed point there.
_FIXED = 1e-3
#: Step of the slope of the variance map at 1.
_STEP = 1e-2
#: How far f(x) - f(-x) may be from a multiple of x, as a share of it.
_PROPORTIONAL = 1e-6


@dataclass(frozen=True)
class Properties:
    """What matters of a scalar function for the weights before it.

    Args:
        at_zero: ``f(0)``; a function through the origin keeps a centred signal centred.
        slope_at_zero: ``f'(0)``, by autograd.
        mean: ``E[f(z)]`` for standard normal ``z``.
        mean_square: ``E[f(z)^2]``.
        mean_square_slope: ``E[f'(z)^2]``.
        variance_slope: derivative of :func:`~stablelightning.functional.depth.variance_map`,
            normalised to pass through (1, 1), at 1. Above 1 an exact gain is an unstable fixed
            point: a deviation grows from layer to layer.
        bounded: values stay within a bound that a signal of unit variance meets.
        self_normalizing: mean 0 and mean square 1 reproduce themselves, and attract.
        mirror_slope: ``s`` where ``f(x) - f(-x) = s x`` for all ``x`` (ReLU, leaky ReLU, GELU,
            SiLU, hardswish), else ``None``.
    """

    at_zero: float
    slope_at_zero: float
    mean: float
    mean_square: float
    mean_square_slope: float
    variance_slope: float
    bounded: bool
    self_normalizing: bool
    mirror_slope: float | None

    @property
    def forward_gain(self) -> float:
        """``1 / sqrt(E[f(z)^2])``; infinite for a function that is zero."""
        return 1 / math.sqrt(self.mean_square) if self.mean_square > 0 else math.inf

    @property
    def backward_gain(self) -> float:
        """``1 / sqrt(E[f'(z)^2])``; infinite for a function that is flat."""
        return 1 / math.sqrt(self.mean_square_slope) if self.mean_square_slope > 0 else math.inf


def properties_of(function: Scalar) -> Properties:
    """Find the properties of any scalar function from its values and slopes.

    Args:
        function: elementwise and deterministic; takes float64.

    Raises:
        ModelError: the function is not elementwise and deterministic.

    Source:
        Klambauer et al. 2017, arXiv:1706.02515 (self-normalizing); Balduzzi et al. 2017,
        arXiv:1702.08591 (mirrored weights).

    Example:
        >>> properties_of(torch.tanh).bounded, properties_of(torch.relu).mirror_slope
        (True, 1.0)
        >>> properties_of(torch.nn.functional.selu).self_normalizing
        True
    """
    panels = resolve(function)
    zero = torch.zeros(1, dtype=torch.float64, device="cpu")
    mean = gaussian_expectation(function, panels=panels)
    square = gaussian_expectation(lambda x: function(x).square(), panels=panels)
    slope = gaussian_expectation(lambda x: derivative(function, x).square(), panels=panels)
    growth = _variance_slope(function, square)
    fixed = abs(mean) < _FIXED and abs(square - 1) < _FIXED
    return Properties(
        at_zero=float(evaluate(function, zero)),
        slope_at_zero=float(derivative(function, zero)),
        mean=mean,
        mean_square=square,
        mean_square_slope=slope,
        variance_slope=growth,
        bounded=_is_bounded(function),
        self_normalizing=fixed and growth < 1 - _FIXED,
        mirror_slope=_mirror_slope(function),
    )


def _variance_slope(function: Scalar, square: float) -> float:
    if not (math.isfinite(square) and square > 0):
        return math.nan
    above, below = (variance_map(function, 1 + step) for step in (_STEP, -_STEP))
    return (above - below) / (2 * _STEP * square)


def _is_bounded(function: Scalar) -> bool:
    near = _largest(function, torch.linspace(0, _WITHIN, 401, dtype=torch.float64, device="cpu"))
    far = _largest(function, _logarithmic(_FAR))
    farthest = _largest(function, _logarithmic(_FARTHEST))
    return far > 0 and farthest <= _GROWTH * far and near >= _MOST_OF_BOUND * far


def _logarithmic(end: float) -> Tensor:
    return torch.logspace(-2, math.log10(end), 500, dtype=torch.float64, device="cpu")


def _largest(function: Scalar, x: Tensor) -> float:
    values = evaluate(function, torch.cat([-x, x])).abs()
    return float(torch.where(values.isnan(), math.inf, values).max())


def _mirror_slope(function: Scalar) -> float | None:
    x = torch.linspace(REACH / 97, REACH, 97, dtype=torch.float64, device="cpu")
    slopes = (evaluate(function, x) - evaluate(function, -x)) / x
    slope = float(slopes.mean())
    spread = float((slopes - slope).abs().max())
    return slope if slope != 0 and spread <= _PROPORTIONAL * abs(slope) else None
