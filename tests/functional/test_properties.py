import math

import pytest
import torch
import torch.nn.functional as F

from stablelightning.functional.gains import backward_gain, forward_gain
from stablelightning.functional.properties import properties_of

BOUNDED = {
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "hardsigmoid": F.hardsigmoid,
    "hardtanh": F.hardtanh,
    "softsign": F.softsign,
    "arctan": torch.atan,
    "sine": torch.sin,
    "scaled sigmoid": lambda x: 4 * torch.sigmoid(x) - 2,
}
UNBOUNDED = {
    "relu": torch.relu,
    "relu6": F.relu6,  # bounded where no signal of unit variance gets
    "gelu": F.gelu,
    "elu": F.elu,
    "logarithm": lambda x: x.sign() * x.abs().log1p(),
    "root": lambda x: x.sign() * x.abs().sqrt(),
    "identity": lambda x: x,
    "zero": torch.zeros_like,
}
MIRRORS = {
    "relu": (torch.relu, 1.0),
    "leaky": (lambda x: F.leaky_relu(x, 0.2), 1.2),
    "gelu": (F.gelu, 1.0),
    "gelu, by tanh": (lambda x: F.gelu(x, approximate="tanh"), 1.0),
    "silu": (F.silu, 1.0),
    "hardswish": (F.hardswish, 1.0),
    "by hand": (lambda x: x * torch.sigmoid(1.702 * x), 1.0),
    "mish": (F.mish, None),
    "elu": (F.elu, None),
    "tanh": (torch.tanh, None),
    "absolute value": (torch.abs, None),
}


@pytest.mark.parametrize("name", BOUNDED)
def test_bounded(name):
    assert properties_of(BOUNDED[name]).bounded


@pytest.mark.parametrize("name", UNBOUNDED)
def test_not_bounded_where_signals_are(name):
    assert not properties_of(UNBOUNDED[name]).bounded


@pytest.mark.parametrize("name", MIRRORS)
def test_mirrors(name):
    function, slope = MIRRORS[name]
    found = properties_of(function).mirror_slope
    assert found == (None if slope is None else pytest.approx(slope))


def test_only_a_fixed_point_that_attracts_normalizes_itself():
    assert properties_of(F.selu).self_normalizing
    assert properties_of(lambda x: 1.5925374 * torch.tanh(x)).self_normalizing
    assert not properties_of(lambda x: x).self_normalizing  # fixed, and indifferent
    assert not properties_of(F.elu).self_normalizing
    assert not properties_of(torch.abs).self_normalizing  # mean square 1, mean 0.8


def test_values_and_slopes_at_zero():
    sigmoid = properties_of(torch.sigmoid)
    assert (sigmoid.at_zero, sigmoid.slope_at_zero) == (0.5, 0.25)
    assert properties_of(F.silu).slope_at_zero == 0.5


def test_gains_are_those_of_their_functions():
    found = properties_of(F.gelu)
    assert found.forward_gain == pytest.approx(forward_gain(F.gelu))
    assert found.backward_gain == pytest.approx(backward_gain(F.gelu))
    assert properties_of(torch.sign).backward_gain == math.inf
    assert properties_of(torch.zeros_like).forward_gain == math.inf


@pytest.mark.parametrize("function", [F.gelu, F.silu, F.mish, F.hardswish])
def test_exact_gains_of_smooth_relus_are_unstable(function):
    assert properties_of(function).variance_slope > 1.05


@pytest.mark.parametrize("function", [F.selu, F.elu, torch.tanh])
def test_exact_gains_of_others_are_stable(function):
    assert properties_of(function).variance_slope < 0.95


def test_relu_keeps_whatever_variance_it_gets():
    assert properties_of(torch.relu).variance_slope == pytest.approx(1.0, abs=1e-9)
