import torch

from stablelightning.calibration import VarianceScaling
from stablelightning.functional.uncertainty import law_of_total_variance
from stablelightning.model.plain_prediction import plain_prediction
from stablelightning.nn.heads import Gaussian
from tests.calibration.test_base import rows


def test_the_mean_square_of_the_errors_is_one_afterwards():
    prediction, target = rows(VarianceScaling)
    corrected = VarianceScaling().fit(prediction, target)(prediction)
    assert torch.equal(corrected.mean, prediction.mean)
    errors = (target - corrected.mean) / corrected.std
    torch.testing.assert_close(errors.square().mean(), torch.tensor(1.0))


def test_samples_have_the_variance_that_is_told():
    prediction, target = rows(VarianceScaling, samples=20)
    corrected = VarianceScaling().fit(prediction, target)(prediction)
    split = law_of_total_variance(*corrected.samples)
    torch.testing.assert_close(corrected.samples.mean.mean(0), prediction.mean)
    torch.testing.assert_close(split.total, corrected.total)
    torch.testing.assert_close(split.epistemic, corrected.epistemic)


def test_outputs_are_scaled_each_by_its_own_factor():
    both = Gaussian(torch.zeros(10, 2), torch.ones(10, 2))
    prediction = plain_prediction(both, task="regression")
    target = torch.tensor([[2.0, 0.5]] * 10)
    corrected = VarianceScaling().fit(prediction, target)(prediction)
    torch.testing.assert_close(corrected.total[0], torch.tensor([4.0, 0.25]))


def test_a_model_without_a_variance_gets_the_mean_squared_error():
    prediction = plain_prediction(torch.zeros(10), task="regression")
    corrected = VarianceScaling().fit(prediction, torch.tensor([1.0, -3.0] * 5))(prediction)
    torch.testing.assert_close(corrected.total, torch.full((10,), 5.0))
    torch.testing.assert_close(corrected.aleatoric, corrected.total)
