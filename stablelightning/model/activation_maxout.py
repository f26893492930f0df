"""Layers with their activations, made into maxout layers."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized

from stablelightning.model.activation_names import is_kind
from stablelightning.nn.activations import (
    Maxout,
    MaxoutConv1d,
    MaxoutConv2d,
    MaxoutConv3d,
    MaxoutLinear,
)

_CONVOLUTIONS: dict[type[nn.Module], Any] = {
    nn.Conv1d: MaxoutConv1d,
    nn.Conv2d: MaxoutConv2d,
    nn.Conv3d: MaxoutConv3d,
}

#: Norms may stand between a layer and its activation: the maximum is then taken before them.
_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def layer_before(owner: nn.Module, key: str) -> tuple[str, nn.Module] | None:
    """The linear layer or convolution that feeds an activation in the same ``Sequential``.

    Args:
        owner: what holds the activation.
        key: its name there.

    Returns:
        The layer's key and the layer; ``None`` where there is none, but for norms in between.

    Example:
        >>> layer_before(nn.Sequential(nn.Linear(2, 3), nn.ReLU()), "1")
        ('0', Linear(in_features=2, out_features=3, bias=True))
    """
    if not isinstance(owner, nn.Sequential):
        return None
    children = list(owner._modules.items())
    position = next(i for i, (name, _) in enumerate(children) if name == key)
    for name, child in reversed(children[:position]):
        if isinstance(child, (nn.Linear, *_CONVOLUTIONS)):
            return name, child
        if not isinstance(child, _NORMS):
            return None
    return None


def why_not(layer: nn.Module, activation: nn.Module, *, uses: int, fresh: bool) -> str | None:
    """Why a layer and its activation cannot become maxout, in words; ``None`` if they can.

    Args:
        layer: a linear layer or convolution.
        activation: what it feeds.
        uses: how often the model holds the layer.
        fresh: whether its weights are still torch's default.

    Example:
        >>> why_not(nn.Linear(2, 2), nn.ReLU(), uses=2, fresh=True)
        'its layer is shared, and other places use it as it is'
    """
    if uses > 1:
        return "its layer is shared, and other places use it as it is"
    if any(is_lazy(p) for p in layer.parameters()):
        return "its layer is lazy; run the model once before"
    if is_parametrized(layer) or layer._forward_hooks or layer._forward_pre_hooks:
        return "its layer has hooks or a parametrization, which would be lost"
    if type(layer) is not nn.Linear and type(layer) not in _CONVOLUTIONS:
        return f"its layer is a {type(layer).__name__}, which does more than a plain one"
    if not fresh and slope_of(activation) is None:
        return "its layer is trained, and no maximum of linear pieces computes the same"
    return None


def slope_of(activation: nn.Module) -> float | None:
    """Slope below zero of a function that is 1 above it; ``None`` for any other function.

    Example:
        >>> slope_of(nn.LeakyReLU(0.2)), slope_of(nn.ReLU()), slope_of(nn.Tanh())
        (0.2, 0.0, None)
    """
    if is_kind(activation, nn.ReLU):
        return 0.0
    slope: Any = getattr(activation, "negative_slope", None)
    if is_kind(activation, nn.PReLU):
        weight = getattr(activation, "weight", None)
        slope = weight.item() if isinstance(weight, Tensor) and weight.numel() == 1 else None
    return float(slope) if slope is not None and slope <= 1 else None


def maxout_of(layer: nn.Module, activation: nn.Module, pieces: int, *, fresh: bool) -> Maxout:
    """Make the maxout layer for a layer and its activation.

    A fresh layer gets new, independent pieces. A trained one becomes the first piece, and the
    others its multiple by the activation's slope below zero, so that ``max(Wx, slope * Wx)``
    computes what it computed before.

    Args:
        layer: a linear layer or convolution; left as it is.
        activation: what it feeds.
        pieces: linear pieces of a unit, >= 2.
        fresh: whether the layer's weights are still torch's default.

    Example:
        >>> maxout_of(nn.Linear(3, 4), nn.ReLU(), pieces=2, fresh=True)
        MaxoutLinear(
          pieces=2, parameters=32 (2x those of the plain layer)
          (layer): Linear(in_features=3, out_features=8, bias=True)
        )
    """
    made = _like(layer, pieces)
    slope = slope_of(activation)
    if slope is not None and not fresh:
        factors = torch.tensor([1.0, *[slope] * (pieces - 1)])
        for name, value in layer.named_parameters():
            multiples = factors.to(value).view(-1, *[1] * (value.ndim - 1))
            with torch.no_grad():
                target = made.layer.get_parameter(name)
                target.copy_((value.unsqueeze(1) * multiples).flatten(0, 1))
    for name, value in layer.named_parameters():
        made.layer.get_parameter(name).requires_grad_(value.requires_grad)
    return made.train(layer.training)


def _like(layer: nn.Module, pieces: int) -> Maxout:
    weight = layer.get_parameter("weight")
    place: dict[str, Any] = {"device": weight.device, "dtype": weight.dtype}
    if isinstance(layer, nn.Linear):
        bias = layer.bias is not None
        return MaxoutLinear(layer.in_features, layer.out_features, pieces, bias, **place)
    conv: Any = layer
    names = ("stride", "padding", "dilation", "groups", "padding_mode")
    return _CONVOLUTIONS[type(layer)](  # type: ignore[no-any-return]
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,
        pieces,
        bias=conv.bias is not None,
        **{name: getattr(conv, name) for name in names},
        **place,
    )
