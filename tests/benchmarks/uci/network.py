"""Many networks of one hidden layer as one: every weight has the networks on its first axis.

The gradient is written down, not recorded: at fifty units the record would cost more than the sums.
The tests hold it against autograd.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from stablelightning.functional.gains import forward_gain
from stablelightning.functional.initialize import glorot_, he_, lecun_, uniform_
from stablelightning.nn.heads import VARIANCE_FLOOR

UNITS = 50

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "silu": F.silu,
    "tanh": torch.tanh,
}


@cache
def _gain(activation: str) -> float:
    return forward_gain(ACTIVATIONS[activation])


@dataclass(frozen=True)
class Candidate:
    """What the networks of a stack have in common.

    Args:
        activation: of :data:`ACTIVATIONS`.
        rate: of dropout on the hidden units, in [0, 1).
        input_rate: of dropout on the inputs, in [0, 1).
        decay: of the weights, per step and in parts of the learning rate.
        penalty: factor of the squared weights in the loss.
        together: masks of each row in a batch, whose mixture is what is fitted; with one, each
            mask is fitted by itself.
        length: of the training, in multiples of the usual one.
        heteroscedastic: predict a variance for each row, and not the mean alone.
    """

    activation: str = "relu"
    rate: float = 0.0
    input_rate: float = 0.0
    decay: float = 0.0
    penalty: float = 0.0
    together: int = 1
    length: int = 1
    heteroscedastic: bool = True


@dataclass(frozen=True)
class Masks:
    """Dropout of one pass, scaled so that the expectation stays; ``None`` where nothing drops.

    The same for all networks of a stack: the networks are other splits' or other folds', and
    nothing is averaged over them.
    """

    inputs: Tensor | None
    hidden: Tensor | None

    @classmethod
    def drawn(cls, shape: tuple[int, ...], features: int, candidate: Candidate) -> "Masks":
        inputs = _mask((*shape, features), candidate.input_rate)
        if inputs is not None:
            inputs[..., -1] = 1  # the ones, which carry the biases
        return cls(inputs, _mask((*shape, UNITS), candidate.rate))


def _mask(shape: tuple[int, ...], rate: float) -> Tensor | None:
    if not rate:
        return None
    return torch.rand(shape).ge_(rate).div_(1 - rate)


class Stack:
    """``networks`` networks with one setting, and the gradient of their loss.

    Inputs carry a last column of ones, whose weights are the hidden layer's biases.

    Args:
        networks: how many.
        features: columns of the inputs, the ones included.
        candidate: their common setting.
    """

    def __init__(self, networks: int, features: int, candidate: Candidate) -> None:
        self.networks, self.features, self.candidate = networks, features, candidate
        outputs = 2 if candidate.heteroscedastic else 1
        self._shapes = (
            (networks, features, UNITS),
            (networks, outputs, UNITS),
            (networks, outputs, 1),
        )
        size = sum(math.prod(shape) for shape in self._shapes)
        self.flat, self.gradient = torch.zeros(size), torch.zeros(size)
        self.first, self.last, self.last_bias = self._views(self.flat)
        self._gradients = self._views(self.gradient)

    def _views(self, flat: Tensor) -> list[Tensor]:
        parts = flat.split([math.prod(shape) for shape in self._shapes])
        return [part.view(shape) for part, shape in zip(parts, self._shapes, strict=True)]

    def weights(self) -> tuple[Tensor, Tensor]:
        """Without biases: what decay and penalty act on."""
        return self.first[:, :-1], self.last

    def draw_(self, network: int, seed: int) -> None:
        """Draw one network: the signal keeps its size, and every row the same variance.

        A homoscedastic one is drawn as the published ones are.
        """
        first, last = torch.empty(UNITS, self.features - 1), torch.empty(1, UNITS)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if self.candidate.heteroscedastic:
                he_(first, gain=_gain(self.candidate.activation))
                lecun_(last)
            else:
                glorot_(first, draw=uniform_)
                glorot_(last, draw=uniform_)
        self.first[network, :-1] = first.T
        self.last[network, :1] = last

    def forward(self, inputs: Tensor, masks: Masks) -> Tensor:
        """Outputs ``(networks, outputs, N)`` for inputs ``(networks, N, features)``."""
        if masks.inputs is not None:
            inputs = inputs * masks.inputs
        hidden = ACTIVATIONS[self.candidate.activation](torch.bmm(inputs, self.first))
        if masks.hidden is not None:
            hidden = hidden * masks.hidden
        return torch.baddbmm(self.last_bias, self.last, hidden.transpose(1, 2))

    def backward_(self, inputs: Tensor, target: Tensor, masks: Masks) -> None:
        """Set ``gradient`` to that of the mean loss over the rows of each network's batch."""
        first, last, last_bias = self._gradients
        if masks.inputs is not None:
            inputs = inputs * masks.inputs
        dropped, slope = self._hidden(torch.bmm(inputs, self.first))
        if masks.hidden is not None:
            dropped.mul_(masks.hidden)
        outputs = torch.baddbmm(self.last_bias, self.last, dropped.transpose(1, 2))
        steepness = self._steepness(outputs, target)
        torch.bmm(steepness, dropped, out=last)
        torch.sum(steepness, 2, keepdim=True, out=last_bias)
        back = torch.bmm(steepness.transpose(1, 2), self.last)
        if masks.hidden is not None:
            back.mul_(masks.hidden)
        torch.bmm(inputs.transpose(1, 2), back.mul_(slope), out=first)
        if self.candidate.penalty:
            for steepness, weights in zip((first[:, :-1], last), self.weights(), strict=True):
                steepness.add_(weights, alpha=2 * self.candidate.penalty)

    def _hidden(self, before: Tensor) -> tuple[Tensor, Tensor]:
        """What the units give, and the slope of their function."""
        if self.candidate.activation == "relu":
            hidden = before.relu_()
            return hidden, hidden.sign()
        if self.candidate.activation == "tanh":
            hidden = before.tanh_()
            return hidden, 1 - hidden.square()
        gate = before.sigmoid()
        hidden = before.mul_(gate)
        return hidden, torch.addcmul(gate, hidden, gate, value=-1).add_(hidden)

    def _steepness(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Derivative of the loss by the outputs, over the number of rows."""
        error = outputs[:, 0] - target
        rows = target.shape[-1]
        if not self.candidate.heteroscedastic:
            return error.mul_(2 / rows).unsqueeze_(1)
        spread = outputs[:, 1]
        variance = F.softplus(spread).add_(VARIANCE_FLOOR)
        # beta-NLL with beta = 1/2 (Seitzer et al. 2022, arXiv:2203.09168): each row's likelihood
        # counts by its standard deviation, or rows once thought noisy are never fitted.
        precision = variance.rsqrt()
        standardised = error.mul_(precision)
        surplus = (1 - standardised.square()).mul_(precision).mul_(0.5)
        steepness = torch.stack((standardised, surplus.mul_(spread.sigmoid())), 1)
        together = self.candidate.together
        if together == 1:
            return steepness.div_(rows)
        # The mixture's likelihood itself: each mask answers for its share of the density, and a
        # sharp one that is right is not held back.
        log_density = precision.log().addcmul_(standardised, standardised, value=-0.5)
        shares = log_density.view(len(target), together, -1).softmax(1).view_as(target)
        return steepness.mul_(shares.mul_(precision).unsqueeze_(1)).div_(rows // together)
