"""Finding by experiment where the rows of a batch are in what a forward draws.

The forward is run on the rows and on twice as many: the one dimension of a draw that doubles holds
them. Then it is proved that masks shared by all rows do what they promise: the rows give the same
results alone, before other rows and behind them.
"""

import weakref
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from stablelightning.errors import ModelError
from stablelightning.model.batched import CannotBatch
from stablelightning.model.draws import read_draw
from stablelightning.model.engines import Sampled
from stablelightning.model.footprint import Footprint
from stablelightning.model.generators import preserved_generators
from stablelightning.model.masks import (
    Masks,
    MaskStream,
    OpenAttention,
    RowAxis,
    is_balanced,
    is_consistent,
)
from stablelightning.model.operations import may_draw
from stablelightning.model.plan import plan_key
from stablelightning.model.rows import close, copies_of, count_rows, is_rows, join, other_rows
from stablelightning.words import reason_of

Axes = list[RowAxis | None]

_KNOWN: weakref.WeakKeyDictionary[nn.Module, dict[Any, Axes]] = weakref.WeakKeyDictionary()

#: Answers kept per model: shapes of batches, not a history.
_KEPT = 32


def start_masks(sampled: Sampled, masks: Masks, samples: int, seed: int | None) -> None:
    """Give what is sampled the masks that were asked for; independent ones are torch's own.

    Args:
        sampled: in sampling mode; its ``masks`` are set.
        masks: which.
        samples: how many there will be at most.
        seed: what they are drawn from; ``None`` draws a seed from torch's generator.

    Raises:
        ModelError: consistent masks were asked for, and this forward cannot have them.
    """
    if masks == "independent":
        return
    if seed is None:
        seed = int(torch.randint(2**62, ()))
    consistent = is_consistent(masks)
    stream = MaskStream(samples, seed, balanced=is_balanced(masks), consistent=consistent)
    if consistent:
        try:
            stream.axes = row_axes(sampled)
        except CannotBatch as reason:
            raise ModelError(
                f"consistent masks need draws in which the rows of a batch can be told, and in "
                f"{type(sampled.model).__name__} they cannot ({reason}); use masks='independent' "
                "or 'balanced'."
            ) from reason
    sampled.masks = stream


def row_axes(sampled: Sampled) -> Axes:
    """The answer of :func:`find_row_axes`, remembered with the model.

    Raises:
        CannotBatch: it cannot be told, with the reason in words.
    """
    known = _KNOWN.setdefault(sampled.model, {})
    key = plan_key(sampled, 0, None)
    if key not in known:
        if len(known) >= _KEPT:
            known.clear()
        known[key] = find_row_axes(sampled)
    return known[key]


def find_row_axes(sampled: Sampled) -> Axes:
    """Where the rows are in each draw of a forward, in order; ``None`` where a draw has none.

    Args:
        sampled: what is sampled, in sampling mode.

    Raises:
        CannotBatch: it cannot be told, with the reason in words.
    """
    rows = count_rows(sampled.leaves)
    if rows == 0:
        raise CannotBatch("no tensor of the inputs has rows")
    plain = replace(sampled, masks=None)
    with Footprint(sampled.model), preserved_generators():
        one = _shapes(plain, sampled.inputs)
        try:
            two = _shapes(plain, copies_of(sampled.inputs, 2, rows))
        except Exception as error:  # whatever the model says to a batch that it does not expect
            raise CannotBatch(f"it does not take twice the rows: {reason_of(error)}") from error
        if len(one) != len(two):
            raise CannotBatch("it draws another number of times for twice the rows")
        axes = [_axis(a, b, rows) for a, b in zip(one, two, strict=True)]
        if _proved(plain, axes, rows):
            return axes
        turned = [replace(a, rows_first=False) if a and a.each > 1 else a for a in axes]
        if turned != axes and _proved(plain, turned, rows):
            return turned
    raise CannotBatch("its rows influence each other, or do not come first in the inputs")


def _axis(one: torch.Size, two: torch.Size, rows: int) -> RowAxis | None:
    if one == two:
        return None
    differ = [d for d, (a, b) in enumerate(zip(one, two, strict=False)) if a != b]
    if len(one) != len(two) or len(differ) != 1:
        raise CannotBatch(f"a draw has shape {tuple(one)}, and {tuple(two)} for twice the rows")
    (dim,) = differ
    if one[dim] % rows or two[dim] != 2 * one[dim]:
        raise CannotBatch(f"a draw has shape {tuple(one)} for {rows} rows")
    return RowAxis(dim, one[dim] // rows)


def _shapes(sampled: Sampled, inputs: Any) -> list[torch.Size]:
    seen = _Shapes()
    with OpenAttention(), seen:
        sampled.on(inputs)
    return seen.shapes


class _Shapes(TorchDispatchMode):
    """Notes the shapes of the draws that a stream numbers."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.shapes: list[torch.Size] = []

    def __torch_dispatch__(
        self, func: OpOverload, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        draw = read_draw(func, args, kwargs) if may_draw(func) else None
        if draw is not None:
            self.shapes.append(draw.shape)
        return func(*args, **kwargs)


def _proved(plain: Sampled, axes: Axes, rows: int) -> bool:
    """Whether rows give the same alone and beside others, where all rows share a mask."""
    others = tree_map(lambda x: other_rows(x, rows), plain.inputs)
    stream = MaskStream(1, 0, balanced=False, consistent=True, axes=axes)
    masked = replace(plain, masks=stream)

    def outputs(inputs: Any, number: int) -> list[Tensor]:
        stream.restart()
        found = [x for x in tree_leaves(masked.on(inputs)) if is_rows(x, number)]
        if not found:
            raise CannotBatch("no output has one row per input row")
        return found

    alone = outputs(plain.inputs, rows)
    before = outputs(join(plain.inputs, others, rows), 2 * rows)
    behind = outputs(join(others, plain.inputs, rows), 2 * rows)
    return len(alone) == len(before) == len(behind) and all(
        close(a, b[:rows]) and close(a, c[rows:])
        for a, b, c in zip(alone, before, behind, strict=True)
    )
