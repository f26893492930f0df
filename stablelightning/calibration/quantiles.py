"""Quantile recalibration: intervals as wide, and as lopsided, as the errors are."""

from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from stablelightning.calibration.base import Calibrator
from stablelightning.errors import DataError
from stablelightning.functional.recalibrate import (
    error_moments,
    error_quantiles,
    standardized_errors,
)
from stablelightning.model.prediction import Prediction


class QuantileRecalibration(Calibrator):
    """Let an interval that promises 90% hold 90%, at every level, by the quantiles of the errors.

    The quantiles of the errors in predicted standard deviations take the place of a Gaussian's:
    those of heavy tails, or on one side only. :meth:`stablelightning.Prediction.interval` takes
    them; mean and variance become those of the recalibrated distribution. Samples that were kept
    are let go, as they have another distribution.

    Attributes:
        levels: ascending, in (0, 1).
        quantiles: of the errors at these levels, in predicted standard deviations.

    Source:
        Kuleshov et al. 2018, arXiv:1807.00263.

    Example:
        >>> from stablelightning.model.plain_prediction import plain_prediction
        >>> from stablelightning.nn.heads import Gaussian
        >>> rows = plain_prediction(Gaussian(torch.zeros(99), torch.ones(99)), task="regression")
        >>> recalibration = QuantileRecalibration().fit(rows, torch.linspace(0, 98, 99))
        >>> lower, upper = recalibration(rows).interval(0.9)
        >>> round(float(lower[0]), 2), round(float(upper[0]), 2)
        (4.0, 94.0)
    """

    tasks = ("regression",)
    name: ClassVar[str] = "quantiles"
    least_rows: ClassVar[int] = 20

    def __init__(self) -> None:
        super().__init__()
        self.levels, self.quantiles = torch.empty(0), torch.empty(0)

    def _fit(self, prediction: Prediction, target: Tensor, rows: Tensor | None) -> None:
        errors = standardized_errors(prediction.mean, prediction.total, target)
        if errors.ndim > 1 and errors[0].numel() > 1:
            raise DataError(
                "QuantileRecalibration is for one output, got "
                f"{tuple(prediction.mean.shape)}; fit one for each, or use VarianceScaling."
            )
        levels, quantiles = error_quantiles(errors.reshape(-1))
        if not bool(quantiles[-1] > quantiles[0]):
            raise DataError(
                "QuantileRecalibration needs errors that differ, got "
                f"{float(quantiles[0]):.3g} predicted standard deviations in every row; look at "
                "the targets."
            )
        self.levels, self.quantiles = levels.cpu(), quantiles.cpu()

    def _apply(self, prediction: Prediction, rows: Tensor | None) -> Prediction:
        centre, spread = error_moments(self.levels, self.quantiles)
        moved = (self.quantiles - centre) / spread**0.5
        return replace(
            prediction,
            mean=prediction.mean + centre * prediction.std,
            total=prediction.total * spread,
            aleatoric=prediction.aleatoric * spread,
            epistemic=prediction.epistemic * spread,
            samples=None,
            quantiles=tuple(zip(self.levels.tolist(), moved.tolist(), strict=True)),
        )

    def _state(self) -> dict[str, Any]:
        return {"levels": self.levels, "quantiles": self.quantiles}

    def _load(self, state: dict[str, Any]) -> None:
        self.levels, self.quantiles = state["levels"], state["quantiles"]
