"""Giving memory to what was built on the meta device, and contents to what torch knows to fill."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from stablelightning.functional.initialize import truncated_normal_
from stablelightning.model.footprint import Footprint
from stablelightning.model.generators import undisturbed_generators
from stablelightning.model.inputs import arguments_of
from stablelightning.model.modules import modules_of, set_training

#: Standard deviation of parameters that no module knows to draw: tokens, positions.
_UNKNOWN_STD = 0.02


def materialize(model: nn.Module, inputs: object) -> list[str]:
    """Put every module that is on the meta device on that of the inputs, as freshly constructed.

    Parameters and buffers get memory by ``to_empty`` and contents by ``reset_parameters``, module
    by module; what was shared stays shared. What no ``reset_parameters`` fills is not left to
    chance: vectors and matrices of parameters are drawn small, buffers are zero, and both are said.

    Args:
        model: any module; changed in place.
        inputs: an example; the device of its first tensor counts.

    Returns:
        What was not known how to fill, in words; nothing for a model with memory.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2, device="meta"), nn.BatchNorm1d(2, device="meta"))
        >>> materialize(net, torch.ones(1, 2))
        []
        >>> net[0].weight.device, net[1].running_var
        (device(type='cpu'), tensor([1., 1.]))
    """
    empty = [m for m in model.modules() if _on_meta(m)]
    if not empty:
        return []
    device = _device_of(inputs)
    shared = _shared(model)
    for module in empty:
        module.to_empty(device=device, recurse=False)
    for names in shared:
        _tie(model, names)
    notes = []
    for name, module in model.named_modules():
        if module in empty:
            notes += _fill(name, module)
    return notes


def make_lazy_ones(
    model: nn.Module, inputs: object, *, call: Callable[..., object] | None = None
) -> None:
    """Let lazy modules find their shapes, in one pass that leaves everything else alone.

    A pass that fails is left to whoever runs the next one to tell.

    Args:
        model: any module; its lazy modules are changed in place.
        inputs: an example.
        call: what is called; the model itself if not given.

    Example:
        >>> net = nn.Sequential(nn.LazyLinear(3), nn.ReLU())
        >>> make_lazy_ones(net, torch.ones(1, 2))
        >>> net[0]
        Linear(in_features=2, out_features=3, bias=True)
    """
    if not any(map(is_lazy, model.parameters())):
        return
    args, kwargs = arguments_of(inputs)
    # Whatever a forward raises; the watched one that follows says it in words.
    with suppress(Exception), quiet_eval(model):
        (call or model)(*args, **kwargs)


def _on_meta(module: nn.Module) -> bool:
    own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    return any(tensor.is_meta for tensor in own)


def _device_of(inputs: object) -> torch.device:
    args, kwargs = arguments_of(inputs)
    tensors = [t for t in (*args, *kwargs.values()) if isinstance(t, Tensor) and not t.is_meta]
    return tensors[0].device if tensors else torch.device("cpu")


def _shared(model: nn.Module) -> list[list[str]]:
    names: dict[Tensor, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(parameter, []).append(name)
    return [found for found in names.values() if len(found) > 1]


def _tie(model: nn.Module, names: list[str]) -> None:
    tensor = model.get_parameter(names[0])
    for name in names[1:]:
        owner, _, local = name.rpartition(".")
        setattr(model.get_submodule(owner), local, tensor)


@torch.no_grad()
def _fill(name: str, module: nn.Module) -> list[str]:
    parameters = dict(module.named_parameters(recurse=False))
    buffers = dict(module.named_buffers(recurse=False))
    for tensor in (*parameters.values(), *buffers.values()):
        # A mark that no draw leaves: what still is all NaN (or 0) afterwards was not filled.
        tensor.fill_(math.nan) if tensor.is_floating_point() else tensor.zero_()
    for method in ("reset_parameters", "reset_running_stats", "_reset_parameters"):
        if callable(getattr(module, method, None)):
            getattr(module, method)()
            break
    notes = []
    for kind, tensors in (("parameter", parameters), ("buffer", buffers)):
        for local, tensor in tensors.items():
            if not tensor.is_floating_point() or not bool(tensor.isnan().all()):
                continue
            full = f"{name}.{local}" if name else local
            if kind == "parameter":
                truncated_normal_(tensor, _UNKNOWN_STD)
                done = f"it was drawn with std {_UNKNOWN_STD}"
            else:
                tensor.zero_()
                done = "it is zero now; fill it as the constructor does"
            notes.append(f"{full}: no reset_parameters fills this {kind}: {done}")
    return notes


@contextmanager
def quiet_eval(model: nn.Module) -> Iterator[None]:
    """Eval without gradients; flags, buffers and generators are afterwards as they were."""
    flags = [(module, module.training) for module in modules_of(model)]
    try:
        for module, _ in flags:
            set_training(module, False)
        with Footprint(model), undisturbed_generators(), torch.no_grad():
            yield
    finally:
        for module, training in flags:
            set_training(module, training)
