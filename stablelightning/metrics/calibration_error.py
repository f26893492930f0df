"""Calibration errors that torchmetrics does not have: of equal mass, and per class."""

from typing import Any

from torch import Tensor

from stablelightning.checks import check_whole
from stablelightning.functional.calibration_error import (
    classwise_error_of,
    equal_mass_bound_of,
    equal_mass_error_of,
    top_gaps,
)
from stablelightning.functional.rank_groups import RankGroups
from stablelightning.metrics.base import RankMetric, checked_rows
from stablelightning.metrics.brier import ClassBinMetric
from stablelightning.model.prediction import Prediction


class AdaptiveCalibrationError(RankMetric):
    """Mean gap of confidence and accuracy over bins that each hold the same number of rows.

    In [0, 1]; smaller is better. For bins of equal width there is torchmetrics'
    ``MulticlassCalibrationError``.

    Args:
        bins: >= 1.
        exact: keep every confidence; otherwise those that differ by less than a thousandth of their
            distance to 1 may be shared between two bins, and :meth:`bounds` says what that does.
        **kwargs: of torchmetrics' ``Metric``.

    Source:
        Nguyen, O'Connor 2015, arXiv:1508.05154; Mukhoti et al. 2020, arXiv:2002.09437.

    Example:
        >>> import torch
        >>> metric = AdaptiveCalibrationError(bins=2)
        >>> probabilities = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.7, 0.3], [0.8, 0.2]])
        >>> metric.update(probabilities, torch.tensor([0, 1, 0, 0]))
        >>> metric.compute()
        tensor(0.1500)
    """

    higher_is_better = False
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0
    _concern = "equal_mass"

    def __init__(self, *, bins: int = 15, exact: bool = False, **kwargs: Any) -> None:
        super().__init__(exact=exact, **kwargs)
        check_whole("bins", bins, least=1, hint="15 is usual")
        self.bins = bins

    def update(self, prediction: Tensor | Prediction, target: Tensor) -> None:
        """Add rows.

        Args:
            prediction: probabilities ``(N, C, ...)``, or ``(N, ...)`` of labels, or a Prediction.
            target: class indices ``(N, ...)``, or 0 and 1 in the shape of the labels.

        Raises:
            DataError: what are no probabilities, or targets that do not fit.
        """
        confidence, gap = top_gaps(*checked_rows(prediction, target))
        self._add(1 - confidence.double(), gap)  # bins are finest at 0

    def _of(self, groups: RankGroups) -> Tensor:
        return equal_mass_error_of(groups, self.bins)

    def _ends(self, groups: RankGroups) -> tuple[Tensor, Tensor]:
        value, bound = self._of(groups), equal_mass_bound_of(groups, self.bins)
        return (value - bound).clamp(min=0), (value + bound).clamp(max=1)


class ClasswiseCalibrationError(ClassBinMetric):
    """Mean over the classes of the gap between a class's probability and its frequency.

    In [0, 1]; smaller is better. Exact, 5 * C * bins numbers.

    Args:
        num_classes: C; 1 for independent labels.
        bins: of equal width, >= 1.
        **kwargs: of torchmetrics' ``Metric``.

    Source:
        Kull et al. 2019, arXiv:1910.12656, equation 4; Nixon et al. 2019, arXiv:1904.01685.

    Example:
        >>> import torch
        >>> metric = ClasswiseCalibrationError(num_classes=2)
        >>> metric.update(torch.tensor([[0.75, 0.25], [0.25, 0.75]]), torch.tensor([0, 1]))
        >>> metric.compute()
        tensor(0.2500)
    """

    higher_is_better = False
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0

    def _value(self) -> Tensor:
        return classwise_error_of(self._sum("sums")).float()
