"""Which part of some memory two views share."""

from enum import Enum

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes


class Overlap(Enum):
    """How much of a view's memory another view covers."""

    NONE = "none"
    PART = "part"
    ALL = "all"


def overlap(view: Tensor, written: Tensor) -> Overlap:
    """How much of ``view`` lies in the memory behind ``written``, both of one storage.

    Args:
        view: a strided tensor of any shape.
        written: another one on the same storage.

    Example:
        >>> x = torch.zeros(4, 6)
        >>> left, right = x.chunk(2, dim=1)
        >>> overlap(left, right), overlap(left, x), overlap(x, left)
        (<Overlap.NONE: 'none'>, <Overlap.ALL: 'all'>, <Overlap.PART: 'part'>)
    """
    (start, stop), (first, last) = _extent(view), _extent(written)
    if view.numel() == 0 or stop <= first or last <= start:
        return Overlap.NONE
    if _is_dense(written, last - first) and first <= start and stop <= last:
        return Overlap.ALL
    if view.element_size() != written.element_size():
        return Overlap.PART  # one memory read as two types: rare, and never disjoint on purpose
    size = written.element_size()
    base = min(start, first)
    with _disable_current_modes():  # whoever asks may be watching what runs
        marks = torch.zeros((max(stop, last) - base) // size, dtype=torch.bool, device="cpu")
        _on(marks, written, (first - base) // size).fill_(True)
        shared = _on(marks, view, (start - base) // size)
        if bool(shared.all()):
            return Overlap.ALL
        return Overlap.PART if bool(shared.any()) else Overlap.NONE


def _extent(tensor: Tensor) -> tuple[int, int]:
    """First byte, and the one after the last, in the storage."""
    first = int(tensor.storage_offset())
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    last = first + sum((size - 1) * stride for size, stride in steps) + 1
    return first * tensor.element_size(), int(last) * tensor.element_size()


def _is_dense(tensor: Tensor, extent: int) -> bool:
    """Whether a tensor fills all of its extent: one number a place, and no gap."""
    if tensor.numel() * tensor.element_size() != extent:
        return False
    return all(s > 0 for n, s in zip(tensor.shape, tensor.stride(), strict=True) if n > 1)


def _on(marks: Tensor, tensor: Tensor, offset: int) -> Tensor:
    return marks.as_strided(tensor.shape, tensor.stride(), offset)
