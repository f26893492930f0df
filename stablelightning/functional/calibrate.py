"""Calibration: what is learned from predictions whose targets are known."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from stablelightning.errors import DataError
from stablelightning.functional.scores import SMALLEST_PROBABILITY, at_least_single

#: Bounds of a temperature. Where every row is predicted right the likelihood grows for ever as the
#: temperature falls, and where most are wrong as it grows.
LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE = 0.02, 50.0

#: The largest slope of the mean likelihood against the logarithm of the temperature, in nats, that
#: counts as none: a hundredth of it moves no probability in its fourth digit.
FLAT = 1e-6
_STEPS = 200
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

    Args:
        probabilities: ``(N, C)``.
        target: ``(N,)`` class indices, in [0, C).

    Returns:
        In [:data:`LOWEST_TEMPERATURE`, :data:`HIGHEST_TEMPERATURE`]; 1 where no temperature
        changes anything (all classes alike).

    Raises:
        DataError: the optimum was not found.

    Source:
        Guo et al. 2017, arXiv:1706.04599, section 4.2.

    Example:
        >>> probabilities = torch.tensor([[0.99, 0.01]] * 4)
        >>> t = fit_temperature(probabilities, torch.tensor([0, 0, 0, 1]))
        >>> temper(probabilities[:1], t)
        tensor([[0.7500, 0.2500]])
    """
    scores = log_probabilities(probabilities)

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
    slope = _slope(loss, found)
    if not abs(slope) < FLAT:
        raise DataError(
            f"the temperature of the likeliest targets must be found, got a slope of {slope:.2g} "
            "at the end; look for rows that are not finite, or targets that are no classes."
        )
    return math.exp(min(max(found.item(), bounds[0]), bounds[1]))


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


def _slope(loss: _Loss, at: Tensor) -> float:
    with torch.inference_mode(False), torch.enable_grad():
        place = at.detach().clone().requires_grad_()
        (slope,) = torch.autograd.grad(loss(place), place)
    return float(slope)
