"""Two hundred layers, measured, against the maps that theory gives."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import stablelightning as sl
from stablelightning.functional.depth import cosine_map, variance_map
from stablelightning.functional.properties import properties_of

DEPTH, ROWS = 200, 32

ACTIVATIONS = {
    "relu": (nn.ReLU, F.relu),
    "leaky": (lambda: nn.LeakyReLU(0.2), lambda x: F.leaky_relu(x, 0.2)),
    "elu": (nn.ELU, F.elu),
    "selu": (nn.SELU, F.selu),
    "gelu": (nn.GELU, F.gelu),
    "silu": (nn.SiLU, F.silu),
    "mish": (nn.Mish, F.mish),
    "tanh": (nn.Tanh, torch.tanh),
}


def network(make, width):
    layers = [m for _ in range(DEPTH) for m in (nn.Linear(width, width), make())]
    return nn.Sequential(*layers, nn.Linear(width, width)).double()


def profile(model, x):
    """Of each linear layer's output: mean square, variance over the data per unit, mean cosine."""
    rows = []
    with torch.no_grad():
        for module in model:
            x = module(x)
            if isinstance(module, nn.Linear):
                rows.append((x.square().mean().item(), x.var(0).mean().item(), cosine(x)))
    return rows


def cosine(x):
    a, b = x[: ROWS // 2], x[ROWS // 2 :]
    return (F.cosine_similarity(a, b) if len(a) else x.new_zeros(1)).mean().item()


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_random_weights_follow_the_maps_of_theory(name):
    """Layer by layer: from what is measured at one, theory gives the next, up to finite width."""
    make, function = ACTIVATIONS[name]
    width = 128
    model = network(make, width)
    x = torch.randn(ROWS, width, dtype=torch.float64)
    report = sl.initialize(model, x, scheme="he")
    gain = report["0"].gain
    assert gain == pytest.approx(properties_of(function).forward_gain, abs=1e-6)
    measured = profile(model, x)
    errors = []
    for place in range(0, DEPTH - 1, 8):
        (size, _, c), (after, _, c_after) = measured[place], measured[place + 1]
        errors.append(math.log(after / (gain**2 * variance_map(function, size))))
        if place % 40 == 0:
            assert c_after == pytest.approx(cosine_map(function, c, variance=size), abs=0.1)
    # A layer of n units errs by sqrt(5 / n) once all inputs look alike.
    assert abs(sum(errors) / len(errors)) < 0.15
    assert max(map(abs, errors)) < 5 * math.sqrt(5 / width)


def test_random_weights_make_all_inputs_look_alike_as_theory_says():
    """ReLU: the size is kept, and what tells inputs apart is gone."""
    model = network(nn.ReLU, 128)
    x = torch.randn(ROWS, 128, dtype=torch.float64)
    sl.initialize(model, x, scheme="he")
    expected = cosine(x)
    for _ in range(DEPTH):
        expected = cosine_map(torch.relu, expected)
    size, variance, c = profile(model, x)[-1]
    assert c == pytest.approx(expected, abs=0.05)
    assert expected > 0.99
    assert variance < 0.1 * size


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_auto_keeps_what_tells_inputs_apart_over_two_hundred_layers(name):
    make, _ = ACTIVATIONS[name]
    model = network(make, 64)
    x = torch.randn(ROWS, 64, dtype=torch.float64)
    sl.initialize(model, x)
    measured = profile(model, x)
    first, last = measured[0], measured[-2]
    assert last[0] == pytest.approx(first[0], rel=0.5)
    assert last[1] > 0.5 * last[0]  # of the mean square, at least half is variance over the data
    assert abs(last[2] - first[2]) < 0.2
