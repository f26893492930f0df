"""Dropout as ONNX keeps it: random numbers, compared and multiplied."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def dropout(x: Tensor, p: float, train: bool | None) -> Tensor:
    """``aten::dropout`` by a comparison of random numbers.

    Example:
        >>> dropout(torch.ones(2), 0.5, train=False)
        tensor([1., 1.])
    """
    return native_dropout(x, p, train)[0]


def native_dropout(x: Tensor, p: float, train: bool | None) -> tuple[Tensor, Tensor]:
    """``aten::native_dropout``: what is kept, scaled up, and the mask.

    Example:
        >>> native_dropout(torch.ones(2), 1.0, train=True)
        (tensor([0., 0.]), tensor([False, False]))
    """
    rate = 0.0 if train is False else p
    kept = torch.rand_like(x) >= rate
    return torch.where(kept, x / (1 - rate if rate < 1 else 1.0), torch.zeros_like(x)), kept


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """``aten::scaled_dot_product_attention`` in plain operations, dropout of its weights included.

    Source:
        Vaswani et al. 2017, arXiv:1706.03762, equation 1.

    Example:
        >>> q = torch.randn(1, 2, 3, 4)
        >>> expected = torch.nn.functional.scaled_dot_product_attention(q, q, q, is_causal=True)
        >>> torch.allclose(attention(q, q, q, is_causal=True), expected, atol=1e-6)
        True
    """
    if enable_gqa:
        groups = query.shape[-3] // key.shape[-3]
        key, value = (t.repeat_interleave(groups, -3) for t in (key, value))
    factor = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = query @ key.transpose(-2, -1) * factor
    if is_causal:
        attn_mask = torch.ones_like(scores, dtype=torch.bool).tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, -math.inf)
    elif attn_mask is not None:
        scores = scores + attn_mask
    return dropout(scores.softmax(-1), dropout_p, train=True) @ value


#: Decompositions for an export with dropout live. onnxruntime takes ONNX's own dropout out of a
#: graph even where it is told to be in training, and ONNX's attention has none.
DRAWN_DROPOUT: dict[Any, Callable[..., Any]] = {
    torch.ops.aten.dropout.default: dropout,
    torch.ops.aten.native_dropout.default: native_dropout,
    torch.ops.aten.scaled_dot_product_attention.default: attention,
}
