"""What a regression predicts for each row, in the forms in which the metrics take it."""

import torch
from torch import Tensor

from stablelightning.errors import DataError
from stablelightning.functional.intervals import (
    check_variance,
    gaussian_probability_below,
    mixture_probability_below,
)
from stablelightning.functional.recalibrate import level_of_errors, standardized_errors
from stablelightning.model.prediction import Prediction
from stablelightning.nn.heads import Gaussian

#: A Prediction of a regression; or means and variances, ``(N, ...)`` each or a ``Gaussian``.
Distribution = Prediction | Gaussian | tuple[Tensor, Tensor]


def moments_of(distribution: Distribution) -> Gaussian:
    """Mean and total variance per row.

    Raises:
        DataError: it is neither a regression nor a pair, or a variance is negative or missing.
    """
    if isinstance(distribution, Prediction):
        _check_regression(distribution)
        return Gaussian(distribution.mean, distribution.total)
    if isinstance(distribution, Tensor) or len(distribution) != 2:
        raise DataError(
            "a regression must be a Prediction or a pair (mean, variance), got "
            f"{type(distribution).__name__}; a model without a variance has none to be judged."
        )
    mean, variance = distribution
    return Gaussian(mean, check_variance(variance))


def mixture_of(distribution: Distribution) -> Gaussian:
    """Means and variances of the samples, samples first.

    Raises:
        DataError: samples were not kept, or have no variance.
    """
    if not isinstance(distribution, Prediction):
        return moments_of(distribution)
    _check_regression(distribution)
    samples = distribution.samples
    if samples is None:
        raise DataError(
            "a mixture needs the samples themselves, got a Prediction without; predict with "
            "mc_dropout(..., keep_samples=True), or pass (means, variances) of the samples."
        )
    if isinstance(samples, Tensor):
        raise DataError(
            "a mixture needs a variance for every sample, got means only; predict with a "
            "GaussianHead, or pass (means, variances) with the variance of the noise."
        )
    return moments_of(samples)


def probability_below(distribution: Distribution, target: Tensor) -> Tensor:
    """The probability that each row's distribution gives to values below its target.

    Of the mixture where there are samples (kept with a Prediction, or a pair with one axis more
    than the target), by the quantiles where a Prediction has those of a recalibration, of a normal
    distribution otherwise.

    Raises:
        DataError: shapes do not fit, or there is no variance.
    """
    if isinstance(distribution, Prediction) and isinstance(distribution.samples, Gaussian):
        distribution = mixture_of(distribution)
    mean, variance = moments_of(distribution)
    target = target.to(mean.device)
    if isinstance(distribution, Prediction) and distribution.quantiles is not None:
        errors = standardized_errors(mean, variance, target)
        return level_of_errors(errors, *torch.tensor(distribution.quantiles, dtype=torch.float64).T)
    if mean.ndim == target.ndim + 1:
        return mixture_probability_below(mean, variance, target)
    return gaussian_probability_below(mean, variance, target)


def _check_regression(prediction: Prediction) -> None:
    if prediction.task != "regression":
        raise DataError(
            f"a regression is needed, got a Prediction of {prediction.task}; take a metric of "
            "classes, such as NegativeLogLikelihood."
        )
