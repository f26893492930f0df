"""How the inputs of a model are written: a tensor, a tuple to spread, a dict of keywords."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_map


def arguments_of(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Read inputs as the arguments of a call: tuples and lists are spread, dicts give keywords.

    Returns:
        ``(args, kwargs)``; tensors made in inference mode are cloned, since autograd refuses them.

    Example:
        >>> arguments_of({"x": 1})
        ((), {'x': 1})
    """
    if isinstance(inputs, Tensor):
        return ((inputs.clone() if inputs.is_inference() else inputs),), {}
    inputs = dict(inputs) if isinstance(inputs, Mapping) else inputs
    inputs = tree_map(
        lambda x: x.clone() if isinstance(x, Tensor) and x.is_inference() else x, inputs
    )
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    if isinstance(inputs, tuple | list):
        return tuple(inputs), {}
    return (inputs,), {}
