"""Pointwise functions, replayed as they were written."""

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from stablelightning.model.attribution import attribute
from stablelightning.model.regions import affine, constant, name_of, region_of
from stablelightning.model.trace import Value, watch
from tests.model.written import ROWS, Written, between

GRID = torch.linspace(-3.03, 3.0, 97, dtype=torch.float64)

Function = Callable[[Tensor], Tensor]


def replayed(function: Function, *, given_to: Tensor | None = None) -> Function:
    """What the region of a watched function makes of it."""
    x = torch.randn(4, 5) if given_to is None else given_to
    trace = watch(Written(lambda _, x: function(x + 0.0)), x)
    (start,) = [o for o in trace.operations if o.name == "add"][:1]
    (end,) = trace.outputs
    region = region_of(start.outputs[0], {id(end)})
    assert region.exits[-1] is end
    return region.function(end)


# ---- random programs ----------------------------------------------------------------------------

#: Each makes one number of one. Constants that become tensors are exact in single precision.
STEPS: dict[str, Function] = {
    "relu": torch.relu,
    "sin": torch.sin,
    "negative": torch.neg,
    "clamp": lambda h: h.clamp(-0.5, 1.25),
    "clamp from below": lambda h: torch.clamp_min(h, -0.25),
    "times": lambda h: 0.7 * h,
    "divided": lambda h: h / 1.7,
    "from one": lambda h: 1 - h,
    "square": lambda h: h**2,
    "soft": F.softplus,
    "elu": lambda h: F.elu(h, 0.8),
    "leaky": lambda h: F.leaky_relu(h, 0.3),
    "gelu": F.gelu,
    "hard": F.hardtanh,
    "detached": lambda h: h.detach().clone(),
    "threshold": lambda h: F.threshold(h, 0.1, -0.2),
    "where": lambda h: torch.where(h > 0.2, h, 0.1 * h),
    "where constant": lambda h: torch.where(h > 0.2, 0.25, h),
    "where tensor": lambda h: torch.where(h < 0.2, torch.tensor(0.25), h),
    "truth": lambda h: (h > 0).float() * 0.75 + 0.1 * h,
    "not the truth": lambda h: (1 - (h > 0).to(h.dtype)) * h,
    "masked": lambda h: h.masked_fill(h < -0.4, -0.4),
    "greater": lambda h: h * torch.gt(h, 0.3),
    "both": lambda h: h * torch.logical_and(h > -1, h < 1),
    "truncated": lambda h: h - h.detach().floor() + (h * 2).to(torch.int64) * 0.125,
    "with itself": lambda h: h * torch.sigmoid(h),
    "larger": lambda h: torch.maximum(h, 0.2 * h),
    "lerp": lambda h: torch.lerp(h, h.tanh(), 0.25),
    "addcmul": lambda h: torch.addcmul(h, h, h.cos(), value=0.5),
}
#: The same, written into a copy in place, or by ``out=``.
IN_PLACE: dict[str, Function] = {
    "relu_": lambda h: h.clone().relu_(),
    "mul_": lambda h: h.clone().mul_(0.6),
    "add_": lambda h: h.clone().add_(h, alpha=0.5),
    "clamp_": lambda h: h.clone().clamp_(max=0.8),
    "masked_fill_": lambda h: h.clone().masked_fill_(h > 1.1, 1.1),
    "abs_": lambda h: h.clone().abs_(),
    "out": lambda h: torch.tanh(h, out=torch.empty_like(h)),
    "leaky out": lambda h: torch.ops.aten.leaky_relu.out(h, 0.4, out=torch.empty_like(h)),
    "item": lambda h: h.clone().__imul__(0.9).add_(0.05),
}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([*STEPS, *IN_PLACE]), min_size=1, max_size=6))
def test_random_compositions_are_replayed_in_double_precision(program: list[str]):
    def written(h: Tensor) -> Tensor:
        for name in program:
            h = {**STEPS, **IN_PLACE}[name](h)
        return h

    values = replayed(written)(GRID)
    assert values.dtype is torch.float64
    assert torch.allclose(values, written(GRID.clone()), atol=1e-12, rtol=1e-12)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from([*STEPS, *IN_PLACE]), min_size=1, max_size=4), st.booleans())
def test_a_replay_changes_nothing_and_repeats(program: list[str], single: bool):
    def written(h: Tensor) -> Tensor:
        for name in program:
            h = {**STEPS, **IN_PLACE}[name](h)
        return h

    function = replayed(written)
    x = GRID.float() if single else GRID.clone()
    kept = x.clone()
    first = function(x)
    assert torch.equal(x, kept)
    assert torch.equal(function(x), first)


# ---- names --------------------------------------------------------------------------------------

NAMED: dict[str, list[Function]] = {
    "relu": [
        torch.relu,
        lambda x: x.clamp(min=0),
        lambda x: x * (x > 0),
        lambda x: (x + abs(x)) / 2,
    ],
    "gelu": [F.gelu, lambda x: 0.5 * x * (1 + torch.erf(x / 2**0.5))],
    "silu": [F.silu, lambda x: x * torch.sigmoid(x), lambda x: x / (1 + torch.exp(-x))],
    "mish": [F.mish, lambda x: x * torch.tanh(F.softplus(x))],
    "softsign": [F.softsign, lambda x: x / (1 + x.abs())],
    "tanh": [torch.tanh, lambda x: 2 * torch.sigmoid(2 * x) - 1],
    "scaled_sigmoid": [lambda x: 4 * torch.sigmoid(x) - 2, lambda x: 2 * torch.tanh(x / 2)],
    "squared_relu": [lambda x: torch.relu(x) ** 2],
    "leaky_relu": [lambda x: torch.maximum(x, 0.1 * x), lambda x: torch.where(x < 0, 0.2 * x, x)],
    "hardtanh": [lambda x: x.clamp(-1, 1)],
    "sin": [torch.sin],
    "tan": [torch.tan],
    "pointwise(sin, mul)": [lambda x: torch.sin(x) * 3],
}


