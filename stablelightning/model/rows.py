"""Sampling copies of the rows in one batch, and the proof by trial that this is right.

Repeating rows is faster than vmap for small models, and right only where rows do not influence each
other: that is checked beforehand.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from stablelightning.model.batched import CannotBatch
from stablelightning.model.generators import GeneratorWatch, undisturbed_generators
from stablelightning.model.operations import may_draw
from stablelightning.model.survey import Survey


def repeated(call: Callable[[Any], Any], inputs: Any, number: int, *, rows: int) -> Any:
    """``number`` samples by one pass over ``number`` copies of every row.

    Args:
        call: runs the model on inputs.
        inputs: pytree whose tensors with ``rows`` rows are repeated.
        number: samples.
        rows: rows N of a batch.

    Returns:
        Outputs ``(number, rows, ...)``.

    Raises:
        CannotBatch: an output does not have one row per input row.
    """
    output = call(copies_of(inputs, number, rows))

    def split(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or leaf.ndim == 0 or leaf.shape[0] != number * rows:
            raise CannotBatch("an output does not have one row per input row")
        return (
            leaf.view(number, rows, *leaf.shape[1:])
            if leaf.is_contiguous()
            else leaf.reshape(number, rows, *leaf.shape[1:])
        )

    return split(output) if isinstance(output, Tensor) else tree_map(split, output)


def count_rows(leaves: list[Any]) -> int:
    """Rows of the first tensor among the leaves of the inputs, 0 if there is none."""
    first = next((x for x in leaves if isinstance(x, Tensor) and x.ndim), None)
    return 0 if first is None else int(first.shape[0])


def copies_of(inputs: Any, number: int, rows: int) -> Any:
    """The inputs with every row ``number`` times, whole copies one after the other."""

    def times(leaf: Any) -> Any:
        if not is_rows(leaf, rows):
            return leaf
        many = leaf.unsqueeze(0).expand(number, *leaf.shape)
        return many.reshape(number * rows, *leaf.shape[1:])  # Tensor.repeat costs five times this

    args, kwargs = inputs
    if len(args) == 1 and not kwargs and isinstance(args[0], Tensor):
        return (times(args[0]),), kwargs
    return tree_map(times, inputs)


#: How far a row's output may move when other rows join its batch: kernels for other sizes round
#: differently, a row that is really influenced moves by far more.
_ROUNDING = 1e-3


def rows_are_independent(
    call: Callable[[Any], Any], steady: Callable[[Any], Any], inputs: Any
) -> bool:
    """Whether each row's result depends on that row alone, draws included.

    The deterministic model is run on the rows, on other rows, and on both together in either order.
    The sampled model must draw twice as much for twice the rows, must not let Python look at
    values, and must keep the NaN of other rows out of a row.

    Args:
        call: runs the model with its dropout live.
        steady: runs it in eval.
        inputs: ``(args, kwargs)``.
    """
    rows = count_rows(tree_leaves(inputs))
    if rows == 0:
        return False
    try:
        return (
            _steady_rows_agree(steady, inputs, rows)
            and _draws_are_per_row(call, inputs, rows)
            and _poison_stays(call, inputs, rows)
        )
    except Exception:  # whatever the model says to rows that it does not expect
        return False


def _steady_rows_agree(steady: Callable[[Any], Any], inputs: Any, rows: int) -> bool:
    others = tree_map(lambda x: other_rows(x, rows), inputs)
    alone = _rowwise(steady(inputs), rows)
    behind = _rowwise(steady(join(others, inputs, rows)), 2 * rows)
    before = _rowwise(steady(join(inputs, others, rows)), 2 * rows)
    return all(
        close(a, b[rows:]) and close(a, c[:rows])
        for a, b, c in zip(alone, behind, before, strict=True)
    )


def _draws_are_per_row(call: Callable[[Any], Any], inputs: Any, rows: int) -> bool:
    surveys = []
    for number in (1, 2):
        with undisturbed_generators(), Survey() as survey:
            call(copies_of(inputs, number, rows))
        surveys.append(survey)
    if any(survey.reads_values for survey in surveys):
        return False  # a branch would be taken for all rows and samples at once
    return bool(surveys[1].drawn == 2 * surveys[0].drawn)


def _poison_stays(call: Callable[[Any], Any], inputs: Any, rows: int) -> bool:
    poison = tree_map(
        lambda x: x.new_full(x.shape, float("nan")) if is_rows(x, rows, real=True) else x, inputs
    )
    with undisturbed_generators():
        alone = _rowwise(call(inputs), rows)
        with _PoisonedDraws(rows, slice(rows, None)):
            before = _rowwise(call(join(inputs, poison, rows)), 2 * rows)
        with _PoisonedDraws(rows, slice(0, rows)):
            behind = _rowwise(call(join(poison, inputs, rows)), 2 * rows)
    return not any(
        ((b[:rows].isnan() | c[rows:].isnan()) & ~a.isnan()).any()
        for a, b, c in zip(alone, before, behind, strict=True)
    )


class _PoisonedDraws(TorchDispatchMode):
    """Fills with NaN what is drawn for some rows: it must not reach the others either."""

    def __init__(self, rows: int, which: slice) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._rows = rows
        self._which = which

    def __torch_dispatch__(
        self, func: OpOverload, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        watch = GeneratorWatch() if may_draw(func) else None
        output = func(*args, **(kwargs or {}))
        if watch is not None and watch.moved():
            for drawn in output if isinstance(output, tuple) else (output,):
                if is_rows(drawn, 2 * self._rows, real=True):
                    drawn[self._which] = float("nan")
        return output


def close(a: Tensor, b: Tensor) -> bool:
    """Whether two results of the same rows are equal but for rounding."""
    a, b = a.float(), b.float()
    scale = float(a.nan_to_num(0, 0, 0).abs().mean())
    return torch.allclose(a, b, rtol=_ROUNDING, atol=_ROUNDING * scale, equal_nan=True)


def is_rows(leaf: Any, rows: int, *, real: bool = False) -> bool:
    """Whether a leaf is a tensor with so many rows (``real``: of floating point numbers)."""
    if not isinstance(leaf, Tensor) or leaf.ndim == 0 or leaf.shape[0] != rows:
        return False
    return leaf.is_floating_point() or not real


def _rowwise(output: Any, rows: int) -> list[Tensor]:
    leaves = tree_leaves(output)
    if any(not isinstance(x, Tensor) or x.ndim == 0 or x.shape[0] != rows for x in leaves):
        raise CannotBatch("an output does not have one row per input row")
    return leaves


def join(first: Any, second: Any, rows: int) -> Any:
    """The rows of ``first`` before those of ``second``."""

    def join(a: Any, b: Any) -> Any:
        return torch.cat([a, b]) if is_rows(a, rows) else a

    return tree_map(join, first, second)


def other_rows(leaf: Any, rows: int) -> Any:
    """Plausible rows that differ from the given ones: mirrored, and for numbers also stretched."""
    if not is_rows(leaf, rows):
        return leaf
    mirrored = leaf.flip(-1) if leaf.ndim > 1 else leaf.flip(0)
    return mirrored * 1.5 + 0.25 if leaf.is_floating_point() else mirrored
