"""Modules as users write them: what trips a replay, or a batch of samples."""

import copy
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tests.model.modules import Functional, OneDropout


class Residual(nn.Module):
    """Adds in place onto what came before the dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)
        self.drop, self.head = nn.Dropout(0.3), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x += self.second(x).relu_()
        x += self.drop(self.second(x))
        return self.head(x.relu_())


class CountsCalls(OneDropout):
    def between(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x * self.calls


class PythonRandom(OneDropout):
    def between(self, x: Tensor) -> Tensor:
        return x * (1 if random.random() < 0.5 else 2)


class NumpyRandom(OneDropout):
    def between(self, x: Tensor) -> Tensor:
        return x + torch.from_numpy(np.random.standard_normal(4)).float()


class RandomInTraining(Functional):
    """Draws from Python's generator, and is asked by experiment what its flag does."""

    def forward(self, x: Tensor) -> Any:
        return super().forward(x * (1 if random.random() < 0.5 else 2))


class KeepsActivations(OneDropout):
    def forward(self, x: Tensor) -> Tensor:
        self.features = self.body(x)
        self.dropped = self.drop(self.features)
        return self.dropped


class KeepsInList(OneDropout):
    def __init__(self) -> None:
        super().__init__()
        self.history: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.history.append(self.drop(self.body(x)))
        return self.history[-1]


class BuildsCache(OneDropout):
    """Makes its positions on the first call, and trains through them later."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))
        self.cache: Tensor | None = None

    def between(self, x: Tensor) -> Tensor:
        if self.cache is None:
            self.cache = torch.linspace(1, 2, 4, device=x.device)
        return x * self.cache * self.scale


class ReadsHost(OneDropout):
    """Leaves torch in its prefix, and comes back."""

    def __init__(self, read: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.read = read

    def between(self, x: Tensor) -> Tensor:
        return x * torch.as_tensor(self.read(x.double()), dtype=x.dtype)


class KeepsLate(OneDropout):
    """From the third call on it reads a tensor that was dead after the prefix before."""

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.body(x)
        twice = hidden.exp()
        self.calls += 1
        if self.calls >= 3:
            self.kept = hidden
        del hidden
        y = self.drop(twice)
        return y if self.calls < 3 else y + self.kept


class SwapsWeights(nn.Module):
    """Writes other weights into its layer before each of two calls."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.drop = nn.Linear(8, 8), nn.Dropout(0.3)
        self.register_buffer("first", torch.randn(8, 8))
        self.register_buffer("second", torch.randn(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        self.body.weight.data = self.first
        x = self.body(x).relu()
        self.body.weight.data = self.second
        return self.drop(self.body(x))


class AlternatesWeights(OneDropout):
    """Gives its layer another weight on every other call."""

    def __init__(self) -> None:
        super().__init__()
        self.choices = nn.ParameterList([torch.randn(4, 8), torch.randn(4, 8)])

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.body.weight = self.choices[self.calls % 2]
        return super().forward(x)


class WritesBuffer(OneDropout):
    """Counts its calls in a buffer, training or not, without using it."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def between(self, x: Tensor) -> Tensor:
        self.seen += 1
        return x


class WritesPrefix(OneDropout):
    """Writes into a tensor of the prefix after its dropout, and then reads it."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x)
        y = self.drop(h)
        h.mul_(2)
        h[:, 0] = y[:, 1]
        return y + h


class PrivateGenerator(OneDropout):
    """Adds noise of its own generator before its dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(7)

    def between(self, x: Tensor) -> Tensor:
        return x + torch.randn(x.shape, generator=self.generator)


class AddsOntoPrefix(OneDropout):
    """Returns memory of the prefix, with the noise added in place."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x)
        h += self.drop(h)
        return h


class FillsHalves(OneDropout):
    """Writes the prefix and the rest into halves of one tensor."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x)
        both = torch.zeros(len(x), 8)
        both[:, :4] = h
        both[:, 4:] = self.drop(h)
        return both


class AssignsMasked(OneDropout):
    """Assigns where a mask says so, before and after its dropout."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x)
        h[h < 0] = 0
        y = self.drop(h)
        y[y > 1] = 1
        return y


class MakesConstants(OneDropout):
    """Makes tensors like others, and from Python's numbers."""

    def between(self, x: Tensor) -> Tensor:
        x = x + torch.full_like(x, 2.0) + torch.zeros_like(x) + x.new_ones(4) + torch.arange(4)
        return x + torch.tensor([1.0, 2.0, 3.0, 4.0])


class TurnsKnob(OneDropout):
    """Changes a plain attribute of a module of torch on every call."""

    def __init__(self) -> None:
        super().__init__()
        self.act = nn.LeakyReLU(0.1)

    def between(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.act.negative_slope = 0.1 * self.calls
        return self.act(x)


class SwapsChild(OneDropout):
    """Puts another module into a container of torch on every call."""

    def __init__(self) -> None:
        super().__init__()
        self.choices = [nn.ReLU(), nn.Tanh(), nn.Sigmoid()]
        self.sequence = nn.Sequential(nn.Linear(4, 4), nn.ReLU())

    def between(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.sequence[1] = self.choices[self.calls % 3]
        return self.sequence(x)


class CarriesState(OneDropout):
    """Starts each call from what the call before has drawn."""

    def __init__(self, *, through_data: bool) -> None:
        super().__init__()
        self.register_buffer("state", torch.zeros(3, 4))
        self.through_data = through_data

    def forward(self, x: Tensor) -> Tensor:
        y = self.drop(self.body(x) + self.state)
        (self.state.data if self.through_data else self.state).copy_(y)
        return y


class SharesNumpy(OneDropout):
    """Changes in NumPy an array whose memory a tensor shares."""

    def __init__(self) -> None:
        super().__init__()
        self.array = np.ones(4, dtype=np.float32)
        self.shared = torch.from_numpy(self.array)

    def between(self, x: Tensor) -> Tensor:
        self.array += 1
        return x * self.shared


class Prints(OneDropout):
    """Looks at a tensor of its prefix as text."""

    def between(self, x: Tensor) -> Tensor:
        self.text = f"{x * 2} {x.exp()!r}"
        return x


class Copies(OneDropout):
    """Copies a tensor as Python does."""

    def between(self, x: Tensor) -> Tensor:
        return copy.deepcopy(x) * 2


class Exponential(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.exp()


class OwnFunction(OneDropout):
    """Runs an autograd function of its own."""

    def between(self, x: Tensor) -> Tensor:
        return Exponential.apply(x)


class ReturnsItsInput(OneDropout):
    """Returns its input and a weight beside the sample."""

    def forward(self, x: Tensor) -> Any:
        return self.drop(self.body(x)), x, self.body.weight


class Gated(OneDropout):
    """Rows influence each other through a gate that starts closed."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y + self.gate * y.mean(0)


class Switched(OneDropout):
    """Rows influence each other if a plain attribute, or an argument, says so."""

    mixes = False

    def forward(self, x: Tensor, mixes: bool = False) -> Tensor:
        y = super().forward(x)
        return y + y.mean(0) if self.mixes or mixes else y


class Asserts(OneDropout):
    """Insists, with another error than torch's, on what no batch of samples can give."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        assert not torch._C._functorch.is_batchedtensor(y)
        return y


class ReadsDropped(OneDropout):
    """Goes on with what its dropout has written into, not with what it returned."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5, inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x)
        self.drop(h)
        return h * 2