@pytest.mark.parametrize(("name", "function"), [(n, f) for n in NAMED for f in NAMED[n]])
def test_functions_are_named_by_their_values(name: str, function: Function):
    consumer = attribute(between(function), ROWS)["a"].consumer
    assert consumer.name == name
    assert consumer.function is not None
    assert torch.allclose(consumer.function(GRID), function(GRID), atol=1e-12)


def test_a_function_that_fails_on_numbers_is_named_by_its_operations():
    def fails(x: Tensor) -> Tensor:
        raise RuntimeError

    assert name_of(fails, []) == "pointwise()"


def test_a_straight_line_is_no_function():
    assert affine(lambda x: 2 * x - 1) == (2.0, -1.0)
    assert affine(torch.relu) is None
    assert affine(lambda x: x + 1e-3 * torch.relu(x)) is None
    assert attribute(between(lambda h: 3 * h - 1), ROWS)["a"].consumer.name == "linear"


# ---- what is learned or drawn -------------------------------------------------------------------


@pytest.mark.parametrize("slopes", [1, 6])
def test_learned_slopes_are_replayed_by_their_mean(slopes: int):
    act = nn.PReLU(slopes)
    with torch.no_grad():
        act.weight.copy_(torch.linspace(0.1, 0.3, slopes))
    mean = float(act.weight.mean())
    consumer = attribute(nn.Sequential(nn.Linear(4, 6), act), ROWS)["0"].consumer
    assert consumer.name == "prelu"
    assert torch.allclose(consumer.function(GRID), torch.where(GRID > 0, GRID, mean * GRID))


def test_a_slope_without_numbers_is_the_one_it_starts_from():
    model = nn.Sequential(nn.Linear(4, 6), nn.PReLU(6)).to("meta")
    consumer = attribute(model, ROWS.to("meta"))["0"].consumer
    assert torch.allclose(consumer.function(GRID), F.leaky_relu(GRID, 0.25))


def test_random_slopes_are_replayed_by_the_mean_of_their_bounds():
    for act, slope in ((nn.RReLU(), (1 / 8 + 1 / 3) / 2), (nn.RReLU(0.1, 0.5), 0.3)):
        consumer = attribute(nn.Sequential(nn.Linear(4, 6), act), ROWS)["0"].consumer
        assert torch.allclose(consumer.function(GRID), F.leaky_relu(GRID, slope), atol=1e-7)


def test_a_learned_factor_inside_of_a_function_is_its_number():
    swish = Written(
        lambda s, x: x * torch.sigmoid(s.beta * x), beta=nn.Parameter(torch.tensor(2.0))
    )
    consumer = attribute(nn.Sequential(nn.Linear(4, 6), swish), ROWS)["0"].consumer
    assert torch.allclose(consumer.function(GRID), GRID * torch.sigmoid(2 * GRID))


# ---- the extent of a region ---------------------------------------------------------------------


def test_a_mask_is_no_consumer():
    def middle(h: Tensor) -> Tensor:
        return torch.where(h > 0, torch.arange(6.0), torch.zeros(6))

    assert attribute(between(middle), ROWS)["a"].consumer.name == "linear"


def test_each_exit_has_a_function_of_its_own():
    def forward(s: nn.Module, x: Tensor) -> Any:
        h = s.a(x)
        return s.b(h.relu()), s.c(h.relu().mul(2).sin())

    model = Written(forward, a=nn.Linear(4, 6), b=nn.Linear(6, 2), c=nn.Linear(6, 2))
    role = attribute(model, ROWS)["a"]
    assert role.consumer.name == "relu"
    assert [c.name for c in role.others] == ["pointwise(relu, mul, sin)"]


def test_numbers_that_are_the_same_everywhere_are_constants():
    assert constant(Value(torch.full((3, 2), 1.5), None)) == 1.5
    assert constant(Value(torch.tensor(2), None)) == 2.0
    assert constant(Value(torch.tensor([1.0, 2.0]), None)) is None
    assert constant(Value(torch.ones(2), None, moving=True)) is None
    assert constant(Value(torch.ones(0), None)) is None
    assert constant(Value(torch.ones(2, device="meta"), None)) is None


def test_a_function_keeps_no_tensor_of_the_pass():
    model = nn.Sequential(nn.Linear(4, 6), nn.SiLU(), nn.PReLU(6), nn.Linear(6, 2))
    found = attribute(model, ROWS.clone())
    kept = [role.consumer.function for role in found.layers]
    passed = [weakref.ref(o.outputs[0].tensor) for o in found.trace.operations if o.kind != "view"]
    del found
    gc.collect()
    assert kept[0](GRID).shape == GRID.shape
    assert [ref for ref in passed if ref() is not None] == []
