"""Proper scores and interval coverage, one number per row: smaller is better, but for coverage."""

import math

import torch
from torch import Tensor

from stablelightning.errors import DataError, RecipeError
from stablelightning.functional.shapes import check_same_shape

#: A probability below this counts as this, so that one confident mistake costs at most 27.6 nats
#: and not infinity. Far below what a float32 softmax of a sane network gives.
SMALLEST_PROBABILITY = 1e-12

#: A variance below this counts as this: a sampled model without a variance head can agree with
#: itself exactly, and a density with variance 0 has no logarithm. In squared target units.
SMALLEST_VARIANCE = 1e-6


def at_least_single(values: Tensor) -> Tensor:
    """Return ``values`` in float32 if they are narrower (half precision, integers), else unchanged.

    Logarithms and squared differences of half-precision numbers lose what a score is made of.

    Example:
        >>> at_least_single(torch.ones(2, dtype=torch.bfloat16)).dtype
        torch.float32
    """
    return values.to(torch.promote_types(values.dtype, torch.float32))


def brier_score(probabilities: Tensor, target: Tensor, dim: int = 1) -> Tensor:
    """Sum over the classes of the squared distance to the one-hot target.

    Args:
        probabilities: ``(N, C, ...)`` with the classes on ``dim``.
        target: class indices ``(N, ...)``, in [0, C).
        dim: dimension of the classes.

    Returns:
        ``(N, ...)``, in [0, 2].

    Raises:
        DataError: ``target`` does not have the shape of ``probabilities`` without ``dim``.

    Source:
        Brier 1950, "Verification of forecasts expressed in terms of probability".

    Example:
        >>> brier_score(torch.tensor([[0.5, 0.5], [0.0, 1.0]]), torch.tensor([0, 1]))
        tensor([0.5000, 0.0000])
    """
    index = _class_index(probabilities, target, dim)
    probabilities = at_least_single(probabilities)
    one_hot = torch.zeros_like(probabilities).scatter(dim, index, 1.0)
    return (probabilities - one_hot).square().sum(dim)


def negative_log_likelihood(probabilities: Tensor, target: Tensor, dim: int = 1) -> Tensor:
    """Negative logarithm of the probability given to the target class, in nats.

    Args:
        probabilities: ``(N, C, ...)`` with the classes on ``dim``; probabilities, not their
            logarithms, and taken to be at least :data:`SMALLEST_PROBABILITY`.
        target: class indices ``(N, ...)``, in [0, C).
        dim: dimension of the classes.

    Returns:
        ``(N, ...)``, in [0, 27.6].

    Raises:
        DataError: ``target`` does not have the shape of ``probabilities`` without ``dim``.

    Source:
        Good 1952, "Rational decisions" (the logarithmic score).

    Example:
        >>> negative_log_likelihood(torch.tensor([[0.5, 0.5], [0.9, 0.1]]), torch.tensor([0, 1]))
        tensor([0.6931, 2.3026])
    """
    index = _class_index(probabilities, target, dim)
    chosen = at_least_single(probabilities).gather(dim, index).squeeze(dim)
    return -chosen.clamp(min=SMALLEST_PROBABILITY).log()


def binary_brier_score(probabilities: Tensor, target: Tensor) -> Tensor:
    """Squared distance between each label's probability and its target.

    Args:
        probabilities: ``(N, ...)``, one probability per label.
        target: 0 or 1, the same shape.

    Returns:
        The same shape, in [0, 1] (half of :func:`brier_score` over the two outcomes).

    Raises:
        DataError: the shapes differ.

    Example:
        >>> binary_brier_score(torch.tensor([[0.5, 1.0]]), torch.tensor([[1, 1]]))
        tensor([[0.2500, 0.0000]])
    """
    check_same_shape(probabilities=probabilities, target=target)
    return (at_least_single(probabilities) - target).square()


def binary_negative_log_likelihood(probabilities: Tensor, target: Tensor) -> Tensor:
    """Negative log-likelihood of each label, in nats, with the same floor as for classes.

    Args:
        probabilities: ``(N, ...)``, one probability per label.
        target: 0 or 1, the same shape.

    Returns:
        The same shape, in [0, 27.6].

    Raises:
        DataError: the shapes differ.

    Example:
        >>> binary_negative_log_likelihood(torch.tensor([0.5]), torch.tensor([0]))
        tensor([0.6931])
    """
    check_same_shape(probabilities=probabilities, target=target)
    probabilities = at_least_single(probabilities)
    chosen = torch.where(target.bool(), probabilities, 1 - probabilities)
    return -chosen.clamp(min=SMALLEST_PROBABILITY).log()


def gaussian_negative_log_likelihood(mean: Tensor, variance: Tensor, target: Tensor) -> Tensor:
    """Negative log-density of the target under a normal distribution, in nats, constant included.

    Args:
        mean: ``(N, ...)``, in target units.
        variance: the same shape, in squared target units; taken to be at least
            :data:`SMALLEST_VARIANCE`.
        target: the same shape.

    Returns:
        The same shape; unbounded below by more than the variance floor (a density may exceed 1).

    Raises:
        DataError: the shapes differ; ``(N, 1)`` against ``(N,)`` would broadcast to ``(N, N)``.

    Source:
        Nix, Weigend 1994, "Estimating the mean and variance of the target probability
        distribution".

    Example:
        >>> gaussian_negative_log_likelihood(torch.zeros(1), torch.ones(1), torch.zeros(1))
        tensor([0.9189])
    """
    check_same_shape(mean=mean, variance=variance, target=target)
    variance = at_least_single(variance).clamp(min=SMALLEST_VARIANCE)
    distance = at_least_single(target) - at_least_single(mean)
    return 0.5 * (math.log(2 * math.pi) + variance.log() + distance.square() / variance)


def gaussian_coverage(
    mean: Tensor, variance: Tensor, target: Tensor, *, level: float = 0.9
) -> Tensor:
    """Whether each target lies in the central interval that should hold ``level`` of them.

    Args:
        mean: ``(N, ...)``, in target units.
        variance: the same shape, in squared target units.
        target: the same shape.
        level: share of the targets that the interval promises to hold, in (0, 1).

    Returns:
        The same shape, 1 inside and 0 outside; its mean is the coverage, to be held against
        ``level``.

    Raises:
        RecipeError: ``level`` is not in (0, 1).
        DataError: the shapes differ.

    Example:
        >>> mean, variance = torch.zeros(3), torch.ones(3)
        >>> gaussian_coverage(mean, variance, torch.tensor([0.0, 1.6, 1.7]), level=0.9)
        tensor([1., 1., 0.])
    """
    if not 0 < level < 1:
        raise RecipeError(f"level must be in (0, 1), got {level}; 0.9 is the usual choice.")
    check_same_shape(mean=mean, variance=variance, target=target)
    # In double: in float32 a level near 1 would round to 1, and its quantile to infinity.
    half_width = torch.special.ndtri(torch.tensor((1 + level) / 2, dtype=torch.float64)).item()
    distance = (at_least_single(target) - at_least_single(mean)).abs()
    inside: Tensor = distance <= half_width * at_least_single(variance).sqrt()
    return inside.to(distance.dtype)


def _class_index(probabilities: Tensor, target: Tensor, dim: int) -> Tensor:
    expected = list(probabilities.shape)
    del expected[dim]
    if list(target.shape) != expected:
        raise DataError(
            f"target must have the shape of the probabilities without the classes "
            f"{tuple(expected)}, got {tuple(target.shape)}; pass class indices, not one-hot rows."
        )
    return target.long().unsqueeze(dim)
