import math

import pytest
import torch
import torch.nn.functional as F

from stablelightning.errors import ModelError
from stablelightning.functional.depth import cosine_map, variance_map

COSINES = [-1.0, -0.999, -0.5, 0.0, 0.5, 0.99, 0.9999, 1 - 1e-8, 1.0]


@pytest.mark.parametrize("cosine", COSINES)
def test_the_cosine_map_of_relu_is_the_arc_cosine_kernel(cosine):
    angle = math.acos(cosine)
    expected = (math.sin(angle) + (math.pi - angle) * cosine) / math.pi
    assert cosine_map(torch.relu, cosine) == pytest.approx(expected, abs=1e-12)
    assert cosine_map(torch.relu, cosine, variance=7.0) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("cosine", COSINES)
def test_the_cosine_map_of_the_sign_is_the_arc_sine_law(cosine):
    expected = 2 / math.pi * math.asin(cosine)
    assert cosine_map(torch.sign, cosine) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("cosine", [-0.7, 0.0, 0.3, 0.95, 0.9999])
@pytest.mark.parametrize("variance", [0.25, 1.0, 9.0])
def test_the_cosine_map_of_the_error_function(cosine, variance):
    """Williams 1997: E[erf(u) erf(v)] = 2/pi asin(2 q c / (1 + 2 q))."""
    half = 2 * variance / (1 + 2 * variance)
    expected = math.asin(half * cosine) / math.asin(half)
    assert cosine_map(torch.erf, cosine, variance=variance) == pytest.approx(expected, abs=1e-10)


def test_steep_functions_and_stairs():
    assert cosine_map(lambda x: torch.tanh(1e4 * x), 0.5) == pytest.approx(1 / 3, abs=1e-3)
    assert cosine_map(lambda x: torch.round(x * 16) / 16, 0.5) == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize("variance", [1e-6, 0.3, 1.0, 40.0])
def test_the_variance_map(variance):
    assert variance_map(torch.relu, variance) == pytest.approx(variance / 2, rel=1e-9)
    expected = 2 / math.pi * math.asin(2 * variance / (1 + 2 * variance))
    assert variance_map(torch.erf, variance) == pytest.approx(expected, rel=1e-9)


def test_no_variance_leaves_the_value_at_zero():
    assert variance_map(torch.sigmoid, 0.0) == 0.25


def test_monte_carlo_agrees():
    a, b = torch.randn(2, 400_000, dtype=torch.float64)
    u, v = a, 0.8 * a + 0.6 * b
    expected = (F.mish(u) * F.mish(v)).mean() / F.mish(u).square().mean()
    assert cosine_map(F.mish, 0.8) == pytest.approx(float(expected), abs=5e-3)


def test_zero_has_no_direction():
    with pytest.raises(ModelError, match="zero everywhere"):
        cosine_map(torch.zeros_like, 0.5)
