"""Layer-sequential unit variance: scale each layer's weight by what comes out, in one pass."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from stablelightning.functional.initialize import scale_to_size_
from stablelightning.model.attribution import Attribution
from stablelightning.model.initialization import LayerInitialization, joined
from stablelightning.model.inputs import arguments_of
from stablelightning.model.materialize import quiet_eval

_NO_CHANGE = 1.0


def scale_by_data(
    model: nn.Module,
    attribution: Attribution,
    rows: list[LayerInitialization],
    *,
    inputs: Any,
    call: Callable[..., Any] | None = None,
) -> list[LayerInitialization]:
    """Scale the written linear layers and convolutions so that each output has unit size.

    Each layer is measured and scaled as the pass reaches it, and what goes on is scaled as well: a
    later layer sees its input as it will be. Weights that several calls share, and those that no
    module's call uses, are not scaled.

    Args:
        model: changed in place.
        attribution: of the model.
        rows: of the layers, as they were written.
        inputs: the example; a few dozen rows or more.
        call: what is called; the model itself if not given.

    Returns:
        The rows with the factors.

    Source:
        Mishkin, Matas 2016, arXiv:1511.06422.
    """
    changed = {row.name for row in rows if row.changed}
    scaled: dict[str, float] = {}
    with ExitStack() as stack:
        for role in attribution.layers:
            plain = isinstance(role.module, nn.Linear | nn.modules.conv._ConvNd)
            if plain and role.uses == 1 and role.name in changed:
                hook = _Scaling(role.name, scaled)
                stack.callback(role.module.register_forward_hook(hook, prepend=True).remove)
        stack.enter_context(quiet_eval(model))
        args, kwargs = arguments_of(inputs)
        (call or model)(*args, **kwargs)
    return [_with_factor(row, scaled.get(row.name, _NO_CHANGE)) for row in rows]


class _Scaling:
    """A forward hook that brings a layer's output to unit size, and its weight with it."""

    def __init__(self, name: str, scaled: dict[str, float]) -> None:
        self._name, self._scaled = name, scaled

    def __call__(self, module: nn.Module, _args: Any, output: Any) -> Any:
        weight, bias = module.weight, module.bias
        if not isinstance(output, Tensor) or not isinstance(weight, Tensor):
            return output
        # A bias that was left is no part of what is scaled.
        shift = torch.zeros((), dtype=output.dtype, device=output.device)
        if isinstance(bias, Tensor):
            axes = 0 if isinstance(module, nn.Linear) else weight.ndim - 2
            shift = bias.detach().reshape(-1, *[1] * axes)
        factor = scale_to_size_(weight, output - shift)
        self._scaled[self._name] = factor
        return (output - shift) * factor + shift


def _with_factor(row: LayerInitialization, factor: float) -> LayerInitialization:
    if factor == _NO_CHANGE:
        return row
    return replace(
        row,
        gain=None if row.gain is None else row.gain * factor,
        std_after=row.std_after * factor,
        why=joined([row.why, f"scaled by {factor:.4g} to unit size on the example"]),
    )
