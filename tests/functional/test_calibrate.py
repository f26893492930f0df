import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from stablelightning.functional.calibrate import (
    HIGHEST_TEMPERATURE,
    LOWEST_TEMPERATURE,
    PULL,
    fit_scores,
    fit_temperature,
    log_probabilities,
    scale_scores,
    temper,
)


def drawn(seed: int, rows: int = 400, classes: int = 4, sharpness: float = 1.0):
    """Targets drawn from the probabilities of logits, and those logits made too sharp."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(rows, classes, generator=generator, dtype=torch.float64)
    target = torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]
    return (sharpness * logits).softmax(1), target


def loss(probabilities, target, temperature: float) -> float:
    return F.cross_entropy(log_probabilities(probabilities) / temperature, target).item()


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 10_000), st.floats(0.3, 6))
def test_no_temperature_of_a_fine_grid_is_better(seed, sharpness):
    probabilities, target = drawn(seed, rows=120, sharpness=sharpness)
    fitted = fit_temperature(probabilities, target)
    grid = torch.linspace(math.log(LOWEST_TEMPERATURE), math.log(HIGHEST_TEMPERATURE), 2001).exp()
    best = min(loss(probabilities, target, float(t)) for t in grid)
    assert loss(probabilities, target, fitted) <= best + 1e-12


def test_the_slope_at_the_optimum_is_none():
    probabilities, target = drawn(1, sharpness=3.0)
    at = torch.tensor(math.log(fit_temperature(probabilities, target)), dtype=torch.float64)
    at.requires_grad_()
    F.cross_entropy(log_probabilities(probabilities) / at.exp(), target).backward()
    assert abs(at.grad) < 1e-6


def test_it_finds_the_temperature_that_made_logits_too_sharp():
    probabilities, target = drawn(2, rows=20_000, sharpness=3.0)
    assert fit_temperature(probabilities, target) == pytest.approx(3.0, rel=0.05)


def test_where_every_row_is_right_one_error_is_imagined_in_the_least_certain():
    """Otherwise the likelihood grows for ever as the temperature falls."""
    probabilities = torch.tensor([[0.6, 0.4], [0.3, 0.7]] * 5)
    target = torch.tensor([0, 1] * 5)
    more = torch.cat([probabilities, probabilities[:1]]), torch.cat([target, torch.tensor([1])])
    fitted = fit_temperature(probabilities, target)
    assert fitted == pytest.approx(fit_temperature(*more))
    assert LOWEST_TEMPERATURE < fitted < 1


def test_where_most_rows_are_wrong_it_stops_at_the_other():
    probabilities = torch.tensor([[0.6, 0.4], [0.3, 0.7]] * 5)
    fitted = fit_temperature(probabilities, torch.tensor([1, 0] * 5))
    assert fitted == pytest.approx(HIGHEST_TEMPERATURE)


def test_where_no_temperature_changes_anything_it_is_one():
    assert fit_temperature(torch.full((6, 3), 1 / 3), torch.tensor([0, 1, 2] * 2)) == 1.0


def test_probabilities_of_zero_are_no_obstacle():
    probabilities = torch.tensor([[1.0, 0.0]] * 9 + [[1.0, 0.0]])
    target = torch.tensor([0] * 9 + [1])
    mean = temper(probabilities[:1], fit_temperature(probabilities, target))
    torch.testing.assert_close(mean, torch.tensor([[0.9, 0.1]]), atol=1e-4, rtol=0)


def test_it_is_fitted_in_inference_mode_too():
    probabilities, target = drawn(3)
    expected = fit_temperature(probabilities, target)
    with torch.inference_mode():
        assert fit_temperature(probabilities.clone(), target.clone()) == expected


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10_000), st.floats(0.1, 10))
def test_tempering_is_a_softmax_of_scaled_logits_and_keeps_the_order(seed, temperature):
    logits = torch.randn(5, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    tempered = temper(logits.softmax(1), temperature)
    torch.testing.assert_close(tempered, (logits / temperature).softmax(1))
    assert torch.equal(tempered.argsort(1), logits.argsort(1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_comes_back_as_single(dtype):
    assert temper(torch.tensor([[0.75, 0.25]], dtype=dtype), 1.0).dtype == torch.float32


def test_classes_on_another_axis():
    probabilities, _ = drawn(4)
    last = temper(probabilities, 2.0)
    torch.testing.assert_close(temper(probabilities.T, 2.0, dim=0), last.T)


def test_weights_and_biases_are_at_the_optimum():
    probabilities, target = drawn(5, sharpness=2.0)
    weight, bias = fit_scores(probabilities, target)
    weight.requires_grad_(), bias.requires_grad_()
    value = F.cross_entropy(log_probabilities(probabilities) * weight + bias, target)
    value = value + PULL * ((weight - 1).square().sum() + bias.square().sum())
    slopes = torch.autograd.grad(value, (weight, bias))
    assert max(float(slope.abs().max()) for slope in slopes) < 1e-6


def test_scores_beat_a_temperature_where_classes_differ():
    probabilities, target = drawn(6, rows=4000)
    skewed = scale_scores(
        probabilities,
        torch.tensor([3.0, 1.0, 0.5, 1.0], dtype=torch.float64),
        torch.tensor([0.0, 2.0, 0.0, -1.0], dtype=torch.float64),
    )
    mended = scale_scores(skewed, *fit_scores(skewed, target))
    tempered = temper(skewed, fit_temperature(skewed, target))
    nll = [F.nll_loss(p.log(), target).item() for p in (probabilities, mended, tempered)]
    assert nll[1] == pytest.approx(nll[0], abs=0.03)
    assert nll[2] > nll[1] + 0.05


def test_classes_that_can_be_told_apart_exactly_keep_finite_numbers():
    probabilities = torch.tensor([[0.9, 0.1], [0.2, 0.8]] * 10)
    weight, bias = fit_scores(probabilities, torch.tensor([0, 1] * 10))
    assert weight.isfinite().all()
    assert bias.isfinite().all()
