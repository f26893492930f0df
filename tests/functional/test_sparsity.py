"""Masks by magnitude have the exact count, whatever the ties; the schedule is that of the paper."""

from fractions import Fraction
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.utils import prune

from stablelightning.errors import DataError, RecipeError
from stablelightning.functional.sparsity import (
    adaptive_magnitude_masks,
    check_sparsity,
    cubic_sparsity,
    layer_magnitude_masks,
    magnitude_masks,
    pack_mask,
    pruned_count,
    unpack_mask,
    zero_count,
)

#: Few values, so that many weights are equal.
tied = st.lists(st.sampled_from([0.0, -0.0, 0.5, -0.5, 1.0, 2.0]), min_size=1, max_size=30)
layers = st.lists(tied, min_size=1, max_size=4)
shares = st.floats(0, 0.999)


def tensors(values: list[list[float]]) -> list[torch.Tensor]:
    return [torch.tensor(v) for v in values]


def pruned(masks: list[torch.Tensor]) -> int:
    return sum(int((~mask).sum()) for mask in masks)


@given(layers, shares)
def test_the_count_is_exact_whatever_the_ties(values, share):
    weights = tensors(values)
    total = sum(w.numel() for w in weights)
    assert pruned(magnitude_masks(weights, share)) == pruned_count(total, share)
    for weight, mask in zip(weights, layer_magnitude_masks(weights, share), strict=True):
        assert pruned([mask]) == pruned_count(weight.numel(), share)


@given(layers, shares)
def test_the_adaptive_count_is_exact_and_keeps_the_order_within_a_layer(values, share):
    weights = tensors(values)
    masks = adaptive_magnitude_masks(weights, share)
    assert pruned(masks) == pruned_count(sum(w.numel() for w in weights), share)
    for weight, mask in zip(weights, masks, strict=True):
        if mask.any() and not mask.all():
            assert weight.abs()[mask].min() >= weight.abs()[~mask].max()


@given(layers, st.floats(0, 0.999), st.floats(1e-20, 1e20))
def test_adaptive_masks_ask_for_no_scale_and_empty_no_layer(values, share, scale):
    # Different within a layer: of equal weights the first go.
    weights = [torch.arange(1.0, len(v) + 1) for v in values]
    masks = adaptive_magnitude_masks(weights, share)
    kept = sum(int(mask.sum()) for mask in masks)
    if kept >= len(weights):
        assert all(mask.any() for mask in masks)
    powers = [w * 2.0 ** round(torch.tensor(scale).log2().item()) for w in weights[:1]]
    again = adaptive_magnitude_masks([*powers, *weights[1:]], share)
    assert all(map(torch.equal, masks, again))


def test_a_weight_counts_by_its_share_of_what_would_be_left():
    """Shares are 1/11.25, 4/10.25 and 1 in the first tensor, 1/10 and 1 in the second."""
    masks = adaptive_magnitude_masks(
        [torch.tensor([1.0, 2.0, 2.5]), torch.tensor([1e-3, 3e-3])], 0.4
    )
    assert [mask.tolist() for mask in masks] == [[False, True, True], [False, True]]


@given(layers, shares)
def test_nothing_kept_is_smaller_than_anything_pruned(values, share):
    weights = torch.cat(tensors(values)).abs()
    masks = torch.cat(magnitude_masks(tensors(values), share))
    if not masks.all():
        assert weights[masks].min() >= weights[~masks].max()


@given(layers, shares, shares)
def test_what_was_pruned_stays_pruned(values, first, second):
    weights = tensors(values)
    before = magnitude_masks(weights, min(first, second))
    # A kept weight may have become zero since: it must not take the place of a pruned one.
    zeros = [torch.zeros_like(w) for w in weights]
    after = magnitude_masks(zeros, max(first, second), masks=before)
    assert all((old | ~new).all() for old, new in zip(before, after, strict=True))
    total = sum(w.numel() for w in weights)
    assert pruned(after) == pruned_count(total, max(first, second))


