"""Temperature scaling: one number that makes probabilities as sure as they are right."""

from typing import Any, ClassVar

from torch import Tensor

from stablelightning.calibration.base import Calibrator
from stablelightning.calibration.classes import (
    check_applied,
    check_classes,
    sample_probabilities,
    with_mean,
)
from stablelightning.functional.calibrate import fit_temperature, temper
from stablelightning.model.prediction import Prediction


class TemperatureScaling(Calibrator):
    """Divide the logarithms of the probabilities by one temperature, fitted by likelihood.

    Classes keep their order, so that accuracy stays what it was. Of a sampled prediction the mean
    is scaled, after pooling; samples that were kept are scaled by the same temperature.

    Attributes:
        temperature: above 1 where the model was too sure of itself, below 1 where it was not sure
            enough.

    Source:
        Guo et al. 2017, arXiv:1706.04599; pooled before calibration as in Rahaman, Thiery 2021,
        arXiv:2007.08792.

    Example:
        >>> import torch
        >>> from stablelightning.model.plain_prediction import plain_prediction
        >>> sure = plain_prediction(torch.tensor([[0.99, 0.01]] * 12))
        >>> scaling = TemperatureScaling().fit(sure, torch.tensor([0, 0, 0, 1] * 3))
        >>> scaling(sure).mean[0]
        tensor([0.7500, 0.2500])
    """

    tasks = ("classification",)
    name: ClassVar[str] = "temperature"
    least_rows: ClassVar[int] = 10

    def __init__(self) -> None:
        super().__init__()
        self.temperature = 1.0

    def _fit(self, prediction: Prediction, target: Tensor, rows: Tensor | None) -> None:
        target = check_classes(prediction, target, who=type(self).__name__)
        self.temperature = fit_temperature(prediction.mean, target)

    def _apply(self, prediction: Prediction, rows: Tensor | None) -> Prediction:
        dim = check_applied(prediction, who=type(self).__name__)
        mean = temper(prediction.mean, self.temperature, dim=dim)
        samples = sample_probabilities(prediction)
        if samples is not None:
            samples = temper(samples, self.temperature, dim=dim + 1)
        return with_mean(prediction, mean, samples)

    def _state(self) -> dict[str, Any]:
        return {"temperature": self.temperature}

    def _load(self, state: dict[str, Any]) -> None:
        self.temperature = float(state["temperature"])
