"""Networks made at random: replay is the loop to the bit, and auto has its law."""

from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import stablelightning as sl
from tests.model.test_laws import assert_independent, assert_same_law, flat

WIDTH = 6

#: Steps of a forward on ``(N, C, 4, 4)``, by name.
STEPS: dict[str, Any] = {
    "convolution": lambda: nn.Conv2d(WIDTH, WIDTH, 3, padding=1),
    "norm": lambda: nn.BatchNorm2d(WIDTH),
    "relu in place": lambda: nn.ReLU(inplace=True),
    "tanh": nn.Tanh,
    "channel norm": lambda: nn.GroupNorm(2, WIDTH),
    "dropout": lambda: nn.Dropout(0.3),
    "dropout in place": lambda: nn.Dropout(0.3, inplace=True),
    "channel dropout": lambda: nn.Dropout2d(0.3),
    "alpha dropout": lambda: nn.AlphaDropout(0.2),
    "functional": lambda: FunctionalDropout(),
    "residual": lambda: Residual(in_place=False),
    "residual in place": lambda: Residual(in_place=True),
    "halves": lambda: Halves(),
    "item": lambda: ScaledByItem(),
}


class FunctionalDropout(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.3, training=self.training)


class Residual(nn.Module):
    def __init__(self, *, in_place: bool) -> None:
        super().__init__()
        self.branch, self.in_place = nn.Conv2d(WIDTH, WIDTH, 1), in_place

    def forward(self, x: Tensor) -> Tensor:
        if self.in_place:
            x += self.branch(x)
            return x
        return x + self.branch(x)


class Halves(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, 1)
        return torch.cat([right, left.sigmoid()], 1)


class ScaledByItem(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x / (1 + abs(x.mean().item()))


class Network(nn.Module):
    """Steps in order; with ``keep`` an early tensor is added at the end."""

    def __init__(self, steps: list[str], keep: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, WIDTH, 1)
        self.steps = nn.ModuleList(STEPS[step]() for step in steps)
        self.keep = keep
        self.head = nn.Linear(WIDTH, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        kept = x
        for number, step in enumerate(self.steps):
            x = step(x)
            if number == self.keep:
                kept = x
        return self.head((x + kept).mean((2, 3)))


RANDOM = [step for step in STEPS if "dropout" in step or step == "functional"]


@st.composite
def networks(draw: st.DrawFn) -> Network:
    before = draw(st.lists(st.sampled_from(list(STEPS)), max_size=4))
    after = draw(st.lists(st.sampled_from(list(STEPS)), max_size=3))
    steps = [*before, draw(st.sampled_from(RANDOM)), *after]
    torch.manual_seed(draw(st.integers(0, 1000)))
    network = Network(steps, draw(st.integers(-1, len(steps) - 1)))
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return network


@given(network=networks(), seed=st.integers(0, 99), rows=st.integers(1, 3))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_replay_is_the_loop_to_the_bit(network: Network, seed: int, rows: int) -> None:
    x = torch.randn(rows, 2, 4, 4)
    loop = sl.sample_predictions(network, x, samples=4, seed=seed, engine="loop")
    exact = sl.mc_dropout(
        network, x, samples=4, seed=seed, engine="replay", keep_samples=True, task="regression"
    )
    assert torch.equal(loop, exact.samples)
    assert exact.engine == "replay"


@given(network=networks())
@settings(max_examples=12, deadline=None, derandomize=True)
def test_auto_has_the_law_of_the_loop(network: Network) -> None:
    x = torch.randn(2, 2, 4, 4)
    loop = sl.sample_predictions(network, x, samples=300, seed=1, engine="loop")
    auto = sl.sample_predictions(network, x, samples=300, seed=2)
    assert_same_law(flat(loop), flat(auto))
    assert_independent(flat(auto))
