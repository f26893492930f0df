"""Forwards made at random, line by line: views, writes in place, state, and Python's own ways.

Whatever a forward does, replay gives the loop's samples to the bit; it may only say that it
fell back.
"""

import copy
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import stablelightning as sl
from stablelightning.errors import StableLightningWarning
from tests.model.cases import tensors

SHAPE = (3, 4)


def assign(a: Tensor, b: Tensor) -> Tensor:
    a[:, :2] = b[:, 2:]
    return a


def assign_row(a: Tensor, b: Tensor) -> Tensor:
    a[1] = b.sum(0)
    return a


def assign_masked(a: Tensor, b: Tensor) -> Tensor:
    a[b > 0] = 0.5
    return a


def scale_part(a: Tensor, b: Tensor) -> Tensor:
    a.narrow(1, 0, 2).mul_(2)
    return a


#: One line of a forward: what it makes of two tensors.
LINES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": lambda a, b: a + b,
    "sigmoid": lambda a, b: a.sigmoid(),
    "product": lambda a, b: a @ b.t() @ b,
    "add in place": lambda a, b: a.add_(b),
    "scale in place": lambda a, b: a.mul_(0.9),
    "relu in place": lambda a, b: a.relu_(),
    "fill": lambda a, b: a.fill_(0.3),
    "copy": lambda a, b: a.copy_(b.clone()),
    "assign": assign,
    "assign row": assign_row,
    "assign masked": assign_masked,
    "scale part": scale_part,
    "clone": lambda a, b: a.clone(),
    "view": lambda a, b: a.t().t(),
    "transposed": lambda a, b: a.t().contiguous().t(),
    "expand": lambda a, b: a[:1].expand(SHAPE),
    "halves": lambda a, b: torch.cat([a[:, :2], b[:, :2]], 1),
    "rows": lambda a, b: torch.stack(a.unbind(0)),
    "sort": lambda a, b: a.sort(1)[0],
    "zeros": lambda a, b: torch.zeros(SHAPE),
    "like": lambda a, b: torch.zeros_like(a) + b,
    "constant": lambda a, b: a + torch.tensor([1.0, 2.0, 3.0, 4.0]),
    "out": lambda a, b: torch.add(a, b, out=torch.empty(SHAPE)),
    "data": lambda a, b: a.data,
    "half": lambda a, b: a.half().float(),
    "item": lambda a, b: a * (1 + abs(b.mean().item())),
    "numpy": lambda a, b: a + torch.from_numpy(b.numpy().copy()),
    "text": lambda a, b: a * len(repr(b)),
    "deepcopy": lambda a, b: copy.deepcopy(a),
    "dropout": lambda a, b: F.dropout(a, 0.3, True),
    "dropout in place": lambda a, b: F.dropout(a, 0.3, True, True),
    "alpha dropout": lambda a, b: F.alpha_dropout(a, 0.2, True),
    "noise": lambda a, b: a + torch.rand(3, 1),
    "noise in place": lambda a, b: a.clone().uniform_(),
    "shuffle": lambda a, b: a[torch.randperm(3)],
}
DRAWS = ["dropout", "dropout in place", "alpha dropout", "noise", "noise in place", "shuffle"]
STATE = ["keep", "read kept", "weight", "layers", "buffer", "write buffer", "input", "forget"]


class Program(nn.Module):
    """Runs lines ``(name, i, j, when)`` on a few registers, on call ``when`` only or (0) on all."""

    def __init__(self, lines: list[tuple[str, int, int, int]], returns: int) -> None:
        super().__init__()
        self.lines, self.returns, self.calls = lines, returns, 0
        self.layer = nn.Linear(4, 4)
        self.layers = nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True), nn.Linear(4, 4))
        self.register_buffer("state", torch.randn(SHAPE))
        self.kept: Tensor | None = None

    def line(self, name: str, registers: list[Tensor], x: Tensor, i: int, j: int) -> None:
        a, b = registers[i % len(registers)], registers[j % len(registers)]
        if name == "keep":
            self.kept = a
        elif name == "write buffer":
            self.state.mul_(1.01)
        elif name == "forget":
            del registers[i % len(registers)]
            registers.append(b)
        elif name in STATE:
            registers.append(
                {
                    "read kept": lambda: a if self.kept is None else self.kept + b,
                    "weight": lambda: a + self.layer.weight[:3],
                    "layers": lambda: self.layers(self.layer(a)),
                    "buffer": lambda: a * self.state,
                    "input": lambda: a + x,
                }[name]()
            )
        else:
            registers.append(LINES[name](a, b))

    def forward(self, x: Tensor) -> Any:
        self.calls += 1
        registers = [x.clone(), self.layer(x), x * 2]
        for name, i, j, when in self.lines:
            if when in (0, self.calls):
                try:
                    self.line(name, registers, x, i, j)
                except RuntimeError as error:  # expanded memory cannot be written into
                    if "memory location" not in str(error) and "overlap" not in str(error):
                        raise
            del registers[:-6]
        whole = tuple(registers[-3:])
        return (registers[-1], whole, {"last": registers[-1], "first": registers[0]})[self.returns]


numbers = st.integers(0, 7)
sometimes = st.sampled_from([0] * 12 + [2, 3, 4])
lines = st.tuples(st.sampled_from([*LINES, *STATE]), numbers, numbers, sometimes)
draws = st.tuples(st.sampled_from(DRAWS), numbers, numbers, st.just(0))


@given(
    before=st.lists(lines, max_size=8),
    draw=draws,
    after=st.lists(lines, max_size=6),
    returns=st.integers(0, 2),
    seed=st.integers(0, 1000),
)
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_replay_is_the_loop_to_the_bit(
    before: list[Any], draw: Any, after: list[Any], returns: int, seed: int
) -> None:
    found = []
    for engine in ("loop", "replay"):
        torch.manual_seed(seed)
        model, x = Program([*before, draw, *after], returns), torch.randn(SHAPE)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", StableLightningWarning)
            output = sl.sample_predictions(model, x, samples=5, seed=1, engine=engine)
        found.append([*tensors(output), model.state, x, *tensors(model.kept)])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
