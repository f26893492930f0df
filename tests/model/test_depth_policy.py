"""What the doctor does with deep plain stacks: when skips are worth it, and with which weights."""

import pytest
import torch
from torch import nn

import stablelightning as sl
from stablelightning.functional.isometry import in_mirrored_halves, is_isometry

X = torch.randn(128, 64, generator=torch.Generator().manual_seed(0))
Y = torch.arange(128) % 10


def deep(activation, depth=30, width=32):
    layers = []
    for before in [64] + [width] * (depth - 1):
        layers += [nn.Linear(before, width), activation()]
    return nn.Sequential(*layers, nn.Linear(width, 10))


def adam(model, rate):
    return torch.optim.Adam(model.parameters(), lr=rate)


def codes(diagnosis):
    return [finding.code for finding in diagnosis.findings]


def cured(model, rate):
    torch.manual_seed(0)
    sl.initialize(model, X)
    found = sl.diagnose(model, (X, Y), optimizer=adam(model, rate))
    return found, found.apply()


@pytest.mark.parametrize("activation", [nn.ReLU, nn.GELU, nn.Tanh])
def test_a_long_step_gives_a_level_stack_skips_and_a_short_one_leaves_it(activation):
    model = deep(activation)
    found, after = cured(model, 1e-2)
    assert "plain-depth" in codes(found)
    assert any(t.cure == "add-skips" and t.done for t in after.treatments)
    assert "plain-depth" not in codes(after)
    calm, untouched = cured(deep(activation), 1e-5)
    assert [f.severity for f in calm.findings if f.code == "plain-depth"] == ["info"]
    assert not untouched.treatments


def test_without_an_optimizer_a_level_stack_is_given_skips_too():
    model = deep(nn.ReLU)
    sl.initialize(model, X)
    (finding,) = sl.diagnose(model, (X, Y)).findings
    assert (finding.severity, finding.cure) == ("info", "add-skips")


def test_selu_stays_plain_unless_the_rate_is_at_fault():
    for optimizer in (None, adam(model := deep(nn.SELU), 1e-5)):
        sl.initialize(model, X, overwrite=True)
        assert not sl.diagnose(model, (X, Y), optimizer=optimizer).findings
    found, after = cured(deep(nn.SELU), 1e-2)
    assert {"learning-rate-too-high", "plain-depth"} <= set(codes(found))
    assert "self-normalization-broken" not in codes(after)


def test_a_stack_that_gets_skips_works_at_a_signal_of_full_size():
    model = deep(nn.Tanh)
    found, after = cured(model, 1e-2)
    inner = [layer for layer in found.layers if 0 < layer.index < 30]
    assert max(layer.std for layer in inner) < 0.5
    assert max(layer.std for layer in after.layers if 0 < layer.index < 30) > 0.7
    assert all(is_isometry(m.weight) for m in model if isinstance(m, nn.Linear))


def test_trained_weights_get_skips_and_stay_as_they_are():
    model = deep(nn.Tanh)
    sl.initialize(model, X)
    with torch.no_grad():
        for layer in model:
            if isinstance(layer, nn.Linear):
                layer.weight.add_(0.02 * torch.randn_like(layer.weight))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    after = sl.diagnose(model, (X, Y), optimizer=adam(model, 1e-2)).apply()
    assert [t.cure for t in after.treatments] == ["add-skips"]
    assert all(torch.equal(model.state_dict()[k], v) for k, v in before.items())


def test_weights_that_explode_are_drawn_as_a_whole_before_the_skips():
    torch.manual_seed(0)
    model = deep(nn.ReLU)
    for layer in model[::2]:
        nn.init.normal_(layer.weight)
    after = sl.diagnose(model, (X, Y)).apply()
    assert [t.cure for t in after.treatments] == ["initialize", "add-skips"]
    assert all(in_mirrored_halves(layer.weight) for layer in model[:-1:2])


def test_frozen_layers_of_a_stack_are_not_drawn_anew():
    torch.manual_seed(0)
    model = deep(nn.ReLU)
    for layer in model[4::2]:
        nn.init.normal_(layer.weight)
    model[0].requires_grad_(False)
    kept = model[0].weight.clone()
    sl.diagnose(model, (X, Y)).apply()
    assert torch.equal(model[0].weight, kept)


def test_scaled_sigmoids_get_weights_of_their_own():
    model = deep(nn.Sigmoid, depth=6)
    _, after = cured(model, 1e-3)
    assert {t.cure for t in after.treatments if t.done} == {"swap-activation", "initialize"}
    assert not [f for f in after.findings if f.severity == "error"]
    assert not in_mirrored_halves(model[0].weight)
