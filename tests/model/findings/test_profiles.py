"""Signals and gradients over depth: forward.py and backward.py."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.model.findings.networks import find, findings, stack, table


class Skips(nn.Module):
    def __init__(self, blocks, width=32):
        super().__init__()
        self.read, self.head = nn.Linear(20, width), nn.Linear(width, 10)
        self.blocks = nn.ModuleList(nn.Linear(width, width) for _ in range(blocks))
        for block in self.blocks:
            nn.init.kaiming_normal_(block.weight)

    def forward(self, x):
        x = F.relu(self.read(x))
        for block in self.blocks:
            x = x + F.relu(block(x))
        return self.head(x)


def test_a_signal_that_doubles_explodes():
    found = find("exploding-signal", stack(20, gain=2 * 2**0.5))
    assert found.severity == "error"
    assert found.evidence["slope"] == pytest.approx(0.693, abs=0.1)
    # The profile passes tenfold behind the third or fourth doubling.
    assert found.module in ("6", "8", "10")


def test_residual_blocks_without_scale_explode():
    assert find("exploding-signal", Skips(40)).severity == "error"
    assert find("exploding-signal", Skips(4)) is None


def test_torch_default_collapses_and_vanishes_in_depth():
    layers = [m for _ in range(30) for m in (nn.Linear(64, 64), nn.ReLU())]
    model = nn.Sequential(*layers, nn.Linear(64, 10))
    codes = [f.code for f in findings(model, table(columns=64)) if f.severity == "error"]
    assert codes[:2] == ["collapsed-signal", "vanishing-gradient"]


def test_he_collapses_slowly_and_the_first_layer_past_it_is_named():
    torch.manual_seed(1)
    model = stack(60, 64)
    found = find("collapsed-signal", model)
    assert found is not None
    place = int(found.module) // 2
    assert 20 < place < 60  # arXiv:1606.05340: the cosine tends to 1 as a power of depth


def test_one_input_or_two_say_nothing_about_collapse():
    assert find("collapsed-signal", stack(60, 64), table(2)) is None


def test_gradients_that_double_on_their_way_explode():
    model = stack(30, 64, nn.Tanh, gain=1.0)
    for layer in model[2:-1:2]:
        nn.init.orthogonal_(layer.weight, gain=4.0)
    found = find("exploding-gradient", model)
    assert found.severity == "error"
    assert found.evidence["slope"] < -0.1


@pytest.mark.parametrize(
    ("scale", "code"), [(1e-9, "vanishing-gradient"), (1e6, "exploding-gradient")]
)
def test_gradients_out_of_the_range_of_any_rate(scale, code):
    found = find(code, stack(), loss=lambda o, t: scale * F.cross_entropy(o, t))
    assert found.severity == "error"


def test_what_a_layer_of_its_own_explains_is_not_said_again():
    model = stack(6)
    model[4].weight.data.mul_(1e-5)
    assert [(f.code, f.module) for f in findings(model) if f.severity == "error"] == [
        ("vanishing-gradient", "4")
    ]


def test_branches_that_start_near_zero_are_no_fault():
    model = Skips(12)
    for block in model.blocks:
        block.weight.data.mul_(1e-6)
    assert [f for f in findings(model) if f.severity == "error"] == []


def test_underflow_in_half_precision():
    model = stack().half()
    inputs, target = table()
    loss = lambda o, t: 1e-5 * F.cross_entropy(o, t)  # noqa: E731
    found = find("gradient-underflow", model, (inputs.half(), target), loss)
    assert found.evidence["share"] > 0.2
    assert find("gradient-underflow", stack().bfloat16(), (inputs.bfloat16(), target), loss) is None
