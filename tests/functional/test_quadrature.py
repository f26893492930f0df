import math

import pytest
import torch
import torch.nn.functional as F

from stablelightning.functional.quadrature import derivative, gaussian_expectation, resolve


@pytest.mark.parametrize(
    ("function", "kinks"),
    [
        (torch.relu, [0.0]),
        (F.hardtanh, [-1.0, 1.0]),
        (F.hardswish, [-3.0, 3.0]),
        (torch.sign, [0.0]),
        (
            lambda x: F.relu(x - 0.123456789) + (3 * x + 1.1).clamp(-1, 1),
            [-0.7, -1 / 30, 0.123456789],
        ),
        (lambda x: F.relu(x - 0.1) - F.relu(x - 0.10001), [0.1, 0.10001]),
        (torch.tanh, []),
        (F.gelu, []),
        (lambda x: torch.tanh(100 * x), []),
        (lambda x: torch.sin(50 * x), []),
    ],
)
def test_kinks_are_found_and_smooth_places_are_not(function, kinks):
    found = resolve(function).kinks
    assert found.shape == (len(kinks),)
    torch.testing.assert_close(found, torch.tensor(kinks, dtype=torch.float64), atol=1e-11, rtol=0)


def test_a_steep_function_gets_narrower_panels_and_stays_exact():
    steep = resolve(lambda x: torch.tanh(100 * x))
    assert steep.edges.diff().min() < resolve(torch.tanh).edges.diff().min()
    # As tanh's square is 1 less its slope: E[tanh^2(a z)] = 1 - E[tanh'(a z)].
    square = gaussian_expectation(lambda x: torch.tanh(100 * x).square())
    slope = gaussian_expectation(lambda x: derivative(torch.tanh, 100 * x))
    assert square == pytest.approx(1 - slope, abs=1e-12)


def test_moments_of_the_normal_distribution():
    for power, moment in ((0, 1), (1, 0), (2, 1), (3, 0), (4, 3), (6, 15), (8, 105)):
        value = gaussian_expectation(lambda x, p=power: x**p)
        assert value == pytest.approx(moment, abs=1e-9)


def test_noise_ends_the_halving():
    """A function in float32 is never smooth to eleven digits; its expectation is right to seven."""
    panels = resolve(lambda x: F.gelu(x.float()))
    assert len(panels.edges) < 5000
    assert gaussian_expectation(lambda x: F.gelu(x.float())) == pytest.approx(
        1 / (2 * math.sqrt(math.pi)), abs=1e-7
    )


def test_the_slope_of_what_has_no_graph_is_zero():
    x = torch.randn(3)
    assert derivative(lambda x: x.detach().floor(), x).tolist() == [0, 0, 0]
    assert derivative(torch.floor, x).tolist() == [0, 0, 0]
    assert not x.requires_grad
