import pytest
import torch
from torch import nn

import stablelightning as sl
from stablelightning.model.materialize import materialize

X = torch.randn(4, 6)


class Tokens(nn.Module):
    """A parameter and buffers that no reset_parameters fills."""

    def __init__(self, device=None):
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, 6, device=device))
        self.register_buffer("mask", torch.ones(6, device=device))
        self.layer = nn.Linear(6, 6, device=device)

    def forward(self, x):
        return self.layer(x * self.mask + self.token)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(6, 6, device="meta")
        self.second = nn.Linear(6, 6, device="meta")
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.second(self.first(x))


def test_a_model_with_memory_is_left():
    model = nn.Linear(6, 2)
    before = model.weight.clone()
    assert materialize(model, X) == []
    assert torch.equal(model.weight, before)


def test_buffers_come_from_reset_parameters():
    model = nn.Sequential(nn.Linear(6, 3, device="meta"), nn.BatchNorm1d(3, device="meta"))
    assert materialize(model, X) == []
    assert torch.equal(model[1].running_var, torch.ones(3))
    assert model[1].num_batches_tracked == 0
    assert model[0].weight.abs().max() <= 6**-0.5


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.LSTM(6, 5, device="meta"),
        lambda: nn.MultiheadAttention(6, 2, device="meta"),
        lambda: nn.Embedding(6, 5, padding_idx=0, device="meta"),
        lambda: nn.TransformerEncoderLayer(6, 2, 8, device="meta"),
    ],
)
def test_layers_of_every_kind_are_as_fresh_from_their_constructors(make):
    module = make()
    materialize(module, X)
    assert all(torch.isfinite(p).all() for p in module.parameters())
    assert not any(p.is_meta for p in module.parameters())
    if isinstance(module, nn.Embedding):
        assert not module.weight[0].any()


def test_what_nobody_fills_is_said_and_never_left_to_chance():
    model = Tokens(device="meta")
    notes = materialize(model, X)
    assert [note.split(":")[0] for note in notes] == ["token", "mask"]
    assert 0 < model.token.abs().max() < 0.05
    assert not model.mask.any()


def test_what_is_there_already_stays():
    model = nn.Sequential(nn.Linear(6, 3), nn.Linear(3, 2, device="meta"))
    before = model[0].weight.clone()
    materialize(model, X)
    assert torch.equal(model[0].weight, before)


def test_shared_weights_stay_shared():
    model = Tied()
    materialize(model, X)
    assert model.second.weight is model.first.weight


def test_initialize_materializes_and_says_so():
    report = sl.initialize(Tokens(device="meta"), X)
    assert report["layer"].changed
    assert any("mask" in note for note in report.notes)
    assert "mask" in str(report)
