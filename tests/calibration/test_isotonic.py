import pytest
import torch

from stablelightning.calibration import IsotonicCalibration
from tests.calibration.test_base import rows

isotonic = pytest.importorskip("sklearn.isotonic")


def test_each_curve_is_that_of_sklearn_and_the_sum_is_one():
    prediction, target = rows(IsotonicCalibration)
    new, _ = rows(IsotonicCalibration, 30, seed=5)
    corrected = IsotonicCalibration().fit(prediction, target)(new)
    rarest = 1 / (len(target) + 2)
    columns = []
    for number in range(3):
        curve = isotonic.IsotonicRegression(y_min=rarest, y_max=1 - rarest, out_of_bounds="clip")
        curve.fit(prediction.mean[:, number].double().numpy(), (target == number).double().numpy())
        columns.append(torch.as_tensor(curve.predict(new.mean[:, number].double().numpy())))
    expected = torch.stack(columns, 1)
    expected = expected / expected.sum(1, keepdim=True)
    torch.testing.assert_close(corrected.mean.double(), expected, atol=1e-6, rtol=0)


def test_what_was_never_seen_is_rare_and_not_impossible():
    prediction, target = rows(IsotonicCalibration)
    corrected = IsotonicCalibration().fit(prediction, target)(prediction)
    assert (corrected.mean > 0.5 / (len(target) + 2)).all()
