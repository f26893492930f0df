"""How well any score finds the rows that are out of distribution."""

from typing import Any

import torch
from torch import Tensor

from stablelightning.functional.checked import check_scores
from stablelightning.functional.out_of_distribution import (
    aupr_in_of,
    aupr_out_of,
    auroc_of,
    false_positive_rate_of,
    least_aupr_out_of,
    swapped_kinds,
)
from stablelightning.functional.rank_groups import RankGroups, marked_first, marked_last
from stablelightning.functional.selective import check_share
from stablelightning.metrics.base import RankMetric


class OODMetric(RankMetric):
    """A statistic of two kinds of rows in the order of a score.

    Args:
        exact: keep every score; see :class:`~stablelightning.metrics.base.RankMetric`.
        **kwargs: of torchmetrics' ``Metric``.
    """

    higher_is_better = True
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0
    _concern = "out_of_distribution"

    def update(self, score: Tensor, out: Tensor | bool) -> None:
        """Add rows of either kind.

        Args:
            score: ``(N,)``, larger for what looks strange: an entropy, a mutual information, an
                energy; any range.
            out: ``(N,)``, 1 or ``True`` for rows out of distribution; one ``bool`` for all.

        Raises:
            DataError: NaN scores, or another number of rows.
        """
        score = check_scores("score", score, rows=score.numel())
        kind = torch.as_tensor(out, device=score.device)
        kind = kind.expand(len(score)) if kind.ndim == 0 else kind
        self._add(score, check_scores("out", kind, rows=len(score)) > 0)

    def _ends(self, groups: RankGroups) -> tuple[Tensor, Tensor]:
        return self._of(marked_first(groups)), self._of(marked_last(groups))


class OODAUROC(OODMetric):
    """Probability that a row out of distribution has the larger score; 0.5 is a guess.

    torchmetrics' AUROC sends scores outside of [0, 1] through a sigmoid, where large ones become
    equal; this one takes any range, in constant memory.

    Args:
        exact: keep every score; see :class:`~stablelightning.metrics.base.RankMetric`.
        **kwargs: of torchmetrics' ``Metric``.

    Source:
        Hendrycks, Gimpel 2017, arXiv:1610.02136.

    Example:
        >>> metric = OODAUROC()
        >>> metric.update(torch.tensor([0.1, 0.4]), out=False)
        >>> metric.update(torch.tensor([0.3, 0.9]), out=True)
        >>> metric.compute()
        tensor(0.7500)
    """

    def _of(self, groups: RankGroups) -> Tensor:
        return auroc_of(groups)


class OODAUPROut(OODMetric):
    """Average precision in finding rows out of distribution, the largest score first.

    A guess reaches their share.

    Args:
        exact: keep every score; see :class:`~stablelightning.metrics.base.RankMetric`.
        **kwargs: of torchmetrics' ``Metric``.

    Source:
        Hendrycks, Gimpel 2017, arXiv:1610.02136.

    Example:
        >>> metric = OODAUPROut()
        >>> metric.update(torch.tensor([0.1, 0.4]), out=False)
        >>> metric.update(torch.tensor([0.3, 0.9]), out=True)
        >>> metric.compute()
        tensor(0.8333)
    """

    def _of(self, groups: RankGroups) -> Tensor:
        return aupr_out_of(groups)

    def _ends(self, groups: RankGroups) -> tuple[Tensor, Tensor]:
        return least_aupr_out_of(groups), self._of(marked_last(groups))


class OODAUPRIn(OODMetric):
    """Average precision in finding rows in distribution, the smallest score first.

    A guess reaches their share.

    Args:
        exact: keep every score; see :class:`~stablelightning.metrics.base.RankMetric`.
        **kwargs: of torchmetrics' ``Metric``.

    Source:
        Hendrycks, Gimpel 2017, arXiv:1610.02136.

    Example:
        >>> metric = OODAUPRIn()
        >>> metric.update(torch.tensor([0.1, 0.4]), out=False)
        >>> metric.update(torch.tensor([0.3, 0.9]), out=True)
        >>> metric.compute()
        tensor(0.8333)
    """

    def _of(self, groups: RankGroups) -> Tensor:
        return aupr_in_of(groups)

    def _ends(self, groups: RankGroups) -> tuple[Tensor, Tensor]:
        return least_aupr_out_of(swapped_kinds(groups)), self._of(marked_last(groups))


class FalsePositiveRate(OODMetric):
    """Share of rows out of distribution that pass where ``recall`` of the known ones must pass.

    Smaller is better.

    Args:
        recall: share of the rows in distribution, in (0, 1]; 0.95 is FPR95.
        exact: keep every score; see :class:`~stablelightning.metrics.base.RankMetric`.
        **kwargs: of torchmetrics' ``Metric``.

    Raises:
        RecipeError: ``recall`` is not in (0, 1].

    Source:
        Liang, Li, Srikant 2018, arXiv:1706.02690, section 4.3.

    Example:
        >>> metric = FalsePositiveRate(recall=0.95)
        >>> metric.update(torch.tensor([0.1, 0.4]), out=False)
        >>> metric.update(torch.tensor([0.3, 0.9]), out=True)
        >>> metric.compute()
        tensor(0.5000)
    """

    higher_is_better = False

    def __init__(self, recall: float = 0.95, *, exact: bool = False, **kwargs: Any) -> None:
        super().__init__(exact=exact, **kwargs)
        check_share("recall", recall)
        self.recall = recall

    def _of(self, groups: RankGroups) -> Tensor:
        return false_positive_rate_of(groups, self.recall)
