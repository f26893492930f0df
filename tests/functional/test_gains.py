import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from stablelightning.errors import ModelError
from stablelightning.functional.gains import backward_gain, forward_gain, second_moment

LAMBDA, ALPHA = 1.0507009873554804934193349852946, 1.6732632423543772848170429916717


def normal_cdf(x):
    return (1 + math.erf(x / math.sqrt(2))) / 2


def exponential_below_zero(a):
    """E[exp(a z); z < 0]."""
    return math.exp(a * a / 2) * normal_cdf(-a)


def elu_moments(alpha):
    one, two = exponential_below_zero(1), exponential_below_zero(2)
    return 0.5 + alpha**2 * (two - 2 * one + 0.5), 0.5 + alpha**2 * two


_ELU = elu_moments(1.0)
_SELU = tuple(LAMBDA**2 * moment for moment in elu_moments(ALPHA))
_INSIDE = 2 * normal_cdf(1) - 1
_HARDTANH = _INSIDE - 2 * math.exp(-0.5) / math.sqrt(2 * math.pi) + 2 * normal_cdf(-1)

CLOSED_FORMS = {
    "relu": (torch.relu, 0.5, 0.5),
    "leaky 0.2": (lambda x: F.leaky_relu(x, 0.2), 0.52, 0.52),
    "selu": (F.selu, *_SELU),
    "elu": (F.elu, *_ELU),
    "elu 0.3": (lambda x: F.elu(x, 0.3), *elu_moments(0.3)),
    "hardtanh": (F.hardtanh, _HARDTANH, _INSIDE),
    "absolute value": (torch.abs, 1.0, 1.0),
    "squared relu": (lambda x: F.relu(x) ** 2, 1.5, 2.0),
    "sine": (torch.sin, (1 - math.exp(-2)) / 2, (1 + math.exp(-2)) / 2),
    "exponential": (torch.exp, math.exp(2), math.exp(2)),
    "threshold": (lambda x: F.threshold(x, 0.5, 0.0), None, normal_cdf(-0.5)),
}


@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_gains_equal_their_closed_forms(name):
    function, square, slope = CLOSED_FORMS[name]
    if square is not None:
        assert forward_gain(function) == pytest.approx(1 / math.sqrt(square), abs=1e-9)
    assert backward_gain(function) == pytest.approx(1 / math.sqrt(slope), abs=1e-9)


def test_selu_has_gain_one():
    assert forward_gain(F.selu) == pytest.approx(1.0, abs=1e-12)


@given(
    kink=st.floats(-3, 3),
    low=st.floats(-2, 2),
    high=st.floats(-2, 2).filter(lambda s: abs(s) > 0.1),
)
@settings(max_examples=30, deadline=None)
def test_kinks_anywhere(kink, low, high):
    """A broken line through (kink, 0): its slope's mean square is known wherever it breaks."""

    def line(x):
        return (x - kink) * (low + (high - low) * (x > kink).double())

    above = normal_cdf(-kink)
    expected = 1 / math.sqrt(high**2 * above + low**2 * (1 - above))
    assert backward_gain(line) == pytest.approx(expected, rel=1e-8)


@given(steps=st.lists(st.floats(-3, 3), min_size=1, max_size=6, unique=True))
@settings(max_examples=20, deadline=None)
def test_jumps_anywhere(steps):
    def stairs(x):
        return sum(((x > step).double() for step in steps), torch.ones_like(x))

    edges = sorted(steps)
    levels = zip([-math.inf, *edges], [*edges, math.inf], strict=True)
    chances = [normal_cdf(high) - normal_cdf(low) for low, high in levels]
    expected = sum(p * (k + 1) ** 2 for k, p in enumerate(chances))
    assert second_moment(stairs) == pytest.approx(expected, rel=1e-8)


def test_a_function_with_a_backward_pass_of_its_own_is_taken_at_its_word():
    class Straight(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.sign()

        @staticmethod
        def backward(ctx, gradient):
            return gradient

    assert backward_gain(Straight.apply) == pytest.approx(1.0)
    assert forward_gain(Straight.apply) == pytest.approx(1.0)


def test_a_function_that_writes_in_place_is_read_right():
    assert forward_gain(lambda x: F.relu(x, inplace=True)) == pytest.approx(math.sqrt(2))
    assert backward_gain(lambda x: F.relu(x, inplace=True)) == pytest.approx(math.sqrt(2))


def test_gains_are_the_same_in_inference_mode():
    with torch.inference_mode():
        assert backward_gain(torch.tanh) == pytest.approx(1.46741, abs=1e-5)


@pytest.mark.parametrize(
    "function", [torch.zeros_like, lambda x: x * 0 + math.inf], ids=["0", "inf"]
)
def test_no_gain_for_a_function_that_passes_nothing_on(function):
    with pytest.raises(ModelError, match="needs a finite"):
        forward_gain(function)


def test_no_backward_gain_for_a_flat_function():
    with pytest.raises(ModelError, match="got 0"):
        backward_gain(torch.sign)


@pytest.mark.parametrize(
    "function",
    [lambda x: F.softmax(x, -1), F.dropout, lambda x: x.sum(), lambda x: F.prelu(x, torch.ones(1))],
    ids=["softmax", "dropout", "sum", "float32"],
)
def test_what_is_not_elementwise_is_refused_in_words(function):
    with pytest.raises(ModelError, match="elementwise function that takes float64"):
        forward_gain(function)
