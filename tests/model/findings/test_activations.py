"""Dead, saturated and off-centre units."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.model.findings.networks import find, findings, stack, table


@pytest.mark.parametrize("activation", [nn.ReLU, nn.ReLU6, nn.GELU, nn.SiLU, nn.ELU, nn.SELU])
def test_a_large_negative_bias_kills_a_layer(activation):
    model = stack(activation=activation)
    model[2].bias.data.fill_(-15.0)
    found = next(f for f in findings(model)[:2] if f.code == "dead-units")
    assert (found.module, found.severity) == ("2", "error")
    assert found.evidence["dead"] > 0.9
    assert "bias" in found.message


def test_a_share_of_the_units_is_counted():
    model = stack()
    model[4].bias.data[:12] = -15.0
    found = findings(model)[0]
    assert (found.code, found.module, found.severity) == ("dead-units", "4", "warning")
    assert found.evidence["dead"] == pytest.approx(0.25, abs=0.03)


def test_half_zeros_on_each_input_are_not_dead():
    assert find("dead-units", stack(), table(256)) is None


def test_what_a_dead_layer_silences_is_not_blamed():
    model = stack(depth=6)
    model[4].bias.data.fill_(-30.0)
    assert [(f.code, f.module) for f in findings(model) if f.severity == "error"] == [
        ("dead-units", "4")
    ]


def test_leaky_units_do_not_die():
    model = stack(activation=nn.LeakyReLU)
    model[2].bias.data.fill_(-15.0)
    assert find("dead-units", model) is None


def test_channels_count_over_examples_and_positions():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10))
    model[0].bias.data[:4] = -30.0
    found = find("dead-units", model, (torch.randn(16, 3, 8, 8), torch.randint(10, (16,))))
    assert found.module == "0"
    assert found.evidence["dead"] == 0.5


@pytest.mark.parametrize("activation", [nn.Tanh, nn.Sigmoid, nn.Hardtanh])
def test_a_scaled_layer_saturates_a_bounded_activation(activation):
    model = stack(2, activation=activation, gain=1.0)
    model[2].weight.data.mul_(100)
    found = findings(model)[0]
    assert (found.code, found.module, found.severity) == ("saturated-units", "2", "error")
    assert found.evidence["saturated"] > 0.8


def test_standard_normal_weights_saturate_every_layer():
    model = stack(4, 128, nn.Tanh, gain=1.0)
    for layer in model[::2]:
        nn.init.normal_(layer.weight)
    found = [f for f in findings(model) if f.code == "saturated-units"]
    assert [f.severity for f in found] == ["error", "warning"]  # 128 inputs, and 20
    assert {name for f in found for name in f.modules} == {"0", "2", "4", "6"}


def test_the_off_half_of_a_rectifier_is_no_saturation():
    assert find("saturated-units", stack(activation=nn.ReLU6)) is None


def test_sigmoids_are_not_zero_centred_and_tanh_is():
    found = find("not-zero-centred", stack(2, activation=nn.Sigmoid, gain=1.0))
    assert found.cure == "swap-activation"
    assert found.evidence["positive"] == 1
    for activation in (nn.Tanh, nn.ReLU, nn.GELU):
        assert find("not-zero-centred", stack(2, activation=activation)) is None


def test_gates_are_no_activations():
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.read, self.head = nn.Linear(20, 32), nn.Linear(32, 10)
            self.squeeze, self.excite = nn.Linear(32, 8), nn.Linear(8, 32)

        def forward(self, x):
            x = F.relu(self.read(x))
            return self.head(x * self.excite(F.relu(self.squeeze(x))).sigmoid())

    assert find("not-zero-centred", Gated()) is None
    assert find("mixed-activations", Gated()) is None
