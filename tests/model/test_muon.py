"""Muon and AdamW as one optimizer: each does to its part what torch's own does."""

import copy
import pickle

import pytest
import torch
from torch import nn

from stablelightning.errors import StableLightningWarning
from stablelightning.model.groups import decay_groups
from stablelightning.model.muon import MuonAdamW, muon_groups
from stablelightning.model.schedules import OneCycle, WarmupCosine
from stablelightning.model.trial import copied


def network() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 2))


INPUTS = torch.linspace(-1, 1, 24).view(6, 4)


def train(model: nn.Module, *optimizers: torch.optim.Optimizer, steps: int = 5) -> None:
    for _ in range(steps):
        model.zero_grad()
        model(INPUTS).square().mean().backward()
        for optimizer in optimizers:
            optimizer.step()


def same(first: nn.Module, second: nn.Module) -> bool:
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_each_part_is_trained_as_by_torchs_own():
    ours, theirs = network(), network()
    train(ours, MuonAdamW(muon_groups(ours), lr=0.01, weight_decay=0.1))
    hidden = [theirs[0].weight, theirs[2].weight]
    rest = [p for p in theirs.parameters() if not any(p is h for h in hidden)]
    muon = torch.optim.Muon(hidden, lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    train(theirs, muon, torch.optim.AdamW(rest, lr=0.01, weight_decay=0.1))
    assert same(ours, theirs)


def test_roles_decide_and_not_dimensions_alone():
    model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 9))
    names = {id(p): name for name, p in model.named_parameters()}
    chosen = [names[id(p)] for g in muon_groups(model) if g["muon"] for p in g["params"]]
    assert chosen == ["1.weight"]


def test_groups_that_do_not_say_are_split_by_dimension():
    groups = MuonAdamW(network().parameters()).param_groups
    assert [(g["muon"], len(g["params"])) for g in groups] == [(True, 3), (False, 3)]
    assert "momentum" in groups[0]
    assert "betas" in groups[1]


def test_groups_of_decay_are_split_further_and_keep_their_decay():
    model = network()
    groups = MuonAdamW(muon_groups(model, decay_groups(model, 0.2))).param_groups
    assert [(g["name"], g["weight_decay"]) for g in groups] == [
        ("decay/muon", 0.2),
        ("decay/adamw", 0.2),
        ("no_decay/adamw", 0.0),
    ]


def test_a_network_of_convolutions_is_told_that_muon_has_nothing_to_do():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(16, 2))
    with pytest.warns(StableLightningWarning, match="all of it is trained with AdamW"):
        groups = muon_groups(model)
    assert [group["muon"] for group in groups] == [False]


@pytest.mark.parametrize("again", [lambda x: pickle.loads(pickle.dumps(x)), copy.deepcopy])
def test_a_copy_of_both_goes_on_to_the_bit(again):
    model = network()
    optimizer = MuonAdamW(muon_groups(model), lr=0.01)
    train(model, optimizer)
    other, its = again((model, optimizer))
    train(model, optimizer)
    train(other, its)
    assert same(model, other)
    assert other[0].weight is its.param_groups[0]["params"][0]


def test_a_loaded_state_goes_on_to_the_bit():
    model = network()
    optimizer = MuonAdamW(muon_groups(model), lr=0.01)
    schedule = WarmupCosine(optimizer, total_steps=20)
    for _ in range(4):
        train(model, optimizer, steps=1)
        schedule.step()
    other = copy.deepcopy(model)
    fresh = MuonAdamW(muon_groups(other), lr=0.01)
    resumed = WarmupCosine(fresh, total_steps=20)
    fresh.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    resumed.load_state_dict(schedule.state_dict())
    for _ in range(4):
        train(model, optimizer, steps=1)
        train(other, fresh, steps=1)
        schedule.step()
        resumed.step()
    assert same(model, other)
    assert [g["lr"] for g in fresh.param_groups] == [g["lr"] for g in optimizer.param_groups]


def test_no_gradients_move_nothing():
    model = network()
    before = copy.deepcopy(model)
    MuonAdamW(muon_groups(model)).step()
    assert same(model, before)


def test_a_closure_is_called_with_gradients():
    model = network()

    def closure() -> torch.Tensor:
        model.zero_grad()
        loss = model(INPUTS).square().mean()
        loss.backward()
        return loss

    before = copy.deepcopy(model)
    loss = MuonAdamW(muon_groups(model)).step(closure)
    assert loss > 0
    assert not same(model, before)


def test_what_works_on_any_optimizer_works_on_this_one():
    optimizer = MuonAdamW(muon_groups(network()), lr=0.02)
    twin = copied(optimizer)
    assert [g["muon"] for g in twin.param_groups] == [True, False]
    assert [g["lr"] for g in twin.param_groups] == [0.02, 0.02]
    # Its two parts call their momentum differently: a cycle leaves both alone.
    assert not OneCycle(optimizer, total_steps=9).cycle_momentum
