"""Measures of uncertainty: entropies in nats for classes and labels, variances for regression."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from stablelightning.functional.scores import at_least_single, gaussian_negative_log_likelihood

#: How far a row of probabilities may sum from 1 and still be recognised: wide enough for
#: probabilities that were computed in float16, too narrow for logits to meet on every row of a
#: batch by chance.
SUM_TOLERANCE = 1e-3

#: Probabilities rounded to a dtype sum to 1 within about one unit in the last place (bfloat16:
#: 0.008); a few units of slack for values that were averaged or renormalised in that dtype.
SUM_TOLERANCE_UNITS = 4.0


def entropy(probabilities: Tensor, dim: int = 1) -> Tensor:
    """Entropy of each row's distribution over classes, in nats, with 0 log 0 = 0.

    Args:
        probabilities: ``(N, C, ...)`` with the classes on ``dim``.
        dim: dimension of the classes.

    Returns:
        ``(N, ...)``, in [0, log C]; float32 for half-precision input.

    Source:
        Shannon 1948, "A mathematical theory of communication".

    Example:
        >>> entropy(torch.tensor([[1.0, 0.0], [0.5, 0.5]]))
        tensor([0.0000, 0.6931])
    """
    terms: Tensor = torch.special.entr(at_least_single(probabilities))
    return terms.sum(dim)


def binary_entropy(probabilities: Tensor) -> Tensor:
    """Entropy of each label's yes-or-no distribution, in nats.

    Args:
        probabilities: any shape, in [0, 1].

    Returns:
        The same shape, in [0, log 2]; float32 for half-precision input.

    Example:
        >>> binary_entropy(torch.tensor([0.0, 0.5]))
        tensor([0.0000, 0.6931])
    """
    p = at_least_single(probabilities)
    yes: Tensor = torch.special.entr(p)
    # log1p keeps the other term right for tiny p, where 1 - p rounds to 1.
    no: Tensor = -torch.special.xlog1py(1 - p, -p)
    return yes + no


def mutual_information(
    mean_probabilities: Tensor, expected_entropy: Tensor, dim: int = 1
) -> Tensor:
    """Mutual information of prediction and model: predictive minus expected entropy, in nats.

    What the samples disagree about. Jensen's inequality makes it non-negative; a negative value
    could only be rounding, and is returned as 0.

    Args:
        mean_probabilities: mean over the samples, ``(N, C, ...)`` with the classes on ``dim``.
        expected_entropy: mean over the samples of their entropies, ``(N, ...)``.
        dim: dimension of the classes.

    Returns:
        ``(N, ...)``, in [0, log C].

    Source:
        Houlsby et al. 2011, arXiv:1112.5745; Gal, Islam, Ghahramani 2017, arXiv:1703.02910.

    Example:
        >>> samples = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])  # two samples of one row
        >>> mutual_information(samples.mean(0), entropy(samples, dim=-1).mean(0))
        tensor([0.6931])
    """
    return (entropy(mean_probabilities, dim) - expected_entropy).clamp(min=0)


def binary_mutual_information(mean_probabilities: Tensor, expected_entropy: Tensor) -> Tensor:
    """Mutual information of each label and the model, in nats; as :func:`mutual_information`.

    Args:
        mean_probabilities: mean over the samples, any shape, in [0, 1].
        expected_entropy: mean over the samples of their :func:`binary_entropy`, the same shape.

    Returns:
        The same shape, in [0, log 2].

    Example:
        >>> samples = torch.tensor([[1.0], [0.0]])  # two samples of one label
        >>> binary_mutual_information(samples.mean(0), binary_entropy(samples).mean(0))
        tensor([0.6931])
    """
    return (binary_entropy(mean_probabilities) - expected_entropy).clamp(min=0)


def variation_ratio(votes: Tensor, dim: int = 1) -> Tensor:
    """Share of the samples that do not vote for the most frequent class.

    Votes are counts, so that a stream of samples needs one tensor: add each sample's one-hot
    argmax to it.

    Args:
        votes: how many samples chose each class, ``(N, C, ...)`` with the classes on ``dim``; at
            least one vote per row.
        dim: dimension of the classes.

    Returns:
        ``(N, ...)``, in [0, 1 - 1/C].

    Source:
        Freeman 1965, "Elementary applied statistics"; Gal 2016, PhD thesis, section 3.3.

    Example:
        >>> variation_ratio(torch.tensor([[8, 2, 0], [10, 0, 0]]))
        tensor([0.2000, 0.0000])
    """
    votes = at_least_single(votes)
    total = votes.sum(dim)
    return (total - votes.amax(dim)) / total


def is_probabilities(output: Tensor, dim: int = 1) -> bool:
    """Whether every row of ``output`` is a distribution over ``dim``: non-negative, sum 1.

    One synchronisation with the device; for a stream of samples, ask once.

    Args:
        output: what a classifier returned, ``(N, C, ...)``.
        dim: dimension of the classes.

    Example:
        >>> is_probabilities(torch.tensor([[0.2, 0.8]]))
        True
        >>> is_probabilities(torch.tensor([[0.2, 3.0]]))
        False
    """
    precision = torch.finfo(output.dtype).eps if output.is_floating_point() else 0.0
    tolerance = max(SUM_TOLERANCE, SUM_TOLERANCE_UNITS * precision)
    output = at_least_single(output)
    near_one = (output.sum(dim) - 1).abs() <= tolerance
    return bool(((output >= 0).all() & near_one.all()).item())


def as_probabilities(output: Tensor, dim: int = 1) -> Tensor:
    """Probabilities from a classifier's output, be it probabilities, logits or log-probabilities.

    What is a distribution already (see :func:`is_probabilities`) is kept; everything else goes
    through softmax, which also turns log-probabilities into the probabilities they stand for.

    Args:
        output: ``(N, C, ...)`` with the classes on ``dim``.
        dim: dimension of the classes.

    Returns:
        The same shape; float32 for half-precision input.

    Example:
        >>> logits = torch.tensor([[0.0, 2.0]])
        >>> torch.allclose(as_probabilities(logits), as_probabilities(logits.log_softmax(1)))
        True
        >>> as_probabilities(torch.tensor([[0.25, 0.75]]))
        tensor([[0.2500, 0.7500]])
    """
    if is_probabilities(output, dim):
        return at_least_single(output)
    return at_least_single(output).softmax(dim)


def is_label_probabilities(output: Tensor) -> bool:
    """Whether every value of ``output`` lies in [0, 1], as per-label probabilities do.

    Logits can lie there by chance, and a batch of one row and few labels sometimes does. Decide
    on a whole batch, once, or return probabilities from the model's ``forward``.

    Args:
        output: what a multi-label classifier returned, any shape.

    Example:
        >>> is_label_probabilities(torch.tensor([[0.2, 1.0]]))
        True
        >>> is_label_probabilities(torch.tensor([[0.2, -1.0]]))
        False
    """
    return bool(((output >= 0) & (output <= 1)).all().item())


def as_label_probabilities(output: Tensor) -> Tensor:
    """Per-label probabilities from a multi-label output: kept if all lie in [0, 1], else sigmoid.

    The rule is a guess where the output is small; see :func:`is_label_probabilities`. Logarithms
    of probabilities are not recognised: sigmoid would turn them into something else.

    Args:
        output: per-label logits or probabilities, any shape.

    Returns:
        The same shape; float32 for half-precision input.

    Example:
        >>> as_label_probabilities(torch.tensor([[0.0, -1.0]]))
        tensor([[0.5000, 0.2689]])
    """
    if is_label_probabilities(output):
        return at_least_single(output)
    return at_least_single(output).sigmoid()


class VarianceSplit(NamedTuple):
    """Total variance and its two parts, all in squared target units and of the same shape."""

    total: Tensor
    aleatoric: Tensor
    epistemic: Tensor


def law_of_total_variance(means: Tensor, variances: Tensor, dim: int = 0) -> VarianceSplit:
    """Split the variance of a mixture of predictions: mean of variances plus variance of means.

    Averaging the parameters of the samples instead would drop the second part, which is all that
    the model does not know.

    Args:
        means: the samples' means, ``(T, N, ...)`` with the samples on ``dim``.
        variances: the samples' variances, the same shape or broadcast to it.
        dim: dimension of the samples.

    Returns:
        ``total``, ``aleatoric`` (expected variance) and ``epistemic`` (variance of the means over
        the samples, divided by their number), each ``(N, ...)``.

    Source:
        Kendall, Gal 2017, arXiv:1703.04977, equation 9; Depeweg et al. 2018, arXiv:1710.07283.

    Example:
        >>> law_of_total_variance(torch.tensor([[1.0], [3.0]]), torch.tensor([[0.5], [0.5]]))
        VarianceSplit(total=tensor([1.5000]), aleatoric=tensor([0.5000]), epistemic=tensor([1.]))
    """
    means = at_least_single(means)
    aleatoric = at_least_single(variances).expand_as(means).mean(dim)
    # In two passes: torch.var is as exact, and takes ten times as long over a leading axis. From
    # the first sample on, so that the variance of equal samples is 0 and no rounding error.
    offsets = means - means.narrow(dim, 0, 1)
    epistemic = (offsets - offsets.mean(dim, keepdim=True)).square().mean(dim)
    return VarianceSplit(aleatoric + epistemic, aleatoric, epistemic)


def gaussian_mixture_log_likelihood(means: Tensor, variances: Tensor, target: Tensor) -> Tensor:
    """Log-density of each target under the equal mixture of the samples' normal distributions.

    Args:
        means: ``(T, N, ...)``, samples first, in target units.
        variances: the same shape or broadcast to it, in squared target units; floored as in
            :func:`~stablelightning.functional.scores.gaussian_negative_log_likelihood`.
        target: ``(N, ...)``.

    Returns:
        ``(N, ...)``, in nats.

    Raises:
        DataError: the shapes of a sample and of the target differ.

    Source:
        Gal, Ghahramani 2016, arXiv:1506.02142, equation 8 of the appendix (predictive
        log-likelihood).

    Example:
        >>> means = torch.tensor([[0.0], [0.0]])
        >>> gaussian_mixture_log_likelihood(means, torch.ones(2, 1), torch.tensor([0.0]))
        tensor([-0.9189])
    """
    each = -gaussian_negative_log_likelihood(
        means, variances.expand_as(means), target.unsqueeze(0).expand(means.shape[0], *target.shape)
    )
    return each.logsumexp(0) - math.log(means.shape[0])
