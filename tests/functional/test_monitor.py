"""Signals of a step: against plain formulae, closed forms and the statistics of sampling."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from stablelightning.errors import ModelError
from stablelightning.functional.monitor import (
    FlatEnds,
    flat_ends,
    piece_norms,
    sampled_entries,
    sampled_sizes,
    still_rows_,
    tensor_norms,
    unit_statistics,
)

RELU = FlatEnds(dead_below=0.0)


# ---- norms --------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.lists(st.lists(st.floats(-10, 10), min_size=1, max_size=5), min_size=1, max_size=4))
def test_norms_are_those_of_every_tensor(rows):
    tensors = [torch.tensor(row, dtype=torch.float64) for row in rows]
    torch.testing.assert_close(tensor_norms(tensors), torch.stack([t.norm() for t in tensors]))


def test_norms_of_no_tensors():
    assert tensor_norms([]).shape == (0,)


def test_half_precision_does_not_overflow():
    large = torch.full((100,), 6e4, dtype=torch.float16)
    assert tensor_norms([large]).item() == pytest.approx(6e5, rel=1e-2)
    mixed = tensor_norms([large, torch.ones(4)])
    assert mixed.tolist() == pytest.approx([6e5, 2.0], rel=1e-2)


def test_norm_of_a_sparse_gradient():
    table = nn.Embedding(10, 3, sparse=True)
    table(torch.tensor([1, 1, 4])).sum().backward()
    dense = table.weight.grad.to_dense().norm()
    assert tensor_norms([table.weight.grad]).item() == pytest.approx(dense.item())


def test_norms_of_pieces():
    row = torch.arange(6.0)
    assert piece_norms(row, [2, 4]).tolist() == pytest.approx([1.0, math.sqrt(4 + 9 + 16 + 25)])


# ---- sampling -----------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(64, 64, 3, 3), (512, 512), (96, 130), (50_000,), (7, 5)])
def test_sampled_norm_is_close_to_the_whole(shape):
    weight = torch.randn(shape)
    (size,) = sampled_sizes([weight])
    entries = sampled_entries([weight])
    assert len(entries) == size <= 4096
    whole = weight.norm() * math.sqrt(size / weight.numel())
    assert entries.norm().item() == pytest.approx(whole.item(), rel=0.05)


@pytest.mark.parametrize("shape", [(512, 512), (256, 64, 3, 3), (100, 1000), (30, 4096)])
def test_no_row_or_column_is_visited_more_than_others(shape):
    places = torch.arange(math.prod(shape)).view(shape)
    index = torch.unravel_index(sampled_entries([places]).long(), shape)
    for dimension, size in enumerate(shape):
        visits = torch.bincount(index[dimension], minlength=size)
        assert visits.max() - visits.min() <= max(2, 0.1 * visits.max())


def test_a_channels_last_kernel_gives_the_same_entries():
    kernel = torch.randn(128, 64, 3, 3)
    other = kernel.contiguous(memory_format=torch.channels_last)
    assert torch.equal(sampled_entries([kernel]), sampled_entries([other]))


def test_entries_are_copies():
    weight = torch.zeros(4)
    entries = sampled_entries([weight])
    weight += 1
    assert entries.tolist() == [0, 0, 0, 0]


# ---- where functions are flat -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (torch.relu, (0.0, math.inf, -math.inf, math.inf)),
        (F.relu6, (0.0, 6.0, -math.inf, 6.0)),
        (F.hardtanh, (-1.0, 1.0, -1.0, 1.0)),
        # sech^2(x) = 1e-3 and 0.05; s(1 - s) = a quarter of these
        (torch.tanh, (-4.147, 4.147, -2.178, 2.178)),
        (torch.sigmoid, (-8.294, 8.294, -4.357, 4.357)),
        # selu'(x) = lambda alpha e^x: flat below log of the share, kept apart from its jump at zero
        (F.selu, (math.log(1e-3), math.inf, math.log(0.05), math.inf)),
        (F.leaky_relu, (-math.inf, math.inf, -math.inf, math.inf)),
        (torch.sin, (-math.inf, math.inf, -math.inf, math.inf)),
        (torch.zeros_like, (-math.inf, math.inf, -math.inf, math.inf)),
        (lambda x: x, (-math.inf, math.inf, -math.inf, math.inf)),
    ],
)
def test_flat_ends(function, expected):
    ends = flat_ends(function)
    found = (ends.dead_below, ends.dead_above, ends.saturated_below, ends.saturated_above)
    assert found == pytest.approx(expected, abs=0.02)
    assert ends.can_die == any(map(math.isfinite, expected[:2]))
    assert ends.can_saturate == any(map(math.isfinite, expected[2:]))


def test_a_function_that_writes_in_place():
    assert flat_ends(torch.relu_) == flat_ends(torch.relu)


def test_a_function_that_mixes_is_refused():
    with pytest.raises(ModelError, match="elementwise"):
        flat_ends(lambda x: x.sum(0))


# ---- units --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "dimension"), [((6, 5), 1), ((4, 3, 5), -1), ((4, 5, 3), 1), ((4, 5, 3, 2), 1)]
)
@pytest.mark.parametrize("channels_last", [False, True])
def test_statistics_of_units(shape, dimension, channels_last):
    z = torch.randn(shape)
    if channels_last and z.ndim == 4:
        z = z.contiguous(memory_format=torch.channels_last)
    seen = unit_statistics(z.relu(), unit_dimension=dimension, inputs=z, ends=RELU)
    by_unit = z.movedim(dimension, 0).flatten(1)
    torch.testing.assert_close(seen.mean, by_unit.relu().mean(1))
    torch.testing.assert_close(seen.variance, by_unit.relu().var(1, correction=0))
    torch.testing.assert_close(seen.largest, by_unit.amax(1))
    both = FlatEnds(dead_below=0.0, dead_above=6.0)
    seen = unit_statistics(z.relu(), unit_dimension=dimension, inputs=z, ends=both)
    torch.testing.assert_close(seen.smallest, by_unit.amin(1))
    assert (seen.rows, seen.values) == (shape[0], by_unit.shape[1])


@settings(deadline=None)
@given(st.integers(1, 6), st.integers(1, 6))
def test_merged_statistics_are_those_of_all_data(first, second):
    z = 3 * torch.randn(first + second, 4) + 1
    ends = flat_ends(torch.tanh)
    parts = [
        unit_statistics(part, unit_dimension=1, ends=ends) for part in z.split([first, second])
    ]
    merged = parts[0].merged(parts[1])
    whole = unit_statistics(z, unit_dimension=1, ends=ends)
    assert (merged.rows, merged.values) == (whole.rows, whole.values)
    for name in ("mean", "variance", "largest", "smallest", "saturated"):
        torch.testing.assert_close(
            getattr(merged, name), getattr(whole, name), atol=1e-5, rtol=1e-4
        )


def test_saturated_share():
    z = torch.tensor([[0.0, 3.0], [-3.0, 1.0]])
    seen = unit_statistics(z.tanh(), unit_dimension=1, inputs=z, ends=flat_ends(torch.tanh))
    assert seen.saturated.item() == 0.5


def still(counts, z, ends):
    seen = unit_statistics(z, unit_dimension=1, inputs=z, ends=ends)
    return still_rows_(
        counts,
        seen.rows,
        largest=seen.largest,
        smallest=seen.smallest,
        below=ends.dead_below,
        above=ends.dead_above,
    )


def test_a_unit_is_dead_over_the_data_not_over_a_row():
    counts = torch.zeros(3, dtype=torch.long)
    for z in ([[1.0, -1.0, -1.0], [-1.0, 1.0, -1.0]], [[-1.0, -1.0, -1.0]]):
        still(counts, torch.tensor(z), RELU)
    assert counts.tolist() == [1, 1, 3]


def test_a_bounded_unit_that_switches_is_not_still():
    z = torch.tensor([[20.0, 20.0], [20.0, -20.0]])
    assert still(torch.zeros(2, dtype=torch.long), z, flat_ends(torch.sigmoid)).tolist() == [2, 0]
