"""Layers that may take a batch norm into their weights: what they must be, and their channels."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils import parametrize
from torch.utils._pytree import tree_map

from stablelightning.model.trace import Call, Value
from stablelightning.model.trust import is_trusted

LAYERS = (_ConvNd, nn.Linear)
_FLOATS = (torch.float32, torch.float64)
#: Forwards of torch's own, which read the weight and the bias of their module and nothing else.
_STANDARD = tuple(
    kind.forward
    for kind in (
        *(nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d),
        *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
    )
)


class NotFoldable(Exception):
    """Why a norm stays, in words."""


def has_standard_forward(layer: nn.Module) -> bool:
    """Whether a layer's forward is that of torch's own class.

    Example:
        >>> has_standard_forward(nn.Conv2d(1, 1, 1))
        True
    """
    return type(layer).forward in _STANDARD and "forward" not in vars(layer)


def check_layer(name: str, layer: nn.Module) -> None:
    """Refuse a layer whose weights cannot be rewritten.

    Args:
        name: dotted name, for the words.
        layer: a convolution or a linear layer.

    Raises:
        NotFoldable: hooks, parametrizations, other tensors than plain ones, no place for a bias.

    Example:
        >>> check_layer("head", nn.Linear(2, 2))
    """
    if parametrize.is_parametrized(layer):
        raise NotFoldable(f"{name} is parametrized; remove the parametrization first")
    refuse_hooks(layer, f"{name} has")
    weight, bias = layer._parameters.get("weight"), layer._parameters.get("bias")
    if weight is None:
        raise NotFoldable(f"{name} has no weight of its own")
    if bias is None and not has_standard_forward(layer) and not is_trusted(layer):
        raise NotFoldable(f"{name} has no bias, and a forward of its own that may not take one")
    for what, parameter in (("weight", weight), ("bias", bias)):
        if parameter is not None:
            _check_parameter(f"{name}.{what}", parameter)


def _check_parameter(name: str, parameter: nn.Parameter) -> None:
    if type(parameter) is not nn.Parameter or type(parameter.data) is not Tensor:
        raise NotFoldable(f"{name} is a {type(parameter.data).__name__}, and no plain tensor")
    if parameter.layout is not torch.strided or parameter.is_inference():
        raise NotFoldable(f"{name} cannot be written (sparse, or made in inference mode)")
    if parameter.dtype not in _FLOATS:
        kind = str(parameter.dtype).removeprefix("torch.")
        raise NotFoldable(f"{name} is {kind}; fold in float32, and convert afterwards")


def refuse_hooks(module: nn.Module, who: str = "it has") -> None:
    """Refuse a module with hooks, which may change its weights or look at its output.

    Args:
        module: a layer or a norm.
        who: begins the sentence.

    Raises:
        NotFoldable: it has some.

    Example:
        >>> refuse_hooks(nn.Linear(2, 2))
    """
    hooks = (
        *(module._forward_hooks, module._forward_pre_hooks),
        *(module._backward_hooks, module._backward_pre_hooks),
    )
    if any(hooks):
        raise NotFoldable(f"{who} hooks (pruning and weight_norm set some); remove them first")


def check_shift(name: str, layer: nn.Module) -> None:
    """Refuse a layer where a constant on the input does not reach every output alike.

    Args:
        name: dotted name, for the words.
        layer: of a standard forward.

    Raises:
        NotFoldable: zero padding, which is no constant; a transposed kernel, whose outputs read
            differently many inputs.

    Example:
        >>> check_shift("stem", nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect"))
    """
    if not isinstance(layer, _ConvNd):
        return
    alone = all(size == 1 for size in layer.kernel_size)
    if isinstance(layer.padding, str):
        padded = layer.padding == "same" and not alone
    else:
        padded = any(layer.padding)
    if isinstance(layer, _ConvTransposeNd):
        plain = alone and all(step == 1 for step in layer.stride) and not any(layer.output_padding)
        if padded or not plain:
            raise NotFoldable(f"its shift would not reach every output of {name} alike")
    elif padded and layer.padding_mode == "zeros":
        raise NotFoldable(f"{name} behind it pads with zeros, which its shift would not reach")


def channel_axis(call: Call) -> int:
    """Where the channels of a layer are, on its input and its output.

    Args:
        call: of the layer.

    Raises:
        NotFoldable: it was called without a batch.
    """
    if isinstance(call.module, nn.Linear):
        return -1
    assert isinstance(call.module, _ConvNd)
    if call.outputs[0].tensor.ndim != len(call.module.kernel_size) + 2:
        raise NotFoldable("the layer beside it runs without a batch")
    return 1


def output_channels(layer: Any) -> int:
    """How many channels a layer puts out.

    Example:
        >>> output_channels(nn.Conv2d(1, 5, 3)), output_channels(nn.Linear(2, 3))
        (5, 3)
    """
    return int(layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels)


def channels_along(path: list[Value], start: int, *, axis: int, many: bool = False) -> Tensor:
    """Which channel of the first value each channel of the last one holds.

    Channel numbers are sent through the very views, so that any permutation is followed exactly.

    Args:
        path: values from one module to the other, each a view of the one before.
        start: axis of the channels of the first value.
        axis: of the last.
        many: whether one channel may become several, as by flattening.

    Raises:
        NotFoldable: some channel at the end holds several of the start, or padding.
    """
    first, last = path[0].tensor, path[-1].tensor
    if first.ndim < 2 or last.ndim < 2:
        raise NotFoldable("its input has no axis for a batch")
    count = first.shape[start]
    if len(path) == 1 and start % first.ndim == axis % first.ndim:
        return torch.arange(count)
    shape = [1] * first.ndim
    shape[start] = count
    # From one, so that the zeros of a padding are no channel.
    numbers = torch.arange(1.0, count + 1, device=first.device).view(shape).expand(first.shape)
    held = {id(path[0]): numbers.clone()}
    for value in path[1:]:
        maker = value.maker
        if maker is None or maker.op is None:
            raise NotFoldable("the views between it and the layer cannot be followed")

        def now(leaf: Any) -> Any:
            return held.get(id(leaf), leaf.tensor) if isinstance(leaf, Value) else leaf

        args, kwargs = tree_map(now, (maker.args, maker.kwargs))
        held[id(value)] = maker.op(*args, **kwargs)
    moved = held[id(path[-1])].movedim(axis, 0).flatten(1)
    found = moved[:, 0]
    if bool((moved != found[:, None]).any()) or bool((found < 1).any()):
        raise NotFoldable("the views between it and the layer mix channels")
    if not many and len(found) != count:
        raise NotFoldable("the views between it and the layer do not keep channels one to one")
    return found.long().cpu() - 1
