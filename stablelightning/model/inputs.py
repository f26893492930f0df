"""What a model is called with and returns: tensors, and whatever is built of them."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils._pytree import tree_leaves, tree_map

from stablelightning.errors import DataError, StableLightningError
from stablelightning.model.modules import parameters_of
from stablelightning.words import reason_of

#: How deep to look for tensors in objects that are no containers.
_NESTED = 3


def arguments_of(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Read inputs as the arguments of a call: tuples and lists are spread, dicts give keywords.

    A packed sequence, which is a tuple by its class, is one argument.

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
    if isinstance(inputs, tuple | list) and not isinstance(inputs, PackedSequence):
        return tuple(inputs), {}
    return (inputs,), {}


def spread(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of ``forward`` for the inputs of a batch: tuples, lists and dicts are spread.

    Returns:
        ``(args, kwargs)``; what is no ``dict`` itself, another mapping say, is one argument.

    Example:
        >>> spread((1, 2)), spread({"x": 1})
        (((1, 2), {}), ((), {'x': 1}))
    """
    if isinstance(inputs, dict):
        return (), inputs
    return tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,), {}


def leading_inputs(model: nn.Module, batch: Any) -> Any:
    """The part of a batch that the forward takes: all of it, or what stands before the targets.

    Example:
        >>> leading_inputs(nn.Linear(1, 1), ("images", "classes"))
        ('images',)
    """
    if not isinstance(batch, tuple | list) or len(batch) < 2 or not isinstance(model, nn.Module):
        return batch
    try:
        signature = inspect.signature(model.forward)
    except (TypeError, ValueError):
        return batch
    taken = len(batch)
    while taken:
        args, kwargs = arguments_of(tuple(batch[:taken]))
        try:
            signature.bind(*args, **kwargs)
        except TypeError:
            taken -= 1
        else:
            break
    return tuple(batch[:taken]) if taken else batch


def runner(model: nn.Module, example: Any) -> Callable[[], Any]:
    """A function without arguments that runs a model once on an example.

    Args:
        model: any module, also a LightningModule.
        example: what its forward takes, or a batch with targets behind that.

    Returns:
        The function; it raises DataError where the example does not fit the forward.

    Example:
        >>> import torch
        >>> runner(nn.Flatten(), (torch.ones(2, 3, 4), "targets"))().shape
        torch.Size([2, 12])
    """
    check_device(model, example)
    args, kwargs = arguments_of(leading_inputs(model, example))

    def run() -> Any:
        try:
            return model(*args, **kwargs)
        except StableLightningError:
            raise
        except Exception as error:  # whatever a forward raises
            reason = reason_of(error)
            raise DataError(
                f"the example must fit the forward of {type(model).__name__}, which raised "
                f"{type(error).__name__}: {reason}; pass inputs as the training loader does."
            ) from error

    return run


def leaves_of(tree: Any) -> list[Any]:
    """``tree_leaves``, several times as fast on plain tuples, lists and dicts.

    Example:
        >>> leaves_of((1, [2, {"a": 3}]))
        [1, 2, 3]
    """
    kind = type(tree)
    if kind is tuple or kind is list:
        return [leaf for part in tree for leaf in leaves_of(part)]
    if kind is dict:
        return [leaf for part in tree.values() for leaf in leaves_of(part)]
    if tree is None or kind in _PLAIN or isinstance(tree, Tensor):
        return [tree]
    return tree_leaves(tree)


#: What is no container, by far most of what calls are given.
_PLAIN = frozenset((bool, int, float, str))


def tensors_in(tree: Any, depth: int = _NESTED) -> list[Tensor]:
    """The tensors of a pytree; of objects that pytree does not know, those of their attributes.

    Example:
        >>> import torch
        >>> tensors_in({"a": [torch.tensor(1.0)], "b": "text"})
        [tensor(1.)]
    """
    found: list[Tensor] = []
    for leaf in leaves_of(tree):
        if isinstance(leaf, Tensor):
            found.append(leaf)
        elif not depth or isinstance(leaf, nn.Module | type):
            continue
        elif isinstance(leaf, Mapping):
            found += tensors_in(list(leaf.values()), depth - 1)
        elif isinstance(leaf, list | tuple):
            found += tensors_in(list(leaf), depth - 1)
        elif hasattr(leaf, "__dict__"):
            found += tensors_in(list(vars(leaf).values()), depth - 1)
    return found


def check_device(model: nn.Module, inputs: Any) -> None:
    """Refuse an example that lies on another device than the model.

    Raises:
        DataError: all of its tensors lie elsewhere (lengths, for one, must always be on the CPU).
    """
    devices = {p.device for p in parameters_of(model)}
    found = [tensor.device for tensor in tensors_in(inputs)]
    if len(devices) != 1 or not found:
        return
    (home,) = devices
    if all(device.type != home.type for device in found):
        raise DataError(
            f"the example must be on the model's device {home}, got {found[0]}; "
            f"move it with .to({str(home)!r})."
        )
