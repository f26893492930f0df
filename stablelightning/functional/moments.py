"""Mean and variance of a stream of samples, in memory that does not grow with their number."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Moments:
    """Running mean and sum of squared deviations of samples that arrive in chunks.

    Chunks are merged by the parallel form of Welford's update, which stays exact where the naive
    ``E[x^2] - E[x]^2`` cancels (a mean that is large beside its spread). Half-precision samples are
    accumulated in float32.

    Source:
        Chan, Golub, LeVeque 1979, "Updating formulae and a pairwise algorithm for computing sample
        variances".

    Example:
        >>> moments = Moments()
        >>> for chunk in torch.tensor([[1.0], [2.0], [3.0], [6.0]]).split(3):
        ...     moments.update_(chunk)
        >>> moments.mean, moments.variance()
        (tensor([3.]), tensor([3.5000]))
    """

    count: int = 0
    mean: Tensor | None = None
    squares: Tensor | None = None

    def update_(self, chunk: Tensor) -> None:
        """Add a chunk of samples ``(c, ...)``, c >= 1."""
        chunk = chunk.to(torch.promote_types(chunk.dtype, torch.float32))
        number = chunk.shape[0]
        mean = chunk.mean(0)
        squares = (chunk - mean).square_().sum(0)
        if self.mean is None or self.squares is None:
            self.count, self.mean, self.squares = number, mean, squares
            return
        total = self.count + number
        delta = mean - self.mean
        self.mean = self.mean + delta * (number / total)
        self.squares = self.squares + squares + delta.square() * (self.count * number / total)
        self.count = total

    def variance(self, *, correction: int = 0) -> Tensor:
        """Variance of the samples ``(...)``; ``correction=1`` divides by their number less one."""
        if self.squares is None:
            raise ValueError("variance needs at least one sample, got none; call update_ first.")
        return self.squares / max(self.count - correction, 1)
