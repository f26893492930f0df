"""Probes agree with refitting without each row, and say nothing where there is nothing."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stablelightning.errors import DataError
from stablelightning.functional.probe import _left_out, probe_accuracy, probe_r2

sklearn_linear = pytest.importorskip("sklearn.linear_model")


def separable(rows=60, classes=3, width=8, distance=6.0):
    labels = torch.arange(rows) % classes
    features = torch.randn(rows, width)
    features[torch.arange(rows), labels] += distance
    return features, labels


@pytest.mark.parametrize("shape", [(30, 5), (12, 40)])
def test_leaving_a_row_out_equals_fitting_without_it(shape):
    """The formula is exact: another library's ridge, fitted once for each row."""
    rows, width = shape
    features = torch.randn(rows, width, dtype=torch.float64)
    features = (features - features.mean(0)) / features.std(0, correction=0)
    target = features[:, :1] + torch.randn(rows, 1, dtype=torch.float64)
    squares = torch.linalg.svdvals(features).square()
    mean = squares[squares > 1e-12 * squares[0]].mean()
    errors = []
    predicted = []
    for exponent in range(-4, 3):
        model = sklearn_linear.Ridge(alpha=float(10.0**exponent * mean), tol=1e-12)
        row_by_row = []
        for row in range(rows):
            others = torch.arange(rows) != row
            model.fit(features[others].numpy(), target[others, 0].numpy())
            row_by_row.append(model.predict(features[row : row + 1].numpy())[0])
        predicted.append(torch.tensor(row_by_row))
        errors.append(float((predicted[-1] - target[:, 0]).square().sum()))
    best = predicted[errors.index(min(errors))]
    assert torch.allclose(_left_out(features, target)[:, 0], best, atol=1e-8)


def test_classes_that_can_be_told_apart_are():
    score = probe_accuracy(*separable())
    assert score.value > 0.95
    assert score.chance == pytest.approx(1 / 3)
    assert score.share > 0.9


def test_noise_comes_to_chance_whatever_the_shares_of_the_classes():
    labels = torch.tensor([0] * 300 + [1] * 60 + [2] * 40)
    scores = [probe_accuracy(torch.randn(400, 6), labels) for _ in range(8)]
    mean = sum(score.value for score in scores) / 8
    assert abs(mean - 1 / 3) < 3 * scores[0].error / 8**0.5 + 0.01


def test_few_rows_of_noise_do_not_fall_below_chance():
    """Leaving one row out tells its class by what is missing; that is taken away."""
    labels = torch.arange(20) % 2
    scores = [probe_accuracy(torch.randn(20, 50), labels).value for _ in range(60)]
    assert sum(scores) / 60 == pytest.approx(0.5, abs=0.06)


def test_the_error_is_about_the_spread_between_draws():
    scores = [probe_accuracy(*separable(rows=90, distance=2.0)) for _ in range(40)]
    values = torch.tensor([score.value for score in scores])
    told = sum(score.error for score in scores) / 40
    assert 0.5 < told / float(values.std()) < 2


@given(st.floats(0.01, 100), st.floats(-50, 50))
@settings(max_examples=15, deadline=None)
def test_scale_and_shift_of_features_make_no_difference(scale, shift):
    torch.manual_seed(0)
    features, labels = separable(distance=2.0)
    moved = features.double() * scale + shift
    first, second = probe_accuracy(features, labels), probe_accuracy(moved, labels)
    assert first.value == pytest.approx(second.value, abs=0.02)


def test_constant_features_are_worth_nothing():
    features, labels = separable()
    assert probe_accuracy(torch.ones(60, 5), labels).value == pytest.approx(1 / 3, abs=0.01)
    padded = torch.cat([features, torch.ones(60, 5)], 1)
    assert probe_accuracy(padded, labels).value == probe_accuracy(features, labels).value


def test_the_names_of_the_classes_make_no_difference():
    features, labels = separable(distance=2.0)
    assert probe_accuracy(features, 7 * labels - 3) == probe_accuracy(features, labels)


def test_a_linear_target_is_explained_and_noise_is_not():
    x = torch.randn(100, 4)
    y = x @ torch.randn(4, 2)
    assert probe_r2(x, y).value > 0.999
    assert abs(probe_r2(x, torch.randn(100)).value) < 0.1
    half = probe_r2(x, torch.stack([x[:, 0], torch.randn(100)], 1))
    assert half.value == pytest.approx(0.5, abs=0.1)
    assert 0 < half.error < 0.2


def test_half_precision_features_are_taken():
    features, labels = separable()
    assert probe_accuracy(features.to(torch.bfloat16), labels).value > 0.95


@pytest.mark.parametrize(
    ("features", "labels", "says"),
    [
        (torch.ones(4, 2, 2), torch.arange(4), r"features \(N, D\)"),
        (torch.ones(4, 2), torch.arange(3), r"features \(N, D\)"),
        (torch.ones(4, 2), torch.zeros(4).long(), "two classes with two rows"),
        (torch.ones(4, 2), torch.arange(4), "two classes with two rows"),
        (torch.full((4, 2), torch.nan), torch.arange(4) % 2, "must be finite, and 8 of 8"),
    ],
)
def test_what_cannot_be_probed_is_refused(features, labels, says):
    with pytest.raises(DataError, match=says):
        probe_accuracy(features, labels)


def test_targets_that_do_not_vary_are_refused():
    with pytest.raises(DataError, match="targets differ"):
        probe_r2(torch.randn(5, 2), torch.ones(5))
