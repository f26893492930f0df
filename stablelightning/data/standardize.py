"""Shift and scale numbers to mean 0 and standard deviation 1."""

from typing import NamedTuple

import torch
from torch import Tensor

# A column whose spread is below this share of its mean is constant up to rounding: dividing by
# such a spread would blow rounding errors up to ordinary inputs.
CONSTANT = 1e-12


class Standardization(NamedTuple):
    """The mean and scale of every column, in the data's own units (float64).

    Args:
        mean: mean of every column, ``(F,)``, or a scalar for one common mean.
        scale: standard deviation of every column, > 0; 1 for a constant column.

    Example:
        >>> fitted = Standardization.fit(torch.tensor([[1.0, 5.0], [3.0, 5.0]]))
        >>> fitted.apply(torch.tensor([[5.0, 5.0]]))
        tensor([[3., 0.]])
    """

    mean: Tensor
    scale: Tensor

    @classmethod
    def fit(cls, values: Tensor) -> "Standardization":
        """Measure the columns of ``values`` ``(N, F)``; a column that does not vary gets scale 1.

        The standard deviation is the population's (divided by N), as scikit-learn has it.
        """
        scale, mean = torch.std_mean(values.double(), dim=0, correction=0)
        constant = scale <= CONSTANT * mean.abs()
        return cls(mean=mean, scale=torch.where(constant, torch.ones_like(scale), scale))

    def apply(self, values: Tensor) -> Tensor:
        """Return ``(values - mean) / scale`` as float32, computed in float64."""
        return ((values.double() - self.mean) / self.scale).float()
