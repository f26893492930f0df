"""Dropout with cheap masks, and attention that drops its weights in the open."""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

#: A mask element is one 16-bit integer: rates are exact to 1/65536.
_LEVELS = 1 << 16

#: Below this rate the rounding to 1/65536 would change it by more than 0.1%.
_SMALLEST_RATE = 0.008

#: Smaller tensors are faster through torch's own kernel.
_SMALLEST_TENSOR = 2048


def dropout_from_integers(x: Tensor, p: float) -> Tensor:
    """Dropout whose mask comes from 16-bit integers, four to a 64-bit draw.

    On a CPU a Bernoulli draw costs about 8 ns an element and a 16-bit integer 1 ns. The rate is
    rounded to 1/65536 and the scale is that of the rounded rate, so that the mean is kept exactly.

    Args:
        x: floating point, any shape.
        p: probability that an element is dropped, in [0, 1).

    Returns:
        A tensor of the shape of ``x``: ``x`` itself where ``p`` is 0. Small tensors, devices other
        than the CPU and rates below 0.008 go through ``F.dropout``.

    Source:
        Srivastava et al. 2014, "Dropout: a simple way to prevent neural networks from overfitting".

    Example:
        >>> dropped = dropout_from_integers(torch.ones(64, 64), 0.25)
        >>> dropped.unique().tolist()
        [0.0, 1.3333333730697632]
    """
    if p == 0:
        return x
    if x.device.type != "cpu" or p < _SMALLEST_RATE or x.numel() < _SMALLEST_TENSOR:
        return functional.dropout(x, p, training=True)
    drop = min(round(p * _LEVELS), _LEVELS - 1)
    words = torch.randint(-(2**63), 2**63 - 1, ((x.numel() + 3) // 4,), dtype=torch.int64)
    keep = words.view(torch.int16)[: x.numel()].view(x.shape) >= drop - _LEVELS // 2
    # The fused kernel of dropout's own gradient: x * keep * scale in one pass.
    return torch.ops.aten.native_dropout_backward(x, keep, _LEVELS / (_LEVELS - drop))  # type: ignore[no-any-return]


def attention_with_dropout(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    mask: Tensor | None,
    p: float,
    scale: float | None,
    drop: Callable[[Tensor, float], Tensor] = dropout_from_integers,
) -> Tensor:
    """Scaled dot-product attention with dropout on the weights, one visible operation at a time.

    Args:
        query: ``(..., L, E)``.
        key: ``(..., S, E)``.
        value: ``(..., S, V)``.
        mask: broadcast to ``(..., L, S)``; boolean (True takes part) or added to the scores.
        p: dropout probability of the weights, in [0, 1).
        scale: factor of the scores; ``None`` is 1/sqrt(E).
        drop: the dropout; the cheap one unless another is given.

    Returns:
        ``(..., L, V)``.

    Source:
        Vaswani et al. 2017, arXiv:1706.03762, equation 1.

    Example:
        >>> q = torch.randn(2, 4, 8)
        >>> attention_with_dropout(q, q, q, mask=None, p=0.0, scale=None).shape
        torch.Size([2, 4, 8])
    """
    factor = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = (query * factor) @ key.transpose(-2, -1)
    if mask is not None:
        scores = (
            scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
        )
    return drop(scores.softmax(-1), p) @ value
