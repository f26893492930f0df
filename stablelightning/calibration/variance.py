"""Variance scaling: one factor that makes a regression's variance as wide as its errors."""

from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from stablelightning.calibration.base import Calibrator
from stablelightning.functional.recalibrate import variance_factor
from stablelightning.model.prediction import Prediction
from stablelightning.model.summarize import select_output
from stablelightning.nn.heads import Gaussian


class VarianceScaling(Calibrator):
    """Multiply the variance by one factor, at which the targets are the most likely.

    Both its parts are scaled alike, the mean is left, and samples that were kept move towards it or
    away from it, so that they have the new variance. Several outputs have a factor each.

    A model that predicts no variance, and is not sampled, gets one that is the same for all rows:
    the mean squared error, as aleatoric part.

    Attributes:
        factor: above 1 where the model was too sure of itself; a scalar, or ``(D,)``.
        noise: what is added to the variance, in squared target units; 0 where it has one.

    Source:
        Laves et al. 2020, arXiv:2104.12376; in closed form, see
        :func:`~stablelightning.functional.recalibrate.variance_factor`.

    Example:
        >>> from stablelightning.model.plain_prediction import plain_prediction
        >>> rows = plain_prediction(Gaussian(torch.zeros(10), torch.ones(10)), task="regression")
        >>> scaling = VarianceScaling().fit(rows, torch.tensor([2.0, -2.0] * 5))
        >>> scaling(rows).variance[0]
        tensor(4.)
    """

    tasks = ("regression",)
    name: ClassVar[str] = "variance"
    least_rows: ClassVar[int] = 10

    def __init__(self) -> None:
        super().__init__()
        self.factor = torch.ones((), dtype=torch.float64)
        self.noise = torch.zeros((), dtype=torch.float64)

    def _fit(self, prediction: Prediction, target: Tensor, rows: Tensor | None) -> None:
        without = not bool((prediction.total != 0).any())
        variance = torch.ones_like(prediction.total) if without else prediction.total
        found = variance_factor(prediction.mean, variance, target).cpu()
        self.factor = torch.ones_like(found) if without else found
        self.noise = found if without else torch.zeros_like(found)

    def _apply(self, prediction: Prediction, rows: Tensor | None) -> Prediction:
        factor, noise = self.factor.to(prediction.total), self.noise.to(prediction.total)
        return replace(
            prediction,
            total=prediction.total * factor + noise,
            aleatoric=prediction.aleatoric * factor + noise,
            epistemic=prediction.epistemic * factor,
            samples=_spread(prediction, factor),
        )

    def _state(self) -> dict[str, Any]:
        return {"factor": self.factor, "noise": self.noise}

    def _load(self, state: dict[str, Any]) -> None:
        self.factor, self.noise = state["factor"], state["noise"]


def _spread(prediction: Prediction, factor: Tensor) -> Any:
    if prediction.samples is None:
        return None
    samples, centre = select_output(prediction.samples), prediction.mean
    if isinstance(samples, Gaussian):
        mean = centre + (samples.mean - centre) * factor.sqrt()
        return Gaussian(mean, samples.variance * factor)
    if isinstance(samples, Tensor):
        return centre + (samples - centre) * factor.sqrt()
    return None  # levels of a quantile head say nothing of a variance
