"""Every way to name an activation, and what is said where there is none of that name."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from stablelightning.errors import RecipeError
from stablelightning.model.activation_names import (
    activation_choice,
    activation_name,
    functional_name,
    is_activation,
    known_name,
)
from stablelightning.nn import MaxoutLinear, ScaledSigmoid

timm_layers = pytest.importorskip("timm.layers.activations")

ELEMENTWISE = [
    getattr(nn, name)
    for name in nn.modules.activation.__all__
    if name not in ("GLU", "MultiheadAttention", "Threshold") and "oftm" not in name
]


@pytest.mark.parametrize("kind", [*ELEMENTWISE, ScaledSigmoid], ids=lambda k: k.__name__)
def test_every_activation_of_torch_is_named_by_its_class_and_read_again(kind):
    choice = activation_choice(kind.__name__)
    assert type(choice.make()) is kind
    assert activation_choice(choice.name).name == choice.name == activation_name(kind())
    assert is_activation(kind())
    assert choice.make() is not choice.make()


@pytest.mark.parametrize(
    ("written", "name", "kind"),
    [
        ("leaky_relu(0.2)", "leaky_relu(0.2)", nn.LeakyReLU),
        ("LeakyReLU(negative_slope=0.01)", "leaky_relu", nn.LeakyReLU),
        ("elu(alpha=0.5)", "elu(0.5)", nn.ELU),
        ("rrelu(0.1, 0.3)", "rrelu(0.1, 0.3)", nn.RReLU),
        ("gelu(approximate='tanh')", "gelu('tanh')", nn.GELU),
        ("softplus(threshold=10)", "softplus(threshold=10)", nn.Softplus),
        ("swish", "silu", nn.SiLU),
        ("hard-swish", "hardswish", nn.Hardswish),
        (nn.GELU, "gelu", nn.GELU),
        (partial(nn.LeakyReLU, 0.3), "leaky_relu(0.3)", nn.LeakyReLU),
        (nn.CELU(2.0), "celu(2.0)", nn.CELU),
    ],
)
def test_ways_of_writing(written, name, kind):
    choice = activation_choice(written)
    assert choice.name == name
    assert type(choice.make()) is kind
    if isinstance(written, str | nn.Module):
        assert activation_name(choice.make()) == name


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ("rellu", "did you mean 'relu'"),
        ("leaky-rel", "'leaky_relu'"),
        ("qqq", "there are celu, elu"),
        ("softmax", "must act on every element"),
        ("glu", "must act on every element"),
        (nn.Softmax, "must be a module that acts on every element"),
        ("leaky_relu(1, 2, 3, 4)", "they are negative_slope"),
        ("elu(beta=1)", "they are alpha"),
        ("leaky_relu(x)", "plain arguments in brackets"),
        ("leaky_relu(0.2", "plain arguments in brackets"),
        ("maxout(1)", "pieces must be a whole number >= 2"),
        ("maxout(2, 3)", "takes its pieces alone"),
        (nn.Linear, "must need no arguments"),
        (dict, "got dict"),
        (7, "got 7"),
        ("", "got ''"),
    ],
)
def test_what_is_no_activation_is_told_in_one_line(written, told):
    with pytest.raises(RecipeError) as error:
        activation_choice(written)
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_maxout_has_no_module_of_its_own():
    assert activation_choice("maxout").make is None
    assert activation_choice("Maxout(pieces=3)").name == "maxout(3)"
    assert activation_name(MaxoutLinear(2, 2)) == activation_choice("maxout").name


@pytest.mark.parametrize("name", ["Swish", "Mish", "HardSwish", "QuickGELU", "GELUTanh", "PReLU"])
def test_activations_of_timm_are_known(name):
    assert is_activation(getattr(timm_layers, name)())


@pytest.mark.parametrize(
    "module",
    [nn.Linear(1, 1), nn.Softmax(-1), nn.GLU(), nn.Identity(), nn.Dropout(), nn.BatchNorm1d(2)],
)
def test_other_modules_are_not_taken_for_one(module):
    assert not is_activation(module)
    assert not known_name(type(module).__name__)


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (F.relu, "relu"),
        (torch.tanh, "tanh"),
        (partial(F.leaky_relu, negative_slope=0.2), "leaky_relu"),
        (F.linear, None),
        (nn.ReLU, None),
        (len, None),
        (3, None),
    ],
)
def test_functions_are_known(function, name):
    assert functional_name(function) == name
