"""Penalties, proximal steps and max-norm against closed forms and brute force."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from stablelightning.errors import RecipeError
from stablelightning.functional.regularize import (
    elastic_penalty,
    l1_penalty,
    l2_penalty,
    max_norm_,
    shrink_,
    shrink_towards_,
    soft_threshold_,
    start_penalty,
    unit_norms,
)

finite = st.floats(-100, 100, width=32)
vectors = st.lists(finite, min_size=1, max_size=20).map(torch.tensor)
strengths = st.floats(0, 10)


# ---- penalties ----------------------------------------------------------------------------------


def test_penalties_of_three_and_minus_four():
    weights = [torch.tensor([3.0]), torch.tensor([[-4.0]])]
    assert l1_penalty(weights, 0.1) == pytest.approx(0.7)
    assert l2_penalty(weights, 0.1) == pytest.approx(1.25)
    assert elastic_penalty(weights, l1_strength=0.1, l2_strength=0.2) == pytest.approx(3.2)


def test_gradients_are_the_sign_and_the_weight():
    weight = torch.tensor([3.0, -4.0, 0.0], requires_grad=True)
    elastic_penalty([weight], l1_strength=0.5, l2_strength=0.1).backward()
    torch.testing.assert_close(weight.grad, torch.tensor([0.8, -0.9, 0.0]))


def test_no_weights_cost_nothing():
    assert l1_penalty([], 1.0) == 0


def test_sums_of_half_precision_do_not_overflow():
    weight = torch.full((1000,), 100.0, dtype=torch.float16)
    assert l2_penalty([weight], 2.0) == 1e7
    assert unit_norms(weight[None]).item() == pytest.approx(math.sqrt(1e7))


@pytest.mark.parametrize("penalty", [l1_penalty, l2_penalty])
@pytest.mark.parametrize("strength", [-1.0, math.nan])
def test_negative_strengths_are_refused(penalty, strength):
    with pytest.raises(RecipeError, match="strength must be >= 0"):
        penalty([torch.ones(2)], strength)


# ---- proximal steps -----------------------------------------------------------------------------


@given(vectors, strengths)
def test_soft_threshold_is_that_of_torch_in_place(weight, threshold):
    expected = torch.nn.functional.softshrink(weight, threshold)
    assert soft_threshold_(weight, threshold) is weight
    torch.testing.assert_close(weight, expected, rtol=0, atol=1e-5)
    assert torch.equal(weight == 0, expected == 0)


def prox_by_search(w: float, l1: float, l2: float) -> float:
    """Minimize on a grid what the proximal steps minimize in closed form."""
    grid = torch.linspace(-4, 4, 80001, dtype=torch.float64)
    cost = 0.5 * (grid - w) ** 2 + l1 * grid.abs() + 0.5 * l2 * grid**2
    return grid[cost.argmin()].item()


@pytest.mark.parametrize("w", [-3.0, -0.4, 0.0, 0.3, 2.0])
@pytest.mark.parametrize(("l1", "l2"), [(0.5, 0.0), (0.0, 0.7), (0.5, 0.7)])
def test_the_steps_minimize_what_they_claim_to(w, l1, l2):
    weight = torch.tensor([w], dtype=torch.float64)
    shrink_(soft_threshold_(weight, l1), l2)
    assert weight.item() == pytest.approx(prox_by_search(w, l1, l2), abs=1e-4)


def test_zero_leaves_every_bit():
    weight = torch.randn(50)
    before = weight.clone()
    assert torch.equal(shrink_(soft_threshold_(weight, 0.0), 0.0), before)


def test_thresholds_may_be_tensors():
    weight = torch.tensor([3.0, -0.5, 0.2])
    assert soft_threshold_(weight, torch.tensor(0.5)).tolist() == [2.5, 0.0, 0.0]
    assert shrink_(weight, torch.tensor(1.5)).tolist() == [1.0, 0.0, 0.0]


def test_what_is_not_finite_stays_to_be_found():
    weight = soft_threshold_(torch.tensor([math.nan, math.inf, -math.inf]), 1.0)
    assert weight[0].isnan()
    assert weight[1:].tolist() == [math.inf, -math.inf]


@given(vectors, st.floats(0, 1e4))
def test_shrinking_never_changes_a_sign(weight, amount):
    before = weight.clone()
    shrink_(weight, amount)
    assert (weight.abs() <= before.abs()).all()
    assert (weight * before >= 0).all()


@pytest.mark.parametrize("step", [soft_threshold_, shrink_])
def test_negative_steps_are_refused(step):
    with pytest.raises(RecipeError, match="must be >= 0, got -1"):
        step(torch.ones(2), -1)


# ---- max-norm -----------------------------------------------------------------------------------


@st.composite
def matrices(draw) -> Tensor:
    rows, columns = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    return torch.tensor(
        draw(st.lists(finite, min_size=rows * columns, max_size=rows * columns))
    ).view(rows, columns)


@given(matrices(), st.floats(1e-3, 1e3))
def test_no_unit_exceeds_the_bound_and_short_ones_are_untouched(weight, bound):
    before, norms = weight.clone(), unit_norms(weight)
    assert max_norm_(weight, bound) is weight
    assert (unit_norms(weight) <= bound * (1 + 1e-5)).all()
    assert torch.equal(weight[norms <= bound], before[norms <= bound])


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_max_norm_is_that_of_torch(axis):
    weight = torch.randn(4, 5, 6)
    expected = weight.renorm(2, axis, 1.5)
    torch.testing.assert_close(max_norm_(weight, 1.5, unit_axes=(axis,)), expected)


def test_three_four_is_cut_to_half_of_it():
    assert max_norm_(torch.tensor([[3.0, 4.0]]), 2.5).tolist() == [[1.5, 2.0]]


def test_units_along_several_axes():
    weight = torch.ones(2, 3, 4, 5)
    norms = unit_norms(weight, unit_axes=(0, 2))
    assert norms.shape == (2, 4)
    assert norms[0, 0].item() == pytest.approx(math.sqrt(15))
    max_norm_(weight, 1.0, unit_axes=(0, 2))
    torch.testing.assert_close(unit_norms(weight, unit_axes=(0, -2)), torch.ones(2, 4))


def test_units_of_one_weight_each():
    assert max_norm_(torch.tensor([-3.0, 0.5, 0.0]), 1.0).tolist() == [-1.0, 0.5, 0.0]


def test_a_unit_that_is_not_finite_is_left_to_be_found():
    weight = max_norm_(torch.tensor([[math.inf, 1.0], [math.nan, 9.0], [3.0, 4.0]]), 1.0)
    assert weight[0].tolist() == [math.inf, 1.0]
    assert weight[1, 1] == 9
    torch.testing.assert_close(weight[2], torch.tensor([0.6, 0.8]))


@pytest.mark.parametrize("bound", [0, -1, math.nan])
def test_a_bound_that_is_not_positive_is_refused(bound):
    with pytest.raises(RecipeError, match="max_norm must be > 0"):
        max_norm_(torch.ones(2, 2), bound)


# ---- towards a start ----------------------------------------------------------------------------


@given(vectors, st.floats(-10, 10, width=32), strengths)
def test_the_step_of_l2_sp_is_that_of_l2_around_the_start(weight, start, amount):
    begun = torch.full_like(weight, start)
    found = shrink_towards_(weight.clone(), begun, amount)
    expected = begun + (weight - begun) / (1 + amount)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)
    assert torch.equal(shrink_towards_(begun.clone(), begun, amount), begun)


def test_the_step_of_l2_sp_minimizes_its_penalty():
    weight, begun = torch.tensor([3.0]), torch.tensor([1.0])
    value = torch.linspace(0, 4, 4001)
    costs = [
        (v - weight).square() / 2 + start_penalty([v[None]], [begun], 0.7) for v in value.unbind()
    ]
    best = value[torch.stack(costs).argmin()]
    assert shrink_towards_(weight, begun, 0.7).item() == pytest.approx(best.item(), abs=1e-3)


def test_the_penalty_of_a_distance():
    assert start_penalty([torch.tensor([3.0])], [torch.tensor([1.0])], 0.5) == 1.0
    with pytest.raises(RecipeError, match="strength must be >= 0"):
        start_penalty([torch.ones(2)], [torch.ones(2)], -1.0)
    with pytest.raises(RecipeError, match="amount must be >= 0"):
        shrink_towards_(torch.ones(2), torch.ones(2), -1.0)
