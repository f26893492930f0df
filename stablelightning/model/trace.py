"""Watching a forward pass: what every tool that looks at aten operations shares."""

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

#: Namespaces whose operations involve other processes: they must run on every rank, every time.
_COLLECTIVE = ("c10d", "_c10d_functional", "c10d_functional", "symm_mem")


@cache
def may_draw(op: OpOverload) -> bool:
    """Whether an operation is tagged as drawing random numbers (it need not, on every call)."""
    return torch.Tag.nondeterministic_seeded in op.tags


@cache
def is_collective(op: OpOverload) -> bool:
    """Whether an operation talks to other processes."""
    return op.namespace in _COLLECTIVE


@cache
def written_arguments(op: OpOverload) -> tuple[int | str, ...]:
    """Positions (names, where keyword-only) of the arguments that an operation writes into."""
    written: list[int | str] = []
    for position, argument in enumerate(op._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            written.append(argument.name if argument.kwarg_only else position)
    return tuple(written)


@cache
def _running_statistics(op: OpOverload) -> tuple[int, int, int] | None:
    """Positions of (running mean, running variance, training) where a norm hides what it writes."""
    names = [a.name for a in op._schema.arguments]
    training = next((n for n in ("training", "train", "use_input_stats") if n in names), None)
    if "running_mean" not in names or training is None:
        return None
    return names.index("running_mean"), names.index("running_var"), names.index(training)


def written_tensors(op: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """The tensors that this call writes into, running statistics of norms in training included."""
    found: list[Tensor] = []
    for key in written_arguments(op):
        at = args[key] if isinstance(key, int) and key < len(args) else None
        value = kwargs.get(key) if isinstance(key, str) else at
        values = value if isinstance(value, list | tuple) else (value,)
        found += [v for v in values if isinstance(v, Tensor)]
    hidden = _running_statistics(op)
    if hidden is not None and len(args) > hidden[2] and args[hidden[2]]:
        found += [a for a in (args[hidden[0]], args[hidden[1]]) if isinstance(a, Tensor)]
    return found


def storage_key(tensor: Tensor) -> int:
    """Identity of the memory behind a tensor: the same for all its views, as long as it lives."""
    return int(tensor.untyped_storage()._cdata)
