from dataclasses import replace

import pytest
import torch

from stablelightning.calibration import (
    IsotonicCalibration,
    QuantileRecalibration,
    TemperatureScaling,
    VarianceScaling,
    VectorScaling,
)
from stablelightning.errors import DataError, ModelError
from stablelightning.model.plain_prediction import plain_prediction, sampled_prediction
from stablelightning.nn.heads import Gaussian

OF_CLASSES = (TemperatureScaling, VectorScaling, IsotonicCalibration)
OF_VALUES = (VarianceScaling, QuantileRecalibration)
every_one = pytest.mark.parametrize("kind", [*OF_CLASSES, *OF_VALUES], ids=lambda k: k.__name__)
of_classes = pytest.mark.parametrize("kind", OF_CLASSES, ids=lambda k: k.__name__)
of_values = pytest.mark.parametrize("kind", OF_VALUES, ids=lambda k: k.__name__)
ROWS = 200


def rows(kind, count: int = ROWS, *, seed: int = 0, samples: int = 0):
    """Predictions that are too sure, and their targets."""
    generator = torch.Generator().manual_seed(seed)
    if kind in OF_CLASSES:
        logits = torch.randn(count, 3, generator=generator)
        target = torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]
        if not samples:
            return plain_prediction(3 * logits), target
        noise = torch.randn(samples, count, 3, generator=generator)
        return sampled_prediction(3 * (logits + noise)), target
    mean = torch.randn(count, generator=generator)
    target = mean + 0.2 + 3 * torch.randn(count, generator=generator)
    if not samples:
        gaussian = Gaussian(mean, torch.ones(count))
        return plain_prediction(gaussian, task="regression"), target
    means = mean + torch.randn(samples, count, generator=generator)
    gaussian = Gaussian(means, torch.ones(samples, count))
    return sampled_prediction(gaussian, task="regression"), target


def all_alike(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(all_alike, a, b))
    return a == b


@every_one
def test_its_state_makes_another_one_correct_alike(kind, tmp_path):
    prediction, target = rows(kind)
    fitted = kind().fit(prediction, target, rows=torch.arange(ROWS))
    torch.save(fitted.state_dict(), tmp_path / "state.pt")
    other = kind()
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    new, _ = rows(kind, 7, seed=1)
    assert torch.equal(other(new).mean, fitted(new).mean)
    assert torch.equal(other(new).total, fitted(new).total)
    assert all_alike(list(other.state_dict().values()), list(fitted.state_dict().values()))
    assert other.seen(torch.tensor([3, ROWS])) == 1


@every_one
@pytest.mark.parametrize("samples", [0, 20], ids=["plain", "sampled"])
def test_the_parts_of_the_uncertainty_add_up(kind, samples):
    prediction, target = rows(kind, samples=samples)
    corrected = kind().fit(prediction, target)(prediction)
    assert corrected.corrected == (kind.name,)
    parts = corrected.aleatoric + corrected.epistemic
    torch.testing.assert_close(parts, corrected.total, atol=1e-5, rtol=1e-4)
    assert (corrected.epistemic >= 0).all()
    assert (corrected.aleatoric >= -1e-6).all()
    if kind in OF_CLASSES:
        torch.testing.assert_close(corrected.mean.sum(1), torch.ones(ROWS))


@of_classes
def test_half_precision_is_calibrated_as_single(kind):
    prediction, target = rows(kind)
    half = replace(prediction, mean=prediction.mean.bfloat16())
    corrected = kind().fit(half, target)(half).mean
    assert corrected.dtype == torch.float32
    whole = kind().fit(prediction, target)(prediction).mean
    assert (corrected - whole).abs().mean() < 0.01


@of_classes
def test_dense_probabilities_are_corrected_pixel_by_pixel(kind):
    prediction, target = rows(kind)
    fitted = kind().fit(prediction, target)
    flat, _ = rows(kind, 12, seed=2)
    dense = plain_prediction(flat.mean.view(3, 4, 3).movedim(2, 1))
    assert dense.mean.shape == (3, 3, 4)
    corrected = fitted(dense).mean.movedim(1, 2).reshape(12, 3)
    torch.testing.assert_close(corrected, fitted(flat).mean)


@every_one
def test_before_it_is_fitted_it_says_so(kind):
    with pytest.raises(ModelError, match="must be fitted before it is applied"):
        kind()(rows(kind)[0])
    assert kind().state_dict() == {}


