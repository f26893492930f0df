"""Isotonic calibration: a rising curve for each class."""

from typing import Any, ClassVar

import torch
from torch import Tensor

from stablelightning.calibration.base import Calibrator
from stablelightning.calibration.classes import (
    check_applied,
    check_classes,
    sample_probabilities,
    with_mean,
)
from stablelightning.functional.recalibrate import interpolated
from stablelightning.functional.scores import at_least_single
from stablelightning.model.prediction import Prediction
from stablelightning.optional import require


class IsotonicCalibration(Calibrator):
    """Map the probability of each class to how often it came true, by a curve that only rises.

    One curve per class against the others, then all are divided by their sum. It takes any shape of
    miscalibration, and many rows: some hundreds. What n rows never saw is taken to be as rare as
    ``1 / (n + 2)``, not impossible.

    Attributes:
        curves: for each class the probabilities where its curve bends, and its height there.

    Raises:
        MissingPackageError: when fitted: scikit-learn is not installed.

    Source:
        Zadrozny, Elkan 2002, "Transforming classifier scores into accurate multiclass probability
        estimates"; the floor is Laplace's rule of succession.

    Example:
        >>> from stablelightning.model.plain_prediction import plain_prediction
        >>> rows = plain_prediction(torch.tensor([[0.9, 0.1]] * 40))
        >>> IsotonicCalibration().fit(rows, torch.tensor([0, 1] * 20))(rows).mean[0]
        tensor([0.5000, 0.5000])
    """

    tasks = ("classification",)
    name: ClassVar[str] = "isotonic"
    least_rows: ClassVar[int] = 30

    def __init__(self) -> None:
        super().__init__()
        self.curves: list[tuple[Tensor, Tensor]] = []

    def _fit(self, prediction: Prediction, target: Tensor, rows: Tensor | None) -> None:
        isotonic = require("sklearn.isotonic", extra="recipes")
        target = check_classes(prediction, target, who=type(self).__name__).cpu()
        mean = prediction.mean.double().cpu()
        rarest = 1 / (len(target) + 2)
        self.curves = []
        for number in range(mean.shape[1]):
            curve = isotonic.IsotonicRegression(y_min=rarest, y_max=1 - rarest)
            curve.fit(mean[:, number].numpy(), (target == number).double().numpy())
            knots = (curve.X_thresholds_, curve.y_thresholds_)
            x, y = (torch.as_tensor(knot, dtype=torch.float64).clone() for knot in knots)
            self.curves.append((x, y))

    def _apply(self, prediction: Prediction, rows: Tensor | None) -> Prediction:
        dim = check_applied(prediction, who=type(self).__name__)
        samples = sample_probabilities(prediction)
        if samples is not None:
            samples = self._curved(samples, dim + 1)
        return with_mean(prediction, self._curved(prediction.mean, dim), samples)

    def _curved(self, probabilities: Tensor, dim: int) -> Tensor:
        probabilities = at_least_single(probabilities)
        parts = [
            interpolated(part.double(), x, y)
            for part, (x, y) in zip(probabilities.unbind(dim), self.curves, strict=True)
        ]
        heights = torch.stack(parts, dim)
        return (heights / heights.sum(dim, keepdim=True)).to(probabilities.dtype)

    def _state(self) -> dict[str, Any]:
        return {"curves": [list(curve) for curve in self.curves]}

    def _load(self, state: dict[str, Any]) -> None:
        self.curves = [(x, y) for x, y in state["curves"]]
