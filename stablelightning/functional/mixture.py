"""The output of a mixture from the outputs of its members, as one output of the same kind."""

import math

from torch import Tensor
from torch.nn import functional


def mixture_logits(logits: Tensor, *, dim: int = 1) -> Tensor:
    """Logits of the members' mean probabilities.

    Args:
        logits: ``(M, N, C, ...)`` of M members.
        dim: where the classes are in the output of one member.

    Returns:
        ``(N, C, ...)``: log probabilities, which are logits whose softmax is the mean of softmaxes.

    Example:
        >>> import torch
        >>> logits = torch.randn(5, 8, 3)
        >>> mean = logits.softmax(-1).mean(0)
        >>> torch.allclose(mixture_logits(logits).softmax(-1), mean, atol=1e-6)
        True
    """
    logs = logits.log_softmax(dim + 1 if dim >= 0 else dim)
    return logs.logsumexp(0) - math.log(len(logits))


def mixture_label_logits(logits: Tensor) -> Tensor:
    """Logits of the members' mean label probabilities: ``(M, ...)`` to ``(...)``.

    Example:
        >>> import torch
        >>> logits = torch.randn(5, 8, 3)
        >>> mean = logits.sigmoid().mean(0)
        >>> torch.allclose(mixture_label_logits(logits).sigmoid(), mean, atol=1e-6)
        True
    """
    # Both logarithms are exact where a probability itself rounds to 0 or 1.
    yes, no = functional.logsigmoid(logits), functional.logsigmoid(-logits)
    return yes.logsumexp(0) - no.logsumexp(0)


def mixture_moments(mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of a mixture of normal distributions of equal weight.

    Args:
        mean: ``(M, ...)`` in target units.
        variance: ``(M, ...)`` in their square.

    Source:
        The law of total variance; Lakshminarayanan et al. 2017, arXiv:1612.01474, section 2.4.

    Example:
        >>> import torch
        >>> mixture_moments(torch.tensor([0.0, 2.0]), torch.tensor([1.0, 1.0]))
        (tensor(1.), tensor(2.))
    """
    return mean.mean(0), variance.mean(0) + mean.var(0, correction=0)
