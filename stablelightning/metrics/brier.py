"""The Brier score, and its parts."""

from typing import Any

from torch import Tensor

from stablelightning.checks import check_whole
from stablelightning.errors import DataError
from stablelightning.functional.brier import brier_parts_of
from stablelightning.functional.calibration_error import class_bins
from stablelightning.functional.scores import brier_score
from stablelightning.metrics.base import (
    MeanScore,
    UncertaintyMetric,
    check_classes,
    checked_rows,
    probabilities_of,
)
from stablelightning.model.prediction import Prediction


class BrierScore(MeanScore):
    """Mean over the rows of the squared distance of the probabilities to the one-hot target.

    In [0, 2] for classes, in [0, 1] for independent labels; smaller is better. Exact, two numbers.

    Args:
        **kwargs: of torchmetrics' ``Metric``.

    Source:
        Brier 1950, "Verification of forecasts expressed in terms of probability".

    Example:
        >>> import torch
        >>> metric = BrierScore()
        >>> metric.update(torch.tensor([[0.5, 0.5], [0.0, 1.0]]), torch.tensor([0, 1]))
        >>> metric.compute()
        tensor(0.2500)
    """

    higher_is_better = False
    plot_lower_bound = 0.0
    _concern = "brier"

    def update(self, prediction: Tensor | Prediction, target: Tensor) -> None:
        """Add rows.

        Args:
            prediction: probabilities ``(N, C, ...)``, or ``(N, ...)`` of labels, or a Prediction.
            target: class indices ``(N, ...)``, or 0 and 1 in the shape of the labels.

        Raises:
            DataError: what are no probabilities, or targets that do not fit.
        """
        values = brier_score(*checked_rows(prediction, target))
        labels = probabilities_of(prediction).shape == target.shape
        self._add(values / 2 if labels else values)


class ClassBinMetric(UncertaintyMetric):
    """A score of every class's probability, from sums in bins of equal width.

    Args:
        num_classes: C; 1 for independent labels.
        bins: of equal width, >= 1.
        **kwargs: of torchmetrics' ``Metric``.
    """

    _concern = "class_bins"

    def __init__(self, num_classes: int, *, bins: int = 15, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_classes(num_classes)
        check_whole("bins", bins, least=1, hint="15 is usual")
        self.num_classes = num_classes
        self.bins = bins
        self._add_sum("sums", 5, num_classes, bins)

    def update(self, prediction: Tensor | Prediction, target: Tensor) -> None:
        """Add rows.

        Args:
            prediction: probabilities ``(N, C, ...)``, or ``(N, ...)`` of labels, or a Prediction.
            target: class indices ``(N, ...)``, or 0 and 1 in the shape of the labels.

        Raises:
            DataError: what are no probabilities, targets that do not fit, or another number of
                classes.
        """
        probabilities = probabilities_of(prediction)
        sums = class_bins(probabilities, target.to(probabilities.device), bins=self.bins)
        if sums.shape[1] != self.num_classes:
            raise DataError(
                f"the metric was made for num_classes={self.num_classes}, got probabilities of "
                f"{sums.shape[1]}; make one for as many (1 for independent labels)."
            )
        self._increase("sums", sums)


class BrierDecomposition(ClassBinMetric):
    """The Brier score as reliability - resolution + uncertainty + within_bins.

    See :class:`~stablelightning.functional.brier.BrierParts` for what each part means. The identity
    is exact: what bins of finite width hide is the fourth part.

    Args:
        num_classes: C; 1 for independent labels.
        bins: of equal width, >= 1; memory is 5 * C * bins numbers.
        **kwargs: of torchmetrics' ``Metric``.

    Source:
        Murphy 1973, "A new vector partition of the probability score"; Stephenson, Coelho, Jolliffe
        2008, "Two extra components in the Brier score decomposition".

    Example:
        >>> import torch
        >>> metric = BrierDecomposition(num_classes=2)
        >>> metric.update(torch.tensor([[0.75, 0.25], [0.25, 0.75]]), torch.tensor([0, 1]))
        >>> {name: part.item() for name, part in metric.compute().items()}
        {'brier': 0.125, 'reliability': 0.125, 'resolution': 0.5, 'uncertainty': 0.5,
        'within_bins': 0.0}
    """

    higher_is_better = None

    def _value(self) -> dict[str, Tensor]:
        parts = brier_parts_of(self._sum("sums"))._asdict()
        parts = {"brier": parts.pop("score"), **parts}
        return {name: part.float() for name, part in parts.items()}
