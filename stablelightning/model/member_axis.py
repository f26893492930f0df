"""The axis of members under ``vmap``: what draws there need, and what is faster around it."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._C import _functorch
from torch._functorch.pyfunctorch import temporarily_pop_interpreter_stack
from torch.nn import functional

from stablelightning.model.batched import SampleAxis


class MemberAxis(SampleAxis):
    """What a pass of all members needs under vmap: draws of their own, and a quicker loss.

    Args:
        marker: zero, and the only tensor that has the axis from the start.
    """

    def __init__(self, marker: Tensor) -> None:
        super().__init__(marker, out_of_place=False)
        self._level = level_of(marker)

    def other(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Every call that is not dropout or attention."""
        if func is functional.cross_entropy and len(args) == 2:
            loss = _cross_entropy(*args, level=self._level, **kwargs)
            if loss is not None:
                return loss
        return super().other(func, args, kwargs)


#: Settings of the cross entropy that leave it as it is.
_USUAL = {
    "weight": None, "size_average": None, "reduce": None, "reduction": "mean",
    "label_smoothing": 0.0,
}  # fmt: skip


def _cross_entropy(
    scores: Tensor, target: Tensor, *, level: int, ignore_index: int = -100, **settings: Any
) -> Tensor | None:
    """The mean over the rows, which vmap puts together from a dozen parts; ``None``: let it."""
    usual = all(value is _USUAL[name] or value == _USUAL[name] for name, value in settings.items())
    plain = usual and _has(scores, level) and can_go_around(target, level)
    if not plain or scores.ndim != 2 or target.ndim != 1 or target.is_floating_point():
        return None

    def means() -> Tensor:
        known = functional.log_softmax(stack_at(scores, level=level), -1)
        counted = target != ignore_index
        indices = target.where(counted, 0).expand(len(known), -1)
        picked = known.gather(-1, indices.unsqueeze(-1)).squeeze(-1)
        # Where no row counts this is 0 / 0: not a number, as for one network.
        return -picked.where(counted, 0).sum(-1) / counted.sum()

    return outside(means, level)


def level_of(tensor: Tensor) -> int:
    """The number of the vmap that gave a tensor its axis."""
    return int(_functorch.maybe_get_level(tensor))


def can_go_around(tensor: Any, level: int | None) -> bool:
    """Whether a tensor is the same for all members, and vmap the only transform at work.

    Args:
        tensor: of which two axes or more are asked for where there is no level.
        level: of the members' vmap; ``None`` where there is none, and no other may be there.
    """
    if not isinstance(tensor, Tensor) or _functorch.is_functorch_wrapped_tensor(tensor):
        return False
    if torch.is_autocast_enabled(tensor.device.type) or torch.compiler.is_compiling():
        return False
    active = _functorch.maybe_current_level()
    return active is None if level is None else active == level == 1


def _has(tensor: Tensor, level: int) -> bool:
    return _functorch.is_batchedtensor(tensor) and _functorch.maybe_get_level(tensor) == level


def reads_stacks(layers: list[nn.Module], level: int | None) -> bool:
    """Whether every parameter of some layers has the axis of the members in front."""
    parameters = [p for layer in layers for p in layer._parameters.values() if p is not None]
    if level is None:
        return not any(map(_functorch.is_functorch_wrapped_tensor, parameters))
    return all(_has(p, level) and _functorch.maybe_get_bdim(p) == 0 for p in parameters)


def stack_at(tensor: Tensor, *, level: int) -> Tensor:
    """The whole ``(M, ...)`` of what vmap shows as one member's."""
    assert _functorch.maybe_get_level(tensor) == level
    whole: Tensor = _functorch.get_unwrapped(tensor)
    axis = _functorch.maybe_get_bdim(tensor)
    return whole if axis == 0 else whole.movedim(axis, 0)


def outside(compute: Callable[[], Tensor], level: int) -> Tensor:
    """What is computed ``(M, ...)`` outside of vmap, as vmap would show it."""
    with torch._C.DisableTorchFunction(), temporarily_pop_interpreter_stack():
        whole = compute()
    shown: Tensor = _functorch._add_batch_dim(whole, 0, level)
    return shown
