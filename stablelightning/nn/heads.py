"""Heads: the last layer of a network, where its features become a prediction."""

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from stablelightning.errors import RecipeError

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
        for name, value in (("in_features", in_features), ("out_features", out_features)):
            if value < 1:
                raise RecipeError(f"{name} must be >= 1, got {value}; give the number of columns.")
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
