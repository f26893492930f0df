"""What two views share, against counting every place of their memory."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from stablelightning.model.overlap import Overlap, overlap


@st.composite
def views(draw: st.DrawFn, base: Tensor) -> Tensor:
    view = base
    for _ in range(draw(st.integers(0, 3))):
        dim = draw(st.integers(0, view.ndim - 1))
        start = draw(st.integers(0, view.shape[dim] - 1))
        stop = draw(st.integers(start + 1, view.shape[dim]))
        step = draw(st.integers(1, 3))
        view = view[(slice(None),) * dim + (slice(start, stop, step),)]
        if draw(st.booleans()):
            view = view.transpose(0, -1)
    return view.unsqueeze(0).expand(2, *view.shape) if draw(st.booleans()) else view


@given(st.data())
def test_as_counted(data: st.DataObject):
    base = torch.arange(4 * 5 * 3).view(4, 5, 3)
    view, written = data.draw(views(base)), data.draw(views(base))
    own, other = set(view.flatten().tolist()), set(written.flatten().tolist())
    expected = Overlap.ALL if own <= other else Overlap.PART if own & other else Overlap.NONE
    assert overlap(view, written) is expected


def test_one_memory_read_as_two_types():
    numbers = torch.zeros(4, 2)
    assert overlap(torch.view_as_complex(numbers), numbers) is Overlap.ALL
    assert overlap(numbers, torch.view_as_complex(numbers)[:2]) is Overlap.PART
    assert overlap(numbers[3:], torch.view_as_complex(numbers)[:2]) is Overlap.NONE


def test_nothing_shares_nothing():
    base = torch.zeros(4)
    assert overlap(base[:0], base) is Overlap.NONE
    assert overlap(base, base[:0]) is Overlap.NONE