@given(st.integers(0, 10**7), st.integers(1, 999))
def test_the_share_is_taken_as_it_is_written(weights, thousandths):
    share = thousandths / 1000
    asked = Fraction(thousandths, 1000) * weights
    count = pruned_count(weights, share)
    assert count == 0 or count < weights
    if weights > 1000:
        assert abs(count - asked) <= Fraction(1, 2)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_without_ties_the_masks_are_torchs(dtype):
    torch.manual_seed(0)
    layers = [torch.nn.Linear(7, 5, dtype=dtype), torch.nn.Linear(5, 3, dtype=dtype)]
    for number, layer in enumerate(layers):  # all different, also in half precision
        places = torch.randperm(layer.weight.numel()).view_as(layer.weight)
        layer.weight.data = ((2 * places + number + 1) / 64).to(dtype)
    ours = magnitude_masks([layer.weight for layer in layers], 0.7)
    chosen = [(layer, "weight") for layer in layers]
    prune.global_unstructured(chosen, prune.L1Unstructured, amount=0.7)
    assert all(
        torch.equal(m, layer.weight_mask.bool()) for m, layer in zip(ours, layers, strict=True)
    )


def test_of_equal_weights_the_first_go():
    (mask,) = magnitude_masks([torch.ones(4)], 0.5)
    assert mask.tolist() == [False, False, True, True]


def test_infinite_weights_are_kept_and_nan_is_refused():
    (mask,) = magnitude_masks([torch.tensor([float("-inf"), 1.0])], 0.5)
    assert mask.tolist() == [True, False]
    with pytest.raises(DataError, match="NaN"):
        magnitude_masks([torch.tensor([float("nan"), 1.0])], 0.5)


def test_no_tensors_no_masks():
    assert magnitude_masks([], 0.5) == []


@pytest.mark.parametrize("wrong", [0, 1, 1.5, -0.1, float("nan"), True, "0.5", None])
def test_shares_that_leave_no_network_are_refused(wrong):
    with pytest.raises(RecipeError, match=r"sparsity must be in \(0, 1\)"):
        check_sparsity(wrong)


# ---- the schedule -------------------------------------------------------------------------------


def test_half_way_seven_eighths_are_pruned():
    assert cubic_sparsity(150, begin=100, end=200, final=0.8) == pytest.approx(0.7)
    assert cubic_sparsity(150, begin=100, end=200, final=0.9, initial=0.5) == pytest.approx(0.85)


@given(st.integers(0, 50), st.integers(0, 50), st.floats(0.01, 0.99), st.floats(0, 1))
def test_it_never_falls_and_stays_between_its_ends(begin, length, final, share):
    initial = final * share
    values = [
        cubic_sparsity(step, begin=begin, end=begin + length, final=final, initial=initial)
        for step in range(begin + length + 3)
    ]
    assert all(a <= b + 1e-12 for a, b in pairwise(values))
    assert values[-1] == final
    assert min(values) >= initial - 1e-12


def test_without_a_length_it_jumps():
    assert cubic_sparsity(4, begin=5, end=5, final=0.9) == 0
    assert cubic_sparsity(5, begin=5, end=5, final=0.9) == 0.9


# ---- counts and bits ----------------------------------------------------------------------------


def test_only_exact_zeros_count():
    assert zero_count(torch.tensor([[0.0, -0.0], [1e-45, float("nan")]])) == 2


@given(st.lists(st.booleans(), max_size=40))
def test_a_mask_survives_its_bits(values):
    mask = torch.tensor(values, dtype=torch.bool)
    packed = pack_mask(mask)
    assert packed.numel() == -(-len(values) // 8)
    assert torch.equal(unpack_mask(packed, mask.shape), mask)


def test_bits_of_another_weight_are_refused():
    with pytest.raises(DataError, match="packed for another"):
        unpack_mask(pack_mask(torch.ones(9, dtype=torch.bool)), (4, 2))