@every_one
def test_rows_that_it_was_fitted_on_are_refused(kind):
    prediction, target = rows(kind)
    fitted = kind().fit(prediction, target, rows=torch.arange(ROWS))
    with pytest.raises(DataError, match="judged by the rows that it was fitted on"):
        fitted(prediction, rows=torch.arange(ROWS))
    fitted(prediction, rows=torch.arange(ROWS) + ROWS // 2 + 1)


@every_one
def test_too_few_rows_are_refused_with_their_number(kind):
    prediction, target = rows(kind, kind.least_rows - 1)
    with pytest.raises(DataError, match=f"needs {kind.least_rows} calibration rows or more"):
        kind().fit(prediction, target)


@every_one
def test_nan_is_refused(kind):
    prediction, target = rows(kind)
    prediction.mean[3] = float("nan")
    with pytest.raises(DataError, match="finite predictions and targets, got NaN"):
        kind().fit(prediction, target)


@of_values
def test_nan_in_the_target_is_refused(kind):
    prediction, target = rows(kind)
    target[3] = float("nan")
    with pytest.raises(DataError, match="finite predictions and targets, got NaN"):
        kind().fit(prediction, target)


@every_one
def test_another_number_of_targets_is_refused(kind):
    prediction, target = rows(kind)
    with pytest.raises(DataError, match="every row needs a target"):
        kind().fit(prediction, target[:-1])


@every_one
def test_a_prediction_of_another_task_is_refused(kind):
    other = OF_VALUES[0] if kind in OF_CLASSES else OF_CLASSES[0]
    with pytest.raises(ModelError, match="take another calibrator"):
        kind().fit(*rows(other))


@of_classes
def test_one_class_only_is_refused(kind):
    prediction, _ = rows(kind)
    with pytest.raises(DataError, match=f"two classes or more, got {ROWS} rows of class 2 only"):
        kind().fit(prediction, torch.full((ROWS,), 2))


@of_classes
def test_targets_that_are_no_classes_are_refused(kind):
    prediction, target = rows(kind)
    with pytest.raises(DataError, match=r"classes in 0\.\.2, got -1"):
        kind().fit(prediction, target.where(target > 0, torch.tensor(-1)))


@of_classes
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda mean: mean.logit(), "look like logits; apply softmax"),
        (lambda mean: mean / 2, "sum to one, got a sum of 0.5"),
    ],
    ids=["logits", "sums"],
)
def test_what_is_no_distribution_is_refused(kind, change, said):
    prediction, target = rows(kind)
    with pytest.raises(DataError, match=said) as told:
        kind().fit(replace(prediction, mean=change(prediction.mean)), target)
    assert "\n" not in str(told.value)


def test_a_regression_without_a_variance_is_told_what_it_lacks():
    prediction = plain_prediction(torch.zeros(ROWS), task="regression")
    with pytest.raises(DataError, match="give the model a variance head, or sample it"):
        QuantileRecalibration().fit(prediction, torch.ones(ROWS))


@of_classes
@pytest.mark.parametrize(
    ("spoil", "says"),
    [(lambda mean: mean / 2, "sum to one"), (lambda mean: 9 * mean - 4, "look like logits")],
)
def test_what_is_no_distribution_is_not_corrected_either(kind, spoil, says):
    prediction, target = rows(kind)
    fitted = kind().fit(prediction, target)
    with pytest.raises(DataError, match=says):
        fitted(replace(prediction, mean=spoil(prediction.mean)))


@of_classes
def test_a_row_that_is_nan_spoils_no_other(kind):
    prediction, target = rows(kind)
    fitted = kind().fit(prediction, target)
    mean = prediction.mean.clone()
    mean[3] = float("nan")
    corrected = fitted(replace(prediction, mean=mean)).mean
    assert corrected.isfinite().all(1).tolist() == [row != 3 for row in range(ROWS)]


@of_classes
def test_targets_between_two_classes_are_refused(kind):
    prediction, target = rows(kind)
    with pytest.raises(DataError, match="must be class indices, got numbers in between"):
        kind().fit(prediction, target + 0.5)


@of_classes
def test_another_number_of_classes_is_refused(kind):
    fitted = kind().fit(*rows(kind))
    with pytest.raises(ModelError, match="was fitted to a classification of 3 outputs"):
        fitted(plain_prediction(torch.randn(5, 4)))
