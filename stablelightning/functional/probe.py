"""How much a linear layer could read out of features: ridge regression, judged row by row.

Every row is predicted by a fit without it. For ridge regression that takes one eigendecomposition
and no second fit, so that a probe of a thousand rows costs a fraction of a second, draws no random
numbers and splits nothing: with ten labels for each class none can be spared.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from stablelightning.errors import DataError

#: Strengths that are tried, as multiples of the mean eigenvalue: from next to none to nearly all.
_STRENGTHS = tuple(10.0**exponent for exponent in (-4, -3, -2, -1, 0, 1, 2))
#: A feature that varies by less than this share of its size is constant, up to rounding.
_CONSTANT = 1e-6
#: Least share of a row's own influence that is divided out; at 0 the row decides its own fit alone.
_LEAST_FREEDOM = 1e-6
#: Eigenvalues below this share of the largest are rounding.
_RANK = 1e-12


@dataclass(frozen=True)
class ProbeScore:
    """What a linear probe reached on rows that it had not seen.

    Args:
        value: balanced accuracy in [0, 1], or the share of explained variance, at most 1.
        chance: what knows nothing of the features reaches.
        error: standard error of ``value``, from the number of rows.

    Example:
        >>> ProbeScore(0.9, 0.1, 0.02).share
        0.888...
    """

    value: float
    chance: float
    error: float

    @property
    def share(self) -> float:
        """How far it got from chance (0) to perfect (1)."""
        return (self.value - self.chance) / (1 - self.chance)


def probe_accuracy(features: Tensor, labels: Tensor) -> ProbeScore:
    """Accuracy of a linear classifier on rows left out of its fit, each class counting alike.

    Least squares to one column for each class, with the ridge that predicts best; the largest
    column wins. What a class gains by being frequent is taken away, so that features that say
    nothing come to chance, and not below it.

    Args:
        features: ``(N, D)``, any float type; each is standardised.
        labels: ``(N,)``, whole numbers; classes with a single row are left out of the score.

    Returns:
        The mean over the classes of the share of rows that are recognised.

    Raises:
        DataError: fewer than two classes have two rows, or the shapes do not fit.

    Source:
        Alain, Bengio 2016, arXiv:1610.01644 (linear probes over depth); Hastie, Tibshirani,
        Friedman 2009, "The Elements of Statistical Learning", section 7.10 (leaving one out of a
        linear fit).

    Example:
        >>> labels = torch.arange(40) % 2
        >>> features = torch.randn(40, 8)
        >>> features[:, 0] += 10 * labels
        >>> probe_accuracy(features, labels).value
        1.0
    """
    _check(features, labels)
    classes, labels = labels.reshape(-1).cpu().unique(return_inverse=True)
    counts = labels.bincount(minlength=len(classes))
    judged = (counts >= 2).nonzero()[:, 0]
    if len(judged) < 2:
        raise DataError(
            f"a probe needs two classes with two rows each, got {len(labels)} rows of "
            f"{len(classes)} classes; give it more labelled rows."
        )
    columns = torch.nn.functional.one_hot(labels, len(classes)).double()
    scores = _left_out(features, columns) - _others_mean(columns)
    right = (scores.argmax(1) == labels).double()
    shares = torch.zeros(len(classes), dtype=torch.float64).index_add_(0, labels, right) / counts
    recall, rows = shares[judged], counts[judged]
    # Of a share of n rows the variance is p (1 - p) / n; Agresti and Coull's p is never 0 or 1.
    smooth = (recall * rows + 2) / (rows + 4)
    error = float((smooth * (1 - smooth) / rows).sum().sqrt()) / len(judged)
    return ProbeScore(float(recall.mean()), 1 / len(judged), error)


def probe_r2(features: Tensor, targets: Tensor) -> ProbeScore:
    """Share of the targets' variance that a linear fit explains, on rows left out of it.

    Args:
        features: ``(N, D)``, any float type; each is standardised.
        targets: ``(N,)`` or ``(N, K)``; each column is standardised and counts alike.

    Returns:
        One less the squared error over that of the mean of the other rows: 1 at best, about 0 for
        features that say nothing, and below where they mislead.

    Raises:
        DataError: fewer than three rows, targets that do not vary, or shapes that do not fit.

    Source:
        Allen 1974, "The relationship between variable selection and data augmentation and a method
        for prediction" (the sum of squares of rows left out).

    Example:
        >>> x = torch.randn(50, 3)
        >>> round(probe_r2(x, x @ torch.tensor([1.0, 2.0, 3.0])).value, 3)
        1.0
    """
    _check(features, targets)
    columns = targets.reshape(len(targets), -1).double().cpu()
    columns = columns[:, _varies(columns)]
    if len(columns) < 3 or not columns.shape[1]:
        raise DataError(
            f"a probe needs three rows whose targets differ, got {len(targets)}; give it more."
        )
    columns = _standardised(columns)
    missed = (columns - _left_out(features, columns)).square().sum(1)
    spread = (columns - _others_mean(columns)).square().sum(1)
    ratio = float(missed.sum() / spread.sum())
    # The standard error of a ratio of two sums over the same rows.
    error = float((missed - ratio * spread).std() * len(missed) ** 0.5 / spread.sum())
    return ProbeScore(1 - ratio, 0.0, error)


def _left_out(features: Tensor, columns: Tensor) -> Tensor:
    """What the best ridge regression without a row predicts for that row."""
    features = features.detach().to("cpu", torch.float64)
    features = features[:, _varies(features)]
    best = _others_mean(columns)
    if not features.shape[1]:
        return best
    rows = _standardised(features)
    least = float((columns - best).square().sum())
    mean = columns.mean(0)
    basis, squares = _basis(rows)
    inside = basis.T @ (columns - mean)
    for strength in _STRENGTHS:
        kept = squares / (squares + strength * squares.mean())
        own = 1 / len(rows) + basis.square() @ kept  # each row's influence on its own fit
        missed = columns - mean - basis @ (kept[:, None] * inside)
        missed = missed / (1 - own).clamp(min=_LEAST_FREEDOM)[:, None]
        size = float(missed.square().sum())
        if size < least:
            best, least = columns - missed, size
    return best


def _others_mean(columns: Tensor) -> Tensor:
    """The mean of all other rows: the prediction without features."""
    return (columns.sum(0) - columns) / max(len(columns) - 1, 1)


def _basis(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Left singular vectors of centred rows, and the squares of the singular values."""
    if rows.shape[1] >= rows.shape[0]:
        squares, vectors = torch.linalg.eigh(rows @ rows.T)
        kept = squares > _RANK * squares[-1:]
        return vectors[:, kept], squares[kept]
    squares, vectors = torch.linalg.eigh(rows.T @ rows)
    kept = squares > _RANK * squares[-1:]
    return rows @ vectors[:, kept] / squares[kept].sqrt(), squares[kept]


def _varies(values: Tensor) -> Tensor:
    size = values.abs().amax(0) if len(values) else values.sum(0)
    return values.std(0, correction=0) > _CONSTANT * size


def _standardised(values: Tensor) -> Tensor:
    return (values - values.mean(0)) / values.std(0, correction=0)


def _check(features: Tensor, targets: Tensor) -> None:
    if features.ndim != 2 or not len(targets) or len(features) != len(targets):
        raise DataError(
            "a probe needs features (N, D) and N targets, got "
            f"{tuple(features.shape)} and {tuple(targets.shape)}; flatten the features."
        )
    if not bool(torch.isfinite(features).all()):
        raise DataError(
            f"features must be finite, and {int((~torch.isfinite(features)).sum())} of "
            f"{features.numel()} are not; look at the model with sl.diagnose."
        )
