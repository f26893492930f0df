"""Calibration: what is learned from predictions whose targets are known."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from stablelightning.errors import DataError
from stablelightning.functional.scores import SMALLEST_PROBABILITY, at_least_single

#: Bounds of a temperature, for the likelihood may grow for ever in either direction.
LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE = 0.02, 50.0

#: The largest slope of the mean likelihood against the logarithm of the temperature, in nats, that
#: counts as none: a hundredth of it moves no probability in its fourth digit.
FLAT = 1e-6
#: How hard weights and biases of classes are pulled towards 1 and 0, in nats per square.
PULL = 1e-4
_STEPS = 500
_START_GRID = 33

_Loss = Callable[[Tensor], Tensor]


def log_probabilities(probabilities: Tensor) -> Tensor:
    """Logarithms of probabilities in double, those of 0 taken at :data:`SMALLEST_PROBABILITY`.

    Example:
        >>> log_probabilities(torch.tensor([1.0, 0.0]))
        tensor([  0.0000, -27.6310], dtype=torch.float64)
    """
    return probabilities.double().clamp(min=SMALLEST_PROBABILITY).log()


def temper(probabilities: Tensor, temperature: float, dim: int = 1) -> Tensor:
    """Probabilities at another temperature: ``p ** (1 / temperature)``, summing to one again.

    For probabilities that are a softmax of logits this is the softmax of ``logits / temperature``.

    Args:
        probabilities: ``(N, C, ...)`` with the classes on ``dim``.
        temperature: > 0; above 1 less sure, below 1 more.
        dim: dimension of the classes.

    Returns:
        The same shape, float32 or wider.

    Source:
        Guo et al. 2017, arXiv:1706.04599, section 4.2.

    Example:
        >>> temper(torch.tensor([[0.8, 0.2]]), 2.0)
        tensor([[0.6667, 0.3333]])
    """
    probabilities = at_least_single(probabilities)
    scores = log_probabilities(probabilities) / temperature
    return scores.softmax(dim).to(probabilities.dtype)


def fit_temperature(probabilities: Tensor, target: Tensor) -> float:
    """The temperature at which the targets are the most likely.

    L-BFGS on the logarithm of the temperature. The likelihood has one optimum (it is concave in
    ``1 / temperature``), and the slope there is checked.

    Where every row is predicted right, the likelihood would grow for ever as the temperature falls,
    and the first error on new rows would cost more than all the others gain. One error is imagined
    then: a copy of the least certain row, with its second class as the target.

    Args:
        probabilities: ``(N, C)``.
        target: ``(N,)`` class indices, in [0, C).

    Returns:
        In [:data:`LOWEST_TEMPERATURE`, :data:`HIGHEST_TEMPERATURE`]; 1 where no temperature
        changes anything (all classes alike).

    Raises:
        DataError: the optimum was not found.

    Source:
        Guo et al. 2017, arXiv:1706.04599, section 4.2; one more row as in Laplace's rule of
        succession.

    Example:
        >>> probabilities = torch.tensor([[0.99, 0.01]] * 4)
        >>> t = fit_temperature(probabilities, torch.tensor([0, 0, 0, 1]))
        >>> temper(probabilities[:1], t)
        tensor([[0.7500, 0.2500]])
    """
    scores, target = _with_an_error(log_probabilities(probabilities), target)

    def loss(log_temperature: Tensor) -> Tensor:
        return F.cross_entropy(scores / log_temperature.exp(), target)

    bounds = math.log(LOWEST_TEMPERATURE), math.log(HIGHEST_TEMPERATURE)
    with torch.inference_mode(False), torch.enable_grad():
        scores, target = scores.clone(), target.clone()
        starts = torch.linspace(*bounds, _START_GRID, dtype=torch.float64)
        with torch.no_grad():
            best = torch.stack([loss(start) for start in starts]).argmin()
        if _slope(loss, torch.zeros((), dtype=torch.float64)) == 0:
            return 1.0
        if best in (0, _START_GRID - 1):
            edge = starts[best]
            outwards = _slope(loss, edge) * (1 if best == 0 else -1)
            if outwards >= 0:
                return math.exp(edge.item())
        found = _minimum(loss, starts[best])
    _check_flat(_slope(loss, found), "temperature of the likeliest targets")
    return math.exp(min(max(found.item(), bounds[0]), bounds[1]))


def scale_scores(probabilities: Tensor, weight: Tensor, bias: Tensor, dim: int = 1) -> Tensor:
    """Probabilities whose logarithms were scaled and shifted, each class by its own numbers.

    Args:
        probabilities: ``(N, C, ...)`` with the classes on ``dim``.
        weight: ``(C,)``.
        bias: ``(C,)``.
        dim: dimension of the classes.

    Returns:
        The same shape, float32 or wider, summing to one over the classes.

    Source:
        Guo et al. 2017, arXiv:1706.04599, section 4.2.

    Example:
        >>> one, zero = torch.ones(2), torch.zeros(2)
        >>> scale_scores(torch.tensor([[0.8, 0.2]]), one, zero)
        tensor([[0.8000, 0.2000]])
    """
    probabilities = at_least_single(probabilities)
    shape = [1] * probabilities.ndim
    shape[dim] = -1
    weight, bias = (part.to(probabilities.device).double().view(shape) for part in (weight, bias))
    scores = log_probabilities(probabilities) * weight + bias
    return scores.softmax(dim).to(probabilities.dtype)


def fit_scores(probabilities: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The weight and the bias of every class at which the targets are the most likely.

    L-BFGS; the likelihood is concave, and the slope at the end is checked. A small pull towards
    doing nothing (:data:`PULL`) keeps the numbers finite where classes can be told apart exactly.

    Args:
        probabilities: ``(N, C)``.
        target: ``(N,)`` class indices, in [0, C).

    Returns:
        Weight and bias ``(C,)`` for :func:`scale_scores`, in double.

    Raises:
        DataError: the optimum was not found.

    Source:
        Guo et al. 2017, arXiv:1706.04599, section 4.2 (vector scaling).

    Example:
        >>> weight, bias = fit_scores(torch.tensor([[0.9, 0.1]] * 4), torch.tensor([0, 0, 0, 1]))
        >>> scale_scores(torch.tensor([[0.9, 0.1]]), weight, bias)
        tensor([[0.7500, 0.2500]])
    """
    classes = probabilities.shape[1]
    scores = log_probabilities(probabilities)

    def loss(both: Tensor) -> Tensor:
        weight, bias = both[:classes], both[classes:]
        pull = PULL * ((weight - 1).square().sum() + bias.square().sum())
        return F.cross_entropy(scores * weight + bias, target) + pull

    with torch.inference_mode(False), torch.enable_grad():
        scores, target = scores.clone(), target.clone()
        start = torch.cat([scores.new_ones(classes), scores.new_zeros(classes)])
        found = _minimum(loss, start)
    _check_flat(_slope(loss, found), "weights of the likeliest targets")
    return found[:classes], found[classes:]


def _check_flat(slope: Tensor, what: str) -> None:
    largest = float(slope.abs().max())
    if not largest < FLAT:
        raise DataError(
            f"the {what} must be found, got a slope of {largest:.2g} at the end; look for rows "
            "that are not finite, or targets that are no classes."
        )


def _with_an_error(scores: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The rows; with one more, wrong one where all are right."""
    if not bool((scores.argmax(1) == target).all()):
        return scores, target
    top, classes = scores.topk(2, dim=1)
    row = (top[:, 0] - top[:, 1]).argmin()
    return torch.cat([scores, scores[row : row + 1]]), torch.cat([target, classes[row, 1:]])


def _minimum(loss: _Loss, start: Tensor) -> Tensor:
    at = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [at],
        max_iter=_STEPS,
        tolerance_grad=FLAT / 100,
        tolerance_change=0.0,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(at)
        value.backward()
        return value

    optimizer.step(closure)
    return at.detach()


def _slope(loss: _Loss, at: Tensor) -> Tensor:
    with torch.inference_mode(False), torch.enable_grad():
        place = at.detach().clone().requires_grad_()
        (slope,) = torch.autograd.grad(loss(place), place)
    return slope
