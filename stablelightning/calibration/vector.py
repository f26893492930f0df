"""Vector scaling: a weight and a bias for each class."""

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
from stablelightning.functional.calibrate import fit_scores, scale_scores
from stablelightning.model.prediction import Prediction


class VectorScaling(Calibrator):
    """Scale and shift the logarithms of the probabilities, each class by numbers of its own.

    It mends classes that are predicted too often or too rarely as well, and can change which class
    is the most probable; it needs more rows than one temperature does, some of every class.

    Attributes:
        weight: ``(C,)``, 1 where nothing is changed.
        bias: ``(C,)``, 0 where nothing is changed.

    Source:
        Guo et al. 2017, arXiv:1706.04599, section 4.2.

    Example:
        >>> from stablelightning.model.plain_prediction import plain_prediction
        >>> rows = plain_prediction(torch.tensor([[0.9, 0.1]] * 20))
        >>> scaling = VectorScaling().fit(rows, torch.tensor([0, 1] * 10))
        >>> bool((scaling(rows).mean[0] - 0.5).abs().max() < 0.01)
        True
    """

    tasks = ("classification",)
    name: ClassVar[str] = "vector"
    least_rows: ClassVar[int] = 20

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = torch.empty(0), torch.empty(0)

    def _fit(self, prediction: Prediction, target: Tensor, rows: Tensor | None) -> None:
        target = check_classes(prediction, target, who=type(self).__name__)
        weight, bias = fit_scores(prediction.mean, target)
        self.weight, self.bias = weight.cpu(), bias.cpu()

    def _apply(self, prediction: Prediction, rows: Tensor | None) -> Prediction:
        dim = check_applied(prediction, who=type(self).__name__)
        mean = scale_scores(prediction.mean, self.weight, self.bias, dim=dim)
        samples = sample_probabilities(prediction)
        if samples is not None:
            samples = scale_scores(samples, self.weight, self.bias, dim=dim + 1)
        return with_mean(prediction, mean, samples)

    def _state(self) -> dict[str, Any]:
        return {"weight": self.weight, "bias": self.bias}

    def _load(self, state: dict[str, Any]) -> None:
        self.weight, self.bias = state["weight"], state["bias"]
