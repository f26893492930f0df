import torch
import torch.nn.functional as F

from stablelightning.calibration import TemperatureScaling, VectorScaling
from stablelightning.functional.calibrate import scale_scores
from tests.calibration.test_base import rows


def test_it_is_at_least_as_likely_as_a_temperature_on_its_rows():
    prediction, target = rows(VectorScaling)
    nll = [
        F.nll_loss(kind().fit(prediction, target)(prediction).mean.log(), target)
        for kind in (VectorScaling, TemperatureScaling)
    ]
    assert nll[0] <= nll[1] + 1e-4  # the small pull towards doing nothing


def test_samples_are_scaled_as_the_mean_is():
    prediction, target = rows(VectorScaling, samples=10)
    fitted = VectorScaling().fit(prediction, target)
    samples = scale_scores(prediction.samples.softmax(2), fitted.weight, fitted.bias, dim=2)
    torch.testing.assert_close(fitted(prediction).samples, samples)
