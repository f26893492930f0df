"""What a pass costs before and after its first random draw: the grounds for choosing an engine.

Costs are computed from shapes, never timed, so that the same call always makes the same choice and
a seed always gives the same samples.
"""

from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from stablelightning.model.generators import GeneratorWatch
from stablelightning.model.operations import may_draw

aten = torch.ops.aten

#: Operations whose result Python may branch on, or whose shape depends on values.
_READS_VALUES = frozenset(
    {
        aten._local_scalar_dense,
        aten.equal,
        aten.is_nonzero,
        aten.nonzero,
        aten.masked_select,
        aten._unique2,
        aten.unique_dim,
        aten.unique_consecutive,
    }
)

#: Nominal speed of one core, for comparing parts of one pass with each other.
_FLOPS_PER_SECOND = 3e10
_BYTES_PER_SECOND = 5e9


class TooLarge(Exception):
    """The live part makes a tensor, of ``bytes`` bytes, too large for this many samples at once."""

    def __init__(self, size: int) -> None:
        super().__init__(f"a tensor of {size} bytes")
        self.bytes = size


class Survey(TorchDispatchMode):
    """Counts operations, work and draws of one pass, split at the first random draw.

    Args:
        largest_allowed: most bytes of one tensor of the live part; beyond it the pass is abandoned
            with :class:`TooLarge`.

    Attributes:
        operations: number of operations.
        prefix_work: nominal seconds of one core before the first draw.
        live_work: the same from the first draw on.
        largest: bytes of the largest tensor made in the live part.
        drawn: number of elements of all results of random operations.
        reads_values: whether Python looks at values, or shapes depend on them, in the live part.
    """

    def __init__(self, *, largest_allowed: float = float("inf")) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations = 0
        self.prefix_work = 0.0
        self.live_work = 0.0
        self.largest = 0
        self.drawn = 0
        self.reads_values = False
        self._largest_allowed = largest_allowed
        self._live = False

    def __torch_dispatch__(
        self, func: OpOverload, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        watch = GeneratorWatch() if may_draw(func) else None
        output = func(*args, **kwargs)
        self.operations += 1
        made = [
            x
            for x in (output if isinstance(output, list | tuple) else (output,))
            if isinstance(x, Tensor)
        ]
        if watch is not None and watch.moved():
            self._live = True
            self.drawn += sum(x.numel() for x in made)
        work = _work(func, args, kwargs, output, made)
        if not self._live:
            self.prefix_work += work
            return output
        self.live_work += work
        self.reads_values |= func.overloadpacket in _READS_VALUES or _selects(func, args)
        if not func.is_view:
            self.largest = max(self.largest, *(x.numel() * x.element_size() for x in made), 0)
            if self.largest > self._largest_allowed:
                raise TooLarge(self.largest)
        return output


def _selects(func: OpOverload, args: Any) -> bool:
    """Whether a boolean mask decides the shape of the result."""
    if func.overloadpacket not in (aten.index, aten.index_put, aten.index_put_):
        return False
    return any(isinstance(x, Tensor) and x.dtype in (torch.bool, torch.uint8) for x in args[1])


def _is_recurrent(func: OpOverload) -> bool:
    return any(kind in func._schema.name for kind in ("rnn", "lstm", "gru"))


def _work(func: OpOverload, args: Any, kwargs: Any, output: Any, made: list[Tensor]) -> float:
    if func.is_view:
        return 0.0
    moved = sum(x.numel() * x.element_size() for x in made) / _BYTES_PER_SECOND
    formula = flop_registry.get(func.overloadpacket)
    if formula is not None:
        return float(formula(*args, **kwargs, out_val=output) / _FLOPS_PER_SECOND + moved)
    if _is_recurrent(func):
        matrices = [a for a in _flat(args) if a.ndim == 2]
        rows = made[0].numel() // max(made[0].shape[-1], 1) if made else 0
        return 2 * rows * sum(m.numel() for m in matrices) / _FLOPS_PER_SECOND + moved
    return moved


def _flat(args: Any) -> list[Tensor]:
    found: list[Tensor] = []
    for arg in args:
        if isinstance(arg, Tensor):
            found.append(arg)
        elif isinstance(arg, list | tuple):
            found += _flat(arg)
    return found
