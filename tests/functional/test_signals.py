"""Statistics of signals: closed forms, and properties that hold for any values."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from stablelightning.errors import DataError
from stablelightning.functional.signals import (
    as_data_by_units,
    dead_units,
    derivative_at,
    duplicate_units,
    log_slope,
    mean_cosine,
    mean_share,
    root_mean_square,
    saturated_share,
    sigmoid_explosion_window,
    underflow_share,
    unit_std,
)

seeds = st.integers(0, 2**31 - 1)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class TestSigmoidExplosionWindow:
    """The narrow window of explosion: |w| > 4, at most 0.45 wide, at w about 6.9."""

    @pytest.mark.parametrize("weight", [0.0, 1.0, 4.0, -4.0])
    def test_is_empty_up_to_four(self, weight):
        assert sigmoid_explosion_window(weight) == 0

    def test_opens_just_above_four(self):
        assert sigmoid_explosion_window(4.001) > 0

    def test_is_widest_at_6_9(self):
        weights = [4 + i / 1000 for i in range(1, 46000)]
        widest = max(weights, key=sigmoid_explosion_window)
        assert widest == pytest.approx(6.9, abs=0.05)
        assert sigmoid_explosion_window(widest) == pytest.approx(0.45, abs=0.005)

    @given(st.floats(4.01, 200), st.floats(-10, 10))
    def test_is_the_set_where_the_gradient_grows(self, weight, bias):
        center, half = -bias / weight, sigmoid_explosion_window(weight) / 2
        inside = torch.tensor([-0.99, 0.0, 0.99], dtype=torch.float64) * half + center
        outside = torch.tensor([-1.01, 1.01], dtype=torch.float64) * half + center
        slopes = [
            weight * derivative_at(torch.sigmoid, weight * x + bias) for x in (inside, outside)
        ]
        assert (slopes[0] > 1).all()
        assert (slopes[1] < 1).all()

    @given(st.floats(4, 1e6))
    def test_sign_does_not_matter(self, weight):
        assert sigmoid_explosion_window(-weight) == sigmoid_explosion_window(weight)


@given(seeds, st.integers(2, 20))
def test_mean_cosine_is_that_of_all_pairs(seed, count):
    rows = normal(count, 5, seed=seed)
    pairs = F.cosine_similarity(rows[:, None], rows[None], dim=-1)
    others = (pairs.sum() - pairs.trace()) / (count * (count - 1))
    assert mean_cosine(rows).item() == pytest.approx(others.item(), abs=1e-5)


def test_equal_inputs_have_cosine_one_and_silent_ones_none():
    assert mean_cosine(torch.ones(4, 3)).item() == pytest.approx(1.0)
    assert mean_cosine(torch.zeros(4, 3)).item() == 0


def test_one_input_has_no_cosine():
    with pytest.raises(DataError, match="two inputs"):
        mean_cosine(torch.ones(1, 3))


@given(seeds, st.floats(-100, 100))
def test_constants_do_not_change_the_std_of_units(seed, constant):
    values = normal(50, 4, seed=seed).double()
    moved = values + constant * torch.arange(4)
    assert torch.allclose(unit_std(moved), unit_std(values), atol=1e-9)


def test_channels_are_units_and_positions_are_data():
    images = normal(6, 3, 4, 4)
    values = as_data_by_units(images, 1)
    assert values.shape == (96, 3)
    assert torch.equal(values[:, 1].sort().values, images[:, 1].flatten().sort().values)


def test_a_unit_is_dead_over_the_data_and_not_on_one_input():
    inputs = normal(200, 3) + torch.tensor([0.0, 10.0, -10.0])
    assert dead_units(derivative_at(torch.relu, inputs)).tolist() == [False, False, True]


@pytest.mark.parametrize(
    ("function", "largest", "edge"), [(torch.tanh, 1.0, 2.18), (torch.sigmoid, 0.25, 4.36)]
)
def test_saturation_starts_where_the_constant_says(function, largest, edge):
    points = torch.tensor([edge - 0.01, edge + 0.01, -edge + 0.01, -edge - 0.01])
    assert saturated_share(derivative_at(function, points), largest).item() == 0.5


def test_derivatives_of_in_place_and_constant_functions():
    points = torch.tensor([-2.0, 3.0])
    assert derivative_at(F.relu_, points).tolist() == [0, 1]
    assert derivative_at(torch.ones_like, points).tolist() == [0, 0]
    assert points.tolist() == [-2, 3]


@pytest.mark.parametrize(
    ("function", "share"),
    # E[f]^2 / E[f^2] under the standard normal: 1/pi for the ReLU; the sigmoid by quadrature.
    [(torch.tanh, 0.0), (torch.relu, 1 / math.pi), (torch.sigmoid, 0.852)],
)
def test_share_of_the_mean_after_known_functions(function, share):
    values = function(normal(200_000, 1))
    assert mean_share(values).item() == pytest.approx(share, abs=0.01)


@given(st.floats(-3, 3), st.floats(0.01, 100))
def test_slope_of_an_exponential_is_its_rate(rate, start):
    depths = list(range(6))
    values = [start * math.exp(rate * d) for d in depths]
    assert log_slope(values, depths) == pytest.approx(rate, abs=1e-6)


def test_slope_leaves_out_what_has_no_logarithm():
    assert log_slope([1.0, 0.0, math.inf, math.nan, math.e**4], range(5)) == pytest.approx(1.0)
    assert math.isnan(log_slope([1.0, 0.0], [0, 1]))
    assert math.isnan(log_slope([1.0, 2.0], [3, 3]))


def test_underflow_counts_values_that_the_dtype_cannot_hold():
    values = torch.tensor([0.0, 1e-9, 5e-8, 7e-8, 1.0])
    in_half = (values.half() == 0) & (values != 0)
    assert underflow_share(values, torch.float16).item() == in_half.sum() / 4
    assert underflow_share(values, torch.bfloat16).item() == 0
    assert underflow_share(torch.zeros(3), torch.float16).item() == 0


@given(seeds, st.integers(1, 8))
def test_copies_of_units_are_found_whatever_their_order(seed, copies):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(10, 4, generator=generator)
    chosen = torch.randint(10, (copies,), generator=generator)
    both = torch.cat([rows, rows[chosen]])[torch.randperm(10 + copies, generator=generator)]
    assert duplicate_units(both).sum() == copies


def test_root_mean_square_of_nothing_is_zero():
    assert root_mean_square(torch.empty(0)) == 0


@pytest.mark.parametrize("function", [unit_std, dead_units, mean_share])
def test_shapes_are_checked(function):
    with pytest.raises(DataError, match=r"\(data, units\)"):
        function(torch.zeros(3))
