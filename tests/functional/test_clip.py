"""Clipping by functions: properties, closed forms, and what is not finite."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from stablelightning.errors import RecipeError
from stablelightning.functional.clip import (
    clip_by_adaptive_norm_,
    clip_by_global_norm_,
    clip_by_value_,
    joint_norm,
    scale_to_unit_norm_,
    standardize_,
)

NORM_TYPES = (1.0, 1.5, 2.0, 3.0, math.inf)
POISON = (math.nan, math.inf, -math.inf)

shapes = st.lists(st.lists(st.integers(1, 4), max_size=3), min_size=1, max_size=4)
scales = st.floats(1e-6, 1e6)
bounds = st.floats(1e-3, 1e3)
norm_types = st.sampled_from(NORM_TYPES)


def drawn(sizes, scale, seed):
    generator = torch.Generator().manual_seed(seed)
    return [scale * torch.randn(size, generator=generator) for size in sizes]


def copied(tensors):
    return [t.clone() for t in tensors]


def versions(tensors):
    return [t._version for t in tensors]


gradient_lists = st.builds(drawn, shapes, scales, st.integers(0, 999))


# ---- the joint norm -----------------------------------------------------------------------------


def test_three_four_has_norm_five():
    gradient = torch.tensor([3.0, 4.0])
    assert clip_by_global_norm_([gradient], max_norm=1.0) == 5
    torch.testing.assert_close(gradient, torch.tensor([0.6, 0.8]))


@given(gradient_lists, bounds, norm_types)
def test_the_joint_norm_never_exceeds_the_bound(grads, bound, norm_type):
    clip_by_global_norm_(grads, bound, norm_type=norm_type)
    assert joint_norm(grads, norm_type) <= bound * (1 + 1e-5)


@given(gradient_lists, bounds, norm_types)
def test_all_gradients_shrink_by_one_factor(grads, bound, norm_type):
    before = copied(grads)
    norm = clip_by_global_norm_(grads, bound, norm_type=norm_type)
    factor = min(1.0, bound / float(norm)) if norm > 0 else 1.0
    for was, now in zip(before, grads, strict=True):
        torch.testing.assert_close(now, was * factor)


@given(gradient_lists, norm_types)
def test_within_the_bound_nothing_is_written(grads, norm_type):
    before, seen = copied(grads), versions(grads)
    bound = float(joint_norm(grads, norm_type)) + 1e-30
    clip_by_global_norm_(grads, bound, norm_type=norm_type)
    assert versions(grads) == seen
    assert all(map(torch.equal, before, grads))


@given(gradient_lists, bounds)
def test_as_torch_clips(grads, bound):
    parameters = [nn.Parameter(torch.zeros_like(g)) for g in grads]
    for parameter, g in zip(parameters, grads, strict=True):
        parameter.grad = g.clone()
    expected = torch.nn.utils.clip_grad_norm_(parameters, bound)
    torch.testing.assert_close(clip_by_global_norm_(grads, bound), expected)
    for parameter, g in zip(parameters, grads, strict=True):
        # torch adds 1e-6 to the norm, which is a share of it, at the bound, of 1e-6 / bound.
        torch.testing.assert_close(g, parameter.grad, rtol=2e-6 / min(bound, 1), atol=1e-12)


@pytest.mark.parametrize("poison", POISON)
@pytest.mark.parametrize("norm_type", NORM_TYPES)
def test_what_is_not_finite_spoils_no_other(poison, norm_type):
    grads = [torch.tensor([1e3, 2e3]), torch.tensor([poison, 5e3])]
    before = copied(grads)
    norm = clip_by_global_norm_(grads, 1.0, norm_type=norm_type)
    assert not norm.isfinite()
    assert all(
        torch.equal(a.nan_to_num(7), b.nan_to_num(7)) for a, b in zip(before, grads, strict=True)
    )


def test_a_norm_that_overflows_is_clipped_all_the_same():
    grads = [torch.tensor([3e30, 4e30])]
    assert clip_by_global_norm_(grads, 1.0).isinf()
    torch.testing.assert_close(grads[0], torch.tensor([0.6, 0.8]))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_precisions(dtype):
    grads = [torch.full((4,), 300.0, dtype=dtype), torch.full((3,), 200.0)]
    norm = clip_by_global_norm_(grads, 1.0)
    assert norm == pytest.approx(math.sqrt(4 * 300**2 + 3 * 200**2), rel=1e-6)
    assert grads[0].dtype == dtype
    assert joint_norm(grads) == pytest.approx(1.0, rel=1e-2)


def test_a_sparse_gradient_counts_each_row_once():
    embedding = nn.Embedding(5, 2, sparse=True)
    embedding(torch.tensor([1, 1, 3])).sum().backward()
    gradient = embedding.weight.grad
    assert clip_by_global_norm_([gradient], 1.0) == pytest.approx(math.sqrt(10))
    assert embedding.weight.grad is gradient
    assert gradient.to_dense().norm() == pytest.approx(1.0)


def test_no_gradients():
    assert clip_by_global_norm_([], 1.0) == 0


def test_a_norm_that_is_known_is_not_computed_again():
    gradient = torch.tensor([3.0, 4.0])
    clip_by_global_norm_([gradient], 1.0, total_norm=torch.tensor(10.0))
    torch.testing.assert_close(gradient, torch.tensor([0.3, 0.4]))


# ---- values -------------------------------------------------------------------------------------


@given(gradient_lists, bounds)
def test_no_value_exceeds_the_bound(grads, bound):
    before = copied(grads)
    largest = clip_by_value_(grads, bound)
    assert largest == max(float(g.abs().max()) for g in before)
    for was, now in zip(before, grads, strict=True):
        torch.testing.assert_close(now, was.clamp(-bound, bound), rtol=0, atol=0)


def test_values_within_the_bound_are_not_written():
    grads = [torch.tensor([1.0, -2.0])]
    seen = versions(grads)
    clip_by_value_(grads, 2.0)
    assert versions(grads) == seen


def test_infinite_values_are_not_hidden():
    grads = [torch.tensor([math.inf, -math.inf, math.nan, 9.0, 0.5])]
    clip_by_value_(grads, 1.0)
    assert grads[0].isinf().tolist() == [True, True, False, False, False]
    assert grads[0].isnan().tolist() == [False, False, True, False, False]
    assert grads[0][3:].tolist() == [1.0, 0.5]


# ---- adaptive -----------------------------------------------------------------------------------


@given(gradient_lists, st.floats(1e-3, 1.0), st.integers(0, 99))
def test_no_unit_exceeds_its_share(grads, clipping, seed):
    weights = drawn([g.shape for g in grads], 1.0, seed)
    before = copied(grads)
    clip_by_adaptive_norm_(grads, weights, clipping)
    for was, now, weight in zip(before, grads, weights, strict=True):
        rows = (lambda t: t.flatten(1)) if was.ndim > 1 else (lambda t: t.reshape(1, -1))
        for g0, g1, w in zip(rows(was), rows(now), rows(weight), strict=True):
            bound = clipping * max(float(w.norm()), 1e-3)
            torch.testing.assert_close(g1, g0 * min(1.0, bound / max(float(g0.norm()), 1e-30)))


def test_a_unit_of_zeros_can_move():
    gradient = torch.ones(3, 4)
    clip_by_adaptive_norm_([gradient], [torch.zeros(3, 4)], 0.01)
    torch.testing.assert_close(gradient.norm(dim=1), torch.full((3,), 1e-5))


def test_units_of_a_transposed_convolution():
    gradient, weight = torch.ones(2, 3, 1), torch.ones(2, 3, 1)
    gradient[:, 0] = 100.0
    assert clip_by_adaptive_norm_([gradient], [weight], 1.0, unit_dims=[1]) == 1
    torch.testing.assert_close(gradient, torch.ones(2, 3, 1))


@pytest.mark.parametrize("poison", POISON)
def test_a_unit_that_is_not_finite_is_left_and_spoils_no_other(poison):
    gradient = torch.tensor([[poison, 1.0], [30.0, 40.0]])
    assert clip_by_adaptive_norm_([gradient], [torch.eye(2)], 1.0) == 1
    assert gradient[0, 1] == 1
    torch.testing.assert_close(gradient[1], torch.tensor([0.6, 0.8]))


def test_rows_of_a_sparse_gradient_are_units():
    embedding = nn.Embedding(4, 2, sparse=True)
    with torch.no_grad():
        embedding.weight.copy_(torch.tensor([[0.0, 1.0]]).expand(4, 2))
    embedding(torch.tensor([1, 1, 3])).sum().backward()
    assert clip_by_adaptive_norm_([embedding.weight.grad], [embedding.weight], 0.5) == 2
    norms = embedding.weight.grad.to_dense().norm(dim=1)
    torch.testing.assert_close(norms, torch.tensor([0.0, 0.5, 0.0, 0.5]))


# ---- normalized ---------------------------------------------------------------------------------


@given(gradient_lists)
def test_unit_norm_of_every_tensor(grads):
    before = copied(grads)
    scale_to_unit_norm_(grads)
    for was, now in zip(before, grads, strict=True):
        norm = float(was.norm())
        torch.testing.assert_close(now, was / (norm + 1e-8))
        assert now.norm() == pytest.approx(1, rel=1e-4) or norm < 1e-4


@settings(deadline=None)
@given(st.integers(2, 50), st.floats(1e-4, 1e4), st.floats(-10, 10), st.integers(0, 99))
def test_zero_mean_and_unit_variance(size, scale, shift, seed):
    gradient = scale * (drawn([(size,)], 1.0, seed)[0] + shift)
    spread = float(gradient.std(correction=0))
    standardize_([gradient])
    if spread > 1e-3 * scale:
        assert abs(float(gradient.mean())) < 1e-2
        assert float(gradient.std(correction=0)) == pytest.approx(1.0, rel=1e-2)


def test_one_entry_keeps_its_sign():
    grads = [torch.tensor([-5.0]), torch.tensor(3.0)]
    standardize_(grads)
    assert [float(g) for g in grads] == [-1.0, 1.0]


@pytest.mark.parametrize("rule", [scale_to_unit_norm_, standardize_])
def test_zeros_stay_zeros(rule):
    gradient = torch.zeros(3, 2)
    rule([gradient])
    assert torch.equal(gradient, torch.zeros(3, 2))


@pytest.mark.parametrize("rule", [scale_to_unit_norm_, standardize_])
@pytest.mark.parametrize("poison", POISON)
def test_a_tensor_that_is_not_finite_is_left(rule, poison):
    gradient, other = torch.tensor([poison, 3.0]), torch.tensor([30.0, 40.0])
    rule([gradient, other])
    assert gradient[1] == 3
    assert other.isfinite().all()


# ---- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [0, -1, math.nan, math.inf, "1", True, None])
def test_thresholds_that_are_not_positive_are_refused(bad):
    g = [torch.ones(2)]
    with pytest.raises(RecipeError, match="max_norm must be a finite number > 0, got"):
        clip_by_global_norm_(g, bad)
    with pytest.raises(RecipeError, match="max_value must be a finite number > 0, got"):
        clip_by_value_(g, bad)
    with pytest.raises(RecipeError, match="clipping must be a finite number > 0, got"):
        clip_by_adaptive_norm_(g, g, bad)


@pytest.mark.parametrize("bad", [0.5, 0, -2, math.nan, "2", True])
def test_norms_that_are_none_are_refused(bad):
    with pytest.raises(RecipeError, match="norm_type must be"):
        clip_by_global_norm_([torch.ones(2)], 1.0, norm_type=bad)
