"""What timm and torchvision know of their own weights: other image sizes, channels, old names."""

import sys
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from stablelightning.optional import require

_Change = Callable[[dict[str, Tensor]], dict[str, Tensor]]


def adapted(network: nn.Module) -> _Change | None:
    """Find how the library that a network comes from makes other weights fit it.

    timm: the network's own filter of checkpoints (embedded positions of another image size, names
    of the first publication), and a first convolution of other channels. torchvision: the positions
    of its vision transformer.

    Args:
        network: not changed.

    Returns:
        A function from tensors by name to tensors by name, on a copy of the dict; ``None`` for a
        network of neither library.

    Example:
        >>> print(adapted(nn.Linear(2, 2)))
        None
    """
    home = type(network).__module__
    if home.startswith("timm."):
        return lambda tensors: _by_timm(network, tensors)
    if home == "torchvision.models.vision_transformer":
        return lambda tensors: _by_torchvision(network, tensors)
    return None


def _by_timm(network: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    change = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
    changed = dict(tensors)
    if callable(change):
        changed = dict(change(changed, network))
    first = (getattr(network, "pretrained_cfg", None) or {}).get("first_conv") or ()
    for layer in (first,) if isinstance(first, str) else first:
        own = network.get_submodule(layer).weight
        value = changed.get(f"{layer}.weight")
        if value is None or own.ndim != 4 or value.ndim != 4:
            continue
        if value.shape[1] == 3 != own.shape[1]:  # timm knows how to spread three colours only
            spread = require("timm.models", extra="vision").adapt_input_conv
            changed[f"{layer}.weight"] = spread(own.shape[1], value)
    return changed


def _by_torchvision(network: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    library = require("torchvision.models.vision_transformer", extra="vision")
    changed: dict[str, Tensor] = library.interpolate_embeddings(
        network.image_size, network.patch_size, dict(tensors)
    )
    return changed
