"""Which tensor counts as a layer's activation, in modules, functions and residual blocks."""

import gc
import math

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from stablelightning.model.activity import ActivityWatch, followed_layers
from stablelightning.model.attribution import attribute
from stablelightning.model.unit_record import UnitRecord


def seen(model, x, *, roles=True):
    """Signals by layer of one forward pass in training mode, and where functions are flat."""
    watch = ActivityWatch(model, attribute(model, x).layers if roles else ())
    model.train()
    with watch:
        model(x)
    record = UnitRecord(watch.layers, watch.units, window=1)
    signals = record.look(watch.take(torch.zeros(1))[None], watch.ends)
    return signals, dict(zip(watch.layers, watch.ends, strict=True))


class Block(nn.Module):
    """A residual block, its functions as modules or by hand."""

    def __init__(self, *, modules: bool) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        self.relu = nn.ReLU(inplace=True) if modules else None

    def forward(self, x):
        relu = self.relu or F.relu
        return relu(self.second(relu(self.first(x))) + x)


@pytest.mark.parametrize("roles", [False, True])
def test_the_output_of_the_module_behind_it(roles):
    model, x = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)), torch.randn(6, 4)
    signals, ends = seen(model, x, roles=roles)
    assert signals["0"]["activation_mean"] == pytest.approx(model[:2](x).mean().item(), abs=1e-6)
    assert signals["2"]["activation_mean"] == pytest.approx(model(x).mean().item(), abs=1e-6)
    assert ends["0"].can_saturate
    assert not ends["2"].can_die


@pytest.mark.parametrize("roles", [False, True])
def test_a_residual_block_that_writes_in_place(roles):
    block, x = Block(modules=True), torch.randn(2, 3, 4, 4)
    signals, _ = seen(block, x.clone(), roles=roles)
    assert signals["first"]["activation_mean"] == pytest.approx(
        block.first(x).relu().mean().item(), abs=1e-6
    )
    assert signals["second"]["activation_mean"] == pytest.approx(
        block(x.clone()).mean().item(), abs=1e-6
    )


def test_a_residual_block_by_hand():
    block, x = Block(modules=False), torch.randn(2, 3, 4, 4)
    signals, ends = seen(block, x)
    assert ends["first"].dead_below == 0.0
    # What is added to the second is not seen: its own output is all that is told.
    assert not ends["second"].can_die
    own = block.second(block.first(x).relu()).mean().item()
    assert signals["second"]["activation_mean"] == pytest.approx(own, abs=1e-6)


def test_every_layer_of_resnet18_but_the_last_can_die():
    model = torchvision.models.resnet18(num_classes=5)
    signals, ends = seen(model, torch.randn(2, 3, 32, 32))
    assert len(signals) == 21
    assert [name for name, found in ends.items() if found.dead_below != 0.0] == ["fc"]


def test_a_hand_written_function_counts_as_one():
    class Swish(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.head = nn.Linear(3, 4), nn.Linear(4, 1)

        def forward(self, x):
            hidden = self.layer(x)
            return self.head(hidden * torch.sigmoid(hidden))

    model, x = Swish(), torch.randn(5, 3)
    signals, ends = seen(model, x)
    expected = F.silu(model.layer(x)).mean().item()
    assert signals["layer"]["activation_mean"] == pytest.approx(expected, abs=1e-6)
    assert ends["layer"].dead_below == pytest.approx(-8.9, abs=0.1)


def test_a_layer_that_runs_twice_is_counted_twice():
    shared = nn.Linear(3, 3)
    model, x = nn.Sequential(shared, nn.ReLU(), shared, nn.ReLU()), torch.randn(4, 3)
    watch = ActivityWatch(model, attribute(model, x).layers)
    with watch:
        model(x)
    assert watch.take(torch.zeros(1))[0] == 8


def test_a_recurrent_layer_and_attention():
    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(3, 4, bidirectional=True, batch_first=True)
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x):
            hidden, _ = self.lstm(x)
            return self.attention(hidden, hidden, hidden)[0]

    signals, _ = seen(Reads(), torch.randn(2, 5, 3))
    assert set(signals) == {"lstm"}
    assert math.isfinite(signals["lstm"]["activation_std"])


def test_nothing_stays_behind():
    model, x = nn.Sequential(nn.Linear(3, 3), nn.ReLU(inplace=True)), torch.randn(4, 3)
    watch = ActivityWatch(model)
    watch.attach()
    watch.attach()
    assert sum(len(m._forward_hooks) for m in model) == 2
    model(x)
    watch.detach()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model)
    model(x)
    assert watch.take(torch.zeros(1))[0] == 4
    assert watch.take(torch.zeros(1)).count_nonzero() == 0


def test_nothing_of_the_first_pass_is_kept():
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.head = nn.Linear(3, 7), nn.Linear(7, 1)

        def forward(self, x):
            return self.head(F.gelu(self.layer(x)) * 2.0)

    model = Functional()
    roles = followed_layers(model, torch.randn(1009, 3))
    gc.collect()
    alive = [t for t in gc.get_objects() if type(t) is torch.Tensor and not t.is_meta]
    assert not [t for t in alive if t.ndim and t.shape[0] == 1009]
    x = torch.randn(5)  # and the function is still there
    torch.testing.assert_close(roles[0].consumer.function(x), F.gelu(x) * 2.0)


def test_random_generators_are_left_alone():
    model = nn.Sequential(nn.Linear(3, 3), nn.RReLU(), nn.Linear(3, 1))
    state = torch.get_rng_state()
    ActivityWatch(model)
    assert torch.equal(torch.get_rng_state(), state)
