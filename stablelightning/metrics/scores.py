"""Negative log-likelihoods: of classes, of a normal distribution, of a mixture of samples."""

from torch import Tensor

from stablelightning.functional.checked import check_scores
from stablelightning.functional.scores import (
    gaussian_negative_log_likelihood,
    negative_log_likelihood,
)
from stablelightning.functional.uncertainty import gaussian_mixture_log_likelihood
from stablelightning.metrics.base import MeanScore, checked_rows
from stablelightning.metrics.distributions import Distribution, mixture_of, moments_of
from stablelightning.model.prediction import Prediction


class NegativeLogLikelihood(MeanScore):
    """Mean negative logarithm of the probability of the target class, in nats; smaller is better.

    In [0, 27.6]: a probability below 1e-12 counts as that. Exact, two numbers.

    Args:
        **kwargs: of torchmetrics' ``Metric``.

    Source:
        Good 1952, "Rational decisions" (the logarithmic score).

    Example:
        >>> import torch
        >>> metric = NegativeLogLikelihood()
        >>> metric.update(torch.tensor([[0.5, 0.5], [0.9, 0.1]]), torch.tensor([0, 1]))
        >>> metric.compute()  # (log 2 + log 10) / 2
        tensor(1.4979)
    """

    higher_is_better = False
    plot_lower_bound = 0.0
    _concern = "nll"

    def update(self, prediction: Tensor | Prediction, target: Tensor) -> None:
        """Add rows.

        Args:
            prediction: probabilities ``(N, C, ...)``, or ``(N, ...)`` of labels, or a Prediction.
            target: class indices ``(N, ...)``, or 0 and 1 in the shape of the labels.

        Raises:
            DataError: what are no probabilities, or targets that do not fit.
        """
        self._add(negative_log_likelihood(*checked_rows(prediction, target)))


class GaussianNegativeLogLikelihood(MeanScore):
    """Mean negative log-density under a normal distribution per row, in nats; smaller is better.

    Of a Prediction it takes the mean and the total variance. Exact, two numbers.

    Args:
        **kwargs: of torchmetrics' ``Metric``.

    Source:
        Nix, Weigend 1994, "Estimating the mean and variance of the target probability
        distribution".

    Example:
        >>> import torch
        >>> metric = GaussianNegativeLogLikelihood()
        >>> metric.update((torch.zeros(1), torch.ones(1)), torch.zeros(1))
        >>> metric.compute()
        tensor(0.9189)
    """

    higher_is_better = False
    _concern = "gaussian_nll"

    def update(self, distribution: Distribution, target: Tensor) -> None:
        """Add rows.

        Args:
            distribution: a Prediction, or ``(mean, variance)`` of ``(N, ...)`` each.
            target: ``(N, ...)``, in target units.

        Raises:
            DataError: shapes differ, NaN, a variance is negative or missing.
        """
        mean, variance = moments_of(distribution)
        values = gaussian_negative_log_likelihood(mean, variance, target.to(mean.device))
        self._add(check_scores("log-likelihood", values, rows=values.numel()))


class MixtureNegativeLogLikelihood(MeanScore):
    """Mean negative log-density under the equal mixture of the samples, in nats; smaller is better.

    The likelihood that Monte Carlo dropout is judged by. A normal distribution of the same mean and
    variance is another density: where the samples disagree, the mixture has several peaks.

    Args:
        **kwargs: of torchmetrics' ``Metric``.

    Source:
        Gal, Ghahramani 2016, arXiv:1506.02142, equation 8 of the appendix.

    Example:
        >>> import torch
        >>> metric = MixtureNegativeLogLikelihood()
        >>> means = torch.tensor([[-3.0], [3.0]])  # two samples of one row
        >>> metric.update((means, torch.ones(2, 1)), torch.tensor([3.0]))
        >>> metric.compute()  # log 2 more than one of them
        tensor(1.6121)
    """

    higher_is_better = False
    _concern = "mixture_nll"

    def update(self, distribution: Distribution, target: Tensor) -> None:
        """Add rows.

        Args:
            distribution: a Prediction that kept its samples (``keep_samples=True``, from a model
                with a Gaussian head), or ``(means, variances)`` of ``(T, N, ...)`` each.
            target: ``(N, ...)``, in target units.

        Raises:
            DataError: no samples, no variances, NaN, or shapes that do not fit.
        """
        means, variances = mixture_of(distribution)
        values = gaussian_mixture_log_likelihood(means, variances, target.to(means.device))
        self._add(-check_scores("log-likelihood", values, rows=values.numel()))
