"""Sampling in batches: the samples become one more axis of a single pass.

``vmap`` gives the pass an axis that no tensor has until the first random draw, so that the prefix
is paid once and the rest runs as one batch; what a sample means is untouched, whatever the model
does with its own batch axis.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from stablelightning.functional.dropout import attention_with_dropout, dropout_from_integers
from stablelightning.model.survey import TooLarge
from stablelightning.words import reason_of

#: Factories of uninitialised memory: what is then filled in place by a draw must have the axis.
_EMPTY = frozenset({torch.empty, torch.empty_like, torch.Tensor.new_empty})

#: Fused recurrent kernels hide their own dropout and state from vmap.
_RECURRENT = frozenset({torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu})

#: Dropouts whose kernels draw in place into a tensor like their input.
_DRAWS_LIKE_INPUT = frozenset({functional.alpha_dropout, functional.feature_alpha_dropout})


#: Stands for a tensor in the structure of an output.
_TENSOR = object()


class CannotBatch(Exception):
    """Why samples cannot share a pass, in words."""


class CheapDropout(TorchFunctionMode):
    """Replaces the masks of dropout and attention by cheap ones of the same law.

    Args:
        out_of_place: treat in-place dropout as out-of-place; only where nothing reads its input
            again.
        cheap: draw from integers; ``False`` leaves torch's own draws, in the open.
        everywhere: open attention that drops its weights on every device.
    """

    def __init__(
        self, *, out_of_place: bool = False, cheap: bool = True, everywhere: bool = False
    ) -> None:
        super().__init__()
        self._out_of_place = out_of_place
        self._cheap = cheap
        self._everywhere = everywhere

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        handler = _HANDLERS.get(func)
        kwargs = kwargs or {}
        if handler is None:
            return self.other(func, args, kwargs)
        return handler(self, *args, **kwargs)

    def other(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Every call that is not dropout or attention."""
        return func(*args, **kwargs)

    def opens_attention(self, tensors: tuple[Tensor, ...], p: float) -> bool:
        """Whether attention is computed one visible operation at a time."""
        return p > 0 and (self._everywhere or tensors[0].device.type == "cpu")

    def _dropout(
        self, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
    ) -> Tensor:
        if not training or p == 0 or p >= 1 or (inplace and not self._out_of_place):
            return functional.dropout(input, p, training, inplace)
        return dropout_from_integers(input, p) if self._cheap else functional.dropout(input, p)

    def attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        """``F.scaled_dot_product_attention``, one visible operation at a time where it drops."""
        if not self.opens_attention((query, key, value), dropout_p):
            return functional.scaled_dot_product_attention(
                query, key, value, attn_mask, dropout_p, is_causal, scale=scale,
                enable_gqa=enable_gqa,
            )  # fmt: skip
        if is_causal:
            square = (query.shape[-2], key.shape[-2])
            attn_mask = torch.ones(square, dtype=torch.bool, device=query.device).tril()
        if enable_gqa:
            groups = query.shape[-3] // key.shape[-3]
            key, value = (x.repeat_interleave(groups, -3) for x in (key, value))
        drop = dropout_from_integers if self._cheap else functional.dropout
        return attention_with_dropout(
            query, key, value, mask=attn_mask, p=dropout_p, scale=scale, drop=drop
        )


_HANDLERS: dict[Any, Any] = {
    functional.dropout: CheapDropout._dropout,
    functional.scaled_dot_product_attention: CheapDropout.attention,
}


class SampleAxis(CheapDropout):
    """What draws inside ``vmap`` need: the sample axis where torch would draw without it."""

    def __init__(self, marker: Tensor, *, out_of_place: bool = False, cheap: bool = True) -> None:
        super().__init__(out_of_place=out_of_place, cheap=cheap)
        self._marker = marker  # zero, and the only tensor that has the axis from the start

    def other(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Every call that is not dropout or attention."""
        if func in _EMPTY:
            empty = func(*args, **kwargs)
            return empty + self._marker.to(dtype=empty.dtype, device=empty.device)
        if func in _DRAWS_LIKE_INPUT:
            first = args[0]
            return func(first + self._marker.to(first.dtype), *args[1:], **kwargs)
        if func in _RECURRENT and self._is_live(args):
            raise CannotBatch("a fused recurrent kernel comes after the first draw")
        if func is functional.multi_head_attention_forward:
            return multi_head_in_the_open(args, kwargs)
        if func is functional.adaptive_avg_pool2d and _has_axis(args[0]) and _pools_all(args):
            return args[0].mean((-2, -1), keepdim=True)  # vmap would loop over the samples
        return func(*args, **kwargs)

    def opens_attention(self, tensors: tuple[Tensor, ...], p: float) -> bool:
        """The fused kernels know neither the axis (on a CPU) nor a draw per sample."""
        return p > 0 or (tensors[0].device.type == "cpu" and any(map(_has_axis, tensors)))

    @staticmethod
    def _is_live(args: Any) -> bool:
        dropout_and_train = [a for a in args if isinstance(a, bool | float)]
        # ..., has_biases, num_layers, dropout, train, ...: a rate above 0 followed by True draws.
        draws = any(
            isinstance(rate, float) and rate > 0 and train is True
            for rate, train in pairwise(dropout_and_train)
        )
        return draws or any(isinstance(x, Tensor) and _has_axis(x) for x in tree_leaves(args))


def multi_head_in_the_open(args: Any, kwargs: Any) -> Any:
    """``F.multi_head_attention_forward``, its weights dropped by an operation of its own."""
    if kwargs.get("need_weights", True):
        return functional.multi_head_attention_forward(*args, **kwargs)
    # The path that returns the weights also drops them in the open.
    output, _ = functional.multi_head_attention_forward(
        *args, **{**kwargs, "need_weights": True, "average_attn_weights": False}
    )
    return output, None


def _pools_all(args: Any) -> bool:
    return len(args) > 1 and args[1] in (1, (1, 1), [1, 1])


def _has_axis(tensor: Tensor) -> bool:
    return bool(torch._C._functorch.is_batchedtensor(tensor))


def vmapped(
    run: Callable[[], Any], marker: Tensor, *, out_of_place: bool = False, cheap: bool = True
) -> Any:
    """As many samples as ``marker`` has zeros, by one pass under ``torch.vmap``.

    Args:
        run: one pass.
        marker: zeros.
        out_of_place: as for :class:`CheapDropout`.
        cheap: likewise.

    Raises:
        CannotBatch: vmap refuses an operation of the live part, or the output is not tensors.
    """
    if torch.is_autocast_enabled(marker.device.type):
        # Tensors with the axis would be computed in full precision, the others not.
        raise CannotBatch("autocast does not reach inside vmap")
    spec: Any = None
    others: list[Any] = []

    def one(zero: Tensor) -> tuple[Tensor, ...]:
        nonlocal spec, others
        with SampleAxis(zero, out_of_place=out_of_place, cheap=cheap):
            leaves, spec = tree_flatten(run())
        others = [_TENSOR if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        return tuple(leaf for leaf in leaves if isinstance(leaf, Tensor))

    try:
        tensors = iter(torch.vmap(one, randomness="different")(marker))
    except (CannotBatch, TooLarge):
        raise
    except Exception as error:  # vmap's, or of a forward that checks shapes by hand
        raise CannotBatch(reason_of(error)) from error
    leaves = [
        next(tensors) if other is _TENSOR else _spread(other, len(marker)) for other in others
    ]
    return tree_unflatten(leaves, spec)


def _spread(leaf: Any, number: int) -> Any:
    if isinstance(leaf, bool | int | float):
        return torch.tensor([leaf] * number)
    return leaf
