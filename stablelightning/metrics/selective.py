"""Selective classification: what leaving the uncertain rows unanswered gains."""

from typing import Any

from torch import Tensor

from stablelightning.functional.checked import check_scores
from stablelightning.functional.rank_groups import RankGroups, marked_first, marked_last
from stablelightning.functional.selective import (
    augrc_of,
    aurc_of,
    best_aurc_of,
    check_risk,
    check_share,
    coverage_at_risk_of,
    most_coverage_at_risk_of,
    risk_at_coverage_of,
)
from stablelightning.metrics.base import RankMetric, checked_rows
from stablelightning.model.prediction import Prediction


class SelectiveMetric(RankMetric):
    """A statistic of errors in the order of an uncertainty.

    Args:
        exact: keep every uncertainty; see :class:`~stablelightning.metrics.base.RankMetric`.
        **kwargs: of torchmetrics' ``Metric``.
    """

    higher_is_better = False
    plot_lower_bound = 0.0
    _concern = "selective"

    def update(
        self, prediction: Tensor | Prediction, target: Tensor, uncertainty: Tensor | None = None
    ) -> None:
        """Add rows.

        Args:
            prediction: probabilities ``(N, C, ...)``, or ``(N, ...)`` of labels, or a Prediction.
            target: class indices ``(N, ...)``, or 0 and 1 in the shape of the labels.
            uncertainty: in the shape of the target, larger where the prediction is less certain,
                such as ``prediction.epistemic``; ``None`` takes 1 minus the largest probability.

        Raises:
            DataError: what are no probabilities, targets that do not fit, or a NaN uncertainty.
        """
        rows, index = checked_rows(prediction, target)
        confidence, chosen = rows.max(1)
        score = 1 - confidence.double()
        if uncertainty is not None:
            score = check_scores("uncertainty", uncertainty, rows=len(rows)).to(rows.device)
        self._add(score, chosen != index)

    def _ends(self, groups: RankGroups) -> tuple[Tensor, Tensor]:
        return self._of(marked_last(groups)), self._of(marked_first(groups))


class AURC(SelectiveMetric):
    """Area under the risk-coverage curve; smaller is better.

    The mean error rate of the i surest rows, over all i.

    Args:
        exact: keep every uncertainty; see :class:`~stablelightning.metrics.base.RankMetric`.
        **kwargs: of torchmetrics' ``Metric``.

    Source:
        Geifman, Uziel, El-Yaniv 2018, arXiv:1805.08206, equation 3.

    Example:
        >>> import torch
        >>> metric = AURC()
        >>> probabilities = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.6, 0.4]])
        >>> metric.update(probabilities, torch.tensor([0, 0, 1]))
        >>> metric.compute()  # (0 + 0 + 1/3) / 3
        tensor(0.1111)
    """

    def _of(self, groups: RankGroups) -> Tensor:
        return aurc_of(groups)


class ExcessAURC(SelectiveMetric):
    """What AURC has above that of an order which puts every error last; smaller is better.

    It does not fall with the number of errors alone, so that models of different accuracy can be
    compared by their uncertainty.

    Args:
        exact: keep every uncertainty; see :class:`~stablelightning.metrics.base.RankMetric`.
        **kwargs: of torchmetrics' ``Metric``.

    Source:
        Geifman, Uziel, El-Yaniv 2018, arXiv:1805.08206, section 3.

    Example:
        >>> import torch
        >>> metric = ExcessAURC()
        >>> probabilities = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.6, 0.4]])
        >>> metric.update(probabilities, torch.tensor([0, 0, 1]))
        >>> metric.compute()
        tensor(0.)
    """

    def _of(self, groups: RankGroups) -> Tensor:
        return (aurc_of(groups) - best_aurc_of(groups)).clamp(min=0)


class AUGRC(SelectiveMetric):
    """Area under the generalised risk-coverage curve, in [0, 0.5]; smaller is better.

    The chance that a row is both answered and wrong, averaged over all coverages.

    Args:
        exact: keep every uncertainty; see :class:`~stablelightning.metrics.base.RankMetric`.
        **kwargs: of torchmetrics' ``Metric``.

    Source:
        Traub et al. 2024, arXiv:2407.01032, equations 5 and 6.

    Example:
        >>> import torch
        >>> metric = AUGRC()
        >>> probabilities = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.6, 0.4]])
        >>> metric.update(probabilities, torch.tensor([0, 0, 1]))
        >>> metric.compute()  # (1/3) ** 2 / 2
        tensor(0.0556)
    """

    plot_upper_bound = 0.5

    def _of(self, groups: RankGroups) -> Tensor:
        return augrc_of(groups)


class RiskAtCoverage(SelectiveMetric):
    """Error rate of the surest rows, so many that their share is ``coverage``; smaller is better.

    Args:
        coverage: in (0, 1].
        exact: keep every uncertainty; see :class:`~stablelightning.metrics.base.RankMetric`.
        **kwargs: of torchmetrics' ``Metric``.

    Raises:
        RecipeError: ``coverage`` is not in (0, 1].

    Source:
        Geifman, El-Yaniv 2017, arXiv:1705.08500.

    Example:
        >>> import torch
        >>> metric = RiskAtCoverage(coverage=0.6)
        >>> probabilities = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.6, 0.4]])
        >>> metric.update(probabilities, torch.tensor([0, 0, 1]))
        >>> metric.compute()
        tensor(0.)
    """

    plot_upper_bound = 1.0

    def __init__(self, coverage: float = 0.8, *, exact: bool = False, **kwargs: Any) -> None:
        super().__init__(exact=exact, **kwargs)
        check_share("coverage", coverage)
        self.coverage = coverage

    def _of(self, groups: RankGroups) -> Tensor:
        return risk_at_coverage_of(groups, self.coverage)


class CoverageAtRisk(SelectiveMetric):
    """Largest share of rows that a threshold can answer with ``risk`` errors; larger is better.

    0 where no threshold is good enough.

    Args:
        risk: error rate of the answered rows, >= 0.
        exact: keep every uncertainty; see :class:`~stablelightning.metrics.base.RankMetric`.
        **kwargs: of torchmetrics' ``Metric``.

    Raises:
        RecipeError: ``risk`` is negative.

    Source:
        Geifman, El-Yaniv 2017, arXiv:1705.08500.

    Example:
        >>> import torch
        >>> metric = CoverageAtRisk(risk=0.05)
        >>> probabilities = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.6, 0.4]])
        >>> metric.update(probabilities, torch.tensor([0, 0, 1]))
        >>> metric.compute()
        tensor(0.6667)
    """

    higher_is_better = True
    plot_upper_bound = 1.0

    def __init__(self, risk: float = 0.05, *, exact: bool = False, **kwargs: Any) -> None:
        super().__init__(exact=exact, **kwargs)
        check_risk(risk)
        self.risk = risk

    def _of(self, groups: RankGroups) -> Tensor:
        return coverage_at_risk_of(groups, self.risk)

    def _ends(self, groups: RankGroups) -> tuple[Tensor, Tensor]:
        # The end of a bin is a threshold of the rows themselves too.
        return self._of(groups), most_coverage_at_risk_of(groups, self.risk)
