from dataclasses import replace

import torch

from stablelightning.calibration import TemperatureScaling
from stablelightning.functional.calibrate import temper
from stablelightning.functional.uncertainty import entropy
from tests.calibration.test_base import rows


def test_the_mean_is_scaled_after_pooling():
    prediction, target = rows(TemperatureScaling, samples=20)
    fitted = TemperatureScaling().fit(prediction, target)
    assert fitted.temperature > 1.2
    corrected = fitted(prediction)
    torch.testing.assert_close(corrected.mean, temper(prediction.mean, fitted.temperature))
    assert torch.equal(corrected.mean.argmax(1), prediction.mean.argmax(1))
    torch.testing.assert_close(corrected.total, entropy(corrected.mean))


def test_kept_samples_are_scaled_and_their_disagreement_is_the_epistemic_part():
    prediction, target = rows(TemperatureScaling, samples=20)
    fitted = TemperatureScaling().fit(prediction, target)
    corrected = fitted(prediction)
    samples = temper(prediction.samples.softmax(2), fitted.temperature, dim=2)
    torch.testing.assert_close(corrected.samples, samples)
    wanted = entropy(corrected.mean) - entropy(samples, dim=2).mean(0)
    torch.testing.assert_close(corrected.epistemic, wanted.clamp(min=0))


def test_without_samples_the_epistemic_part_stays_as_far_as_it_can():
    prediction, target = rows(TemperatureScaling, samples=20)
    prediction = replace(prediction, samples=None)
    corrected = TemperatureScaling().fit(prediction, target)(prediction)
    wanted = torch.minimum(prediction.epistemic, corrected.total)
    torch.testing.assert_close(corrected.epistemic, wanted)
