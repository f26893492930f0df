"""What every calibrator of class probabilities has in common."""

from dataclasses import replace

import torch
from torch import Tensor

from stablelightning.errors import DataError
from stablelightning.functional.uncertainty import as_probabilities, entropy
from stablelightning.model.prediction import Prediction
from stablelightning.model.summarize import select_output

#: Rounding of half-precision probabilities.
_SUM_TOLERANCE = 1e-2


def check_classes(prediction: Prediction, target: Tensor, *, who: str) -> Tensor:
    """Refuse what no calibrator of classes can learn from.

    Args:
        prediction: of a classification, ``(N, C)``.
        target: ``(N,)`` class indices.
        who: the calibrator, for the message.

    Returns:
        The target as int64.

    Raises:
        DataError: no rows, other shapes, what is no distribution, or targets that are no classes.
    """
    mean = prediction.mean
    if mean.ndim != 2 or target.ndim != 1 or len(target) == 0:
        raise DataError(
            f"{who} is fitted to probabilities (N, C) and classes (N,), got "
            f"{tuple(mean.shape)} and {tuple(target.shape)}; flatten pixels or tokens first."
        )
    check_probabilities(mean, who=who)
    if target.is_floating_point() and bool((target != target.round()).any()):
        raise DataError(
            f"targets of {who} must be class indices, got numbers in between; pass the number of "
            "each row's class."
        )
    target = target.long()
    least, most = int(target.min()), int(target.max())
    if least < 0 or most >= mean.shape[1]:
        raise DataError(
            f"targets must be classes in 0..{mean.shape[1] - 1}, got {least}..{most}; leave out "
            "rows without a class."
        )
    if least == most:
        raise DataError(
            f"{who} must see two classes or more, got {len(target)} rows of class {least} only; "
            "give calibration rows of all classes."
        )
    return target


def check_probabilities(mean: Tensor, *, who: str, dim: int = 1) -> None:
    """Refuse logits, and what does not sum to one.

    Raises:
        DataError: with the row that is worst.
    """
    least = float(mean.min())
    if least < -_SUM_TOLERANCE or float(mean.max()) > 1 + _SUM_TOLERANCE:
        raise DataError(
            f"{who} needs probabilities, got values from {least:.3g} to {float(mean.max()):.3g}, "
            "which look like logits; apply softmax first."
        )
    sums = mean.float().sum(dim).reshape(len(mean), -1)
    off = (sums - 1).abs()
    if float(off.max()) > _SUM_TOLERANCE:
        row = int(off.amax(1).argmax())
        raise DataError(
            f"{who} needs probabilities that sum to one, got a sum of "
            f"{float(sums[row, off[row].argmax()]):.4g} in row {row}; apply softmax first."
        )


def check_applied(prediction: Prediction, *, who: str) -> int:
    """Refuse to correct what is no distribution over classes.

    Rows that are NaN pass: they are corrected to NaN, and spoil no others.

    Args:
        prediction: of a classification.
        who: the calibrator, for the message.

    Returns:
        Where its classes are, see :func:`class_dim`.

    Raises:
        DataError: logits, or what does not sum to one.
    """
    dim = class_dim(prediction)
    if len(prediction.mean):
        check_probabilities(prediction.mean, who=who, dim=dim)
    return dim


def with_mean(prediction: Prediction, mean: Tensor, samples: Tensor | None = None) -> Prediction:
    """The same prediction around another mean, its uncertainty split anew.

    ``total`` is the entropy of the new mean. Its epistemic part is the mutual information of the
    corrected samples where there are any, else what it was before; never more than the total. The
    rest is aleatoric.

    Args:
        prediction: of a classification.
        mean: ``(N, C, ...)`` corrected probabilities.
        samples: ``(T, N, C, ...)`` corrected probabilities.

    Source:
        Rahaman, Thiery 2021, arXiv:2007.08792 (calibrate what was pooled).
    """
    dim = class_dim(prediction)
    total = entropy(mean, dim=dim)
    if samples is None:
        epistemic = prediction.epistemic
    else:
        epistemic = total - entropy(samples, dim=dim + 1).mean(0)
    epistemic = torch.minimum(epistemic.clamp(min=0).to(total.dtype), total)
    return replace(
        prediction,
        mean=mean,
        total=total,
        epistemic=epistemic,
        aleatoric=total - epistemic,
        samples=samples,
    )


def class_dim(prediction: Prediction) -> int:
    """Where the classes of a prediction are: the axis that its entropy has lost."""
    mean, total = prediction.mean.shape, prediction.total.shape
    last = len(mean) - 1
    return last if last > 1 and mean[:-1] == total and mean[:1] + mean[2:] != total else 1


def sample_probabilities(prediction: Prediction) -> Tensor | None:
    """The samples that were kept as probabilities ``(T, N, C, ...)``, ``None`` without any."""
    if prediction.samples is None:
        return None
    samples = select_output(prediction.samples)
    assert isinstance(samples, Tensor)
    return as_probabilities(samples, dim=class_dim(prediction) + 1)
