"""Heads: the last layer of a network, where its features become a prediction."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stablelightning.errors import RecipeError
from stablelightning.nn.settings import check_sizes

#: The least variance a head predicts, in squared target units (of a standardised target: a
#: thousandth of its spread). Without it the likelihood of a row fitted exactly grows without bound.
VARIANCE_FLOOR = 1e-6


class Gaussian(NamedTuple):
    """A normal distribution per row: ``mean`` in target units, ``variance`` in their square.

    A named tuple, so that pytree tools (``torch.vmap``, sampling, data-parallel gathers) pass
    through it.

    Example:
        >>> import torch
        >>> Gaussian(mean=torch.zeros(2), variance=torch.ones(2)).variance
        tensor([1., 1.])
    """

    mean: Tensor
    variance: Tensor


class Quantiles(NamedTuple):
    """A median per row and a central interval around it, all in target units.

    A named tuple of tensors of one shape, for the reason that a :class:`Gaussian` is one.

    Example:
        >>> import torch
        >>> zero = torch.zeros(2)
        >>> quantiles = Quantiles(lower=zero - 1, median=zero, upper=zero + 1, level=zero + 0.6827)
        >>> quantiles.variance
        tensor([1.0000, 1.0000])
    """

    lower: Tensor
    median: Tensor
    upper: Tensor
    level: Tensor

    @property
    def mean(self) -> Tensor:
        """The median, in the place that the mean has in other predictions."""
        return self.median

    @property
    def variance(self) -> Tensor:
        """That of the normal distribution with an interval as wide, in squared target units."""
        half_widths = torch.special.ndtri((1 + self.level) / 2)
        std: Tensor = (self.upper - self.lower) / (2 * half_widths)
        return std.square()


#: What a head may give in the place of plain numbers.
Distribution = Gaussian | Quantiles


class GaussianHead(nn.Module):
    """A linear layer that predicts a mean and a variance for each output.

    The variance is softplus of what the layer gives, plus :data:`VARIANCE_FLOOR`: positive, and
    growing linearly, so that one outlier does not blow it up as an exponential would.

    Args:
        in_features: number of input features, >= 1.
        out_features: number of targets, >= 1.

    Shape:
        ``(N, ..., in_features)`` to a :class:`Gaussian` of ``(N, ..., out_features)`` each; with
        one target the last axis is dropped, so that predictions and targets are both ``(N,)`` and
        no loss broadcasts ``(N, 1)`` against ``(N,)`` to ``(N, N)``.

    Raises:
        RecipeError: a number of features is not positive.

    Source:
        Nix, Weigend 1994, "Estimating the mean and variance of the target probability
        distribution"; Lakshminarayanan et al. 2017, arXiv:1612.01474, section 2.2.1 (softplus).

    Example:
        >>> import torch
        >>> mean, variance = GaussianHead(8)(torch.randn(5, 8))
        >>> mean.shape, bool((variance > 0).all())
        (torch.Size([5]), True)
    """

    def __init__(self, in_features: int, out_features: int = 1) -> None:
        super().__init__()
        check_sizes(in_features=in_features, out_features=out_features)
        self.in_features = in_features
        self.out_features = out_features
        self.linear = nn.Linear(in_features, 2 * out_features)

    def forward(self, features: Tensor) -> Gaussian:
        """Predict a :class:`Gaussian` from features ``(N, ..., in_features)``."""
        mean, spread = self.linear(features).chunk(2, dim=-1)
        variance = F.softplus(spread) + VARIANCE_FLOOR
        if self.out_features == 1:
            mean, variance = mean.squeeze(-1), variance.squeeze(-1)
        return Gaussian(mean, variance)


class QuantileHead(nn.Module):
    """A linear layer that predicts a median and a central interval for each output.

    Each half of the interval is the softplus of what the layer gives, so that the ends never cross
    the median, and may be of different lengths: noise need not be symmetric. Trained with
    :func:`~stablelightning.functional.intervals.pinball_loss`, which is what
    :class:`~stablelightning.StableMixin` does by default.

    Args:
        in_features: number of input features, >= 1.
        out_features: number of targets, >= 1.
        level: share of the targets that the interval shall hold, in (0, 1).

    Shape:
        ``(N, ..., in_features)`` to :class:`Quantiles` of ``(N, ..., out_features)`` each; with one
        target the last axis is dropped, as by :class:`GaussianHead`.

    Raises:
        RecipeError: a number of features is not positive, or ``level`` is not in (0, 1).

    Source:
        Koenker, Bassett 1978, "Regression quantiles"; Romano, Patterson, Candès 2019,
        arXiv:1905.03222 (conformalized).

    Example:
        >>> import torch
        >>> quantiles = QuantileHead(8, level=0.9)(torch.randn(5, 8))
        >>> bool((quantiles.lower < quantiles.median).all()), quantiles.upper.shape
        (True, torch.Size([5]))
    """

    def __init__(self, in_features: int, out_features: int = 1, *, level: float = 0.9) -> None:
        super().__init__()
        check_sizes(in_features=in_features, out_features=out_features)
        if not 0 < level < 1:
            raise RecipeError(f"level must be in (0, 1), got {level}; 0.9 is the usual choice.")
        self.in_features = in_features
        self.out_features = out_features
        self.level = level
        self.linear = nn.Linear(in_features, 3 * out_features)

    def forward(self, features: Tensor) -> Quantiles:
        """Predict :class:`Quantiles` from features ``(N, ..., in_features)``."""
        median, below, above = self.linear(features).chunk(3, dim=-1)
        if self.out_features == 1:
            median, below, above = median.squeeze(-1), below.squeeze(-1), above.squeeze(-1)
        return Quantiles(
            median - F.softplus(below),
            median,
            median + F.softplus(above),
            torch.full_like(median, self.level),
        )
