"""Symmetry and scale of weights, planted at one layer."""

import pytest
import torch
from torch import nn

import stablelightning as sl
from tests.model.findings.networks import find, findings, stack


@pytest.mark.parametrize(
    "plant",
    [
        lambda w: w.fill_(0.02),
        lambda w: w.zero_(),
        lambda w: w.copy_(w[:1].expand_as(w)),
        lambda w: w[: len(w) // 2].copy_(w[len(w) // 2 :]),
    ],
    ids=["constant", "zero", "one row", "half copies"],
)
@pytest.mark.parametrize("at", [0, 2, 4])
def test_units_that_are_copies_are_an_error_where_they_are(plant, at):
    model = stack()
    plant(model[at].weight.data)
    first = findings(model)[0]
    assert (first.code, first.module, first.severity) == ("symmetric-weights", str(at), "error")
    assert first.cure == "initialize"


def test_two_equal_units_are_a_warning():
    model = stack()
    model[2].weight.data[5] = model[2].weight.data[9]
    found = find("symmetric-weights", model)
    assert (found.severity, found.module) == ("warning", "2")
    assert found.evidence["duplicates"] == pytest.approx(1 / 48)


def test_random_bias_does_not_tell_copies_apart():
    model = stack(between=nn.BatchNorm1d)
    model[3].weight.data[:] = model[3].weight.data[:1].clone()
    model[3].bias.data.normal_()
    assert findings(model)[0].code == "symmetric-weights"


def test_several_layers_are_one_finding_about_all_of_them():
    model = stack()
    for at in (2, 4):
        nn.init.constant_(model[at].weight, 0.1)
    (found,) = (f for f in findings(model) if f.code == "symmetric-weights")
    assert found.modules == ("2", "4")
    assert found.evidence["layers"] == 2


def test_zero_heads_and_zero_ends_of_branches_are_legitimate():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.read, self.head = nn.Linear(20, 32), nn.Linear(32, 10)
            self.inner, self.outer = nn.Linear(32, 32), nn.Linear(32, 32)
            nn.init.zeros_(self.outer.weight)
            nn.init.zeros_(self.head.weight)

        def forward(self, x):
            x = torch.relu(self.read(x))
            return self.head(x + self.outer(torch.relu(self.inner(x))))

    assert [f for f in findings(Residual()) if f.severity != "info"] == []


class _Attends(nn.Module):
    """A residual branch that is nothing but attention."""

    def __init__(self):
        super().__init__()
        self.read, self.head = nn.Linear(8, 16), nn.Linear(16, 5)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)

    def forward(self, x):
        x = self.read(x)
        return self.head((x + self.attention(x, x, x)[0]).mean(1))


def test_attention_may_end_its_branch_at_zero_as_initialize_leaves_it():
    model, batch = _Attends(), (torch.randn(64, 6, 8), torch.randint(5, (64,)))
    sl.initialize(model, batch[0])
    assert not model.attention.out_proj.weight.any()
    assert [f for f in findings(model, batch) if f.severity != "info"] == []


@pytest.mark.parametrize("branch", [True, False])
def test_attention_whose_queries_keys_and_values_are_zero_is_an_error(branch):
    model, batch = _Attends(), (torch.randn(64, 6, 8), torch.randint(5, (64,)))
    if not branch:
        model.forward = lambda x: model.head(model.attention(*[model.read(x)] * 3)[0].mean(1))
    nn.init.zeros_(model.attention.in_proj_weight)
    found = find("symmetric-weights", model, batch)
    assert (found.module, found.severity) == ("attention", "error")


@pytest.mark.parametrize("at", [0, 2, 6])
def test_one_layer_a_hundred_times_too_large(at):
    model = stack()
    model[at].weight.data.mul_(100)
    first = findings(model)[0]
    assert (first.code, first.module, first.severity) == ("exploding-signal", str(at), "error")
    assert 60 < first.evidence["gain"] < 250


@pytest.mark.parametrize("at", [0, 2, 6])
def test_one_layer_a_hundred_times_too_small(at):
    model = stack()
    model[at].weight.data.mul_(0.01)
    first = findings(model)[0]
    assert (first.code, first.module, first.severity) == ("vanishing-gradient", str(at), "error")


def test_the_same_before_a_norm_is_a_warning_at_the_layer():
    for factor, code in ((100, "exploding-signal"), (0.01, "vanishing-gradient")):
        model = stack(between=nn.BatchNorm1d)
        model[3].weight.data.mul_(factor)
        first = findings(model)[0]
        assert (first.code, first.module, first.severity) == (code, "3", "warning")


def test_a_large_head_is_judged_by_its_logits():
    model = stack()
    model[-1].weight.data.mul_(100)
    assert find("exploding-signal", model).module == "8"
    model = stack()
    model[-1].weight.data.mul_(3)
    assert find("exploding-signal", model) is None


@pytest.mark.parametrize("between", [None, nn.BatchNorm1d, nn.LayerNorm])
def test_healthy_stacks_are_not_blamed(between):
    assert [f for f in findings(stack(between=between)) if f.severity != "info"] == []
