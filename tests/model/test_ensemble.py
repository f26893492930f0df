"""Members are drawn anew where they are fresh; several models and checkpoints predict as one."""

import copy

import lightning as L
import pytest
import torch
from torch import nn

from stablelightning import mc_dropout
from stablelightning.errors import CheckpointError, ModelError, RecipeError, StableLightningWarning
from stablelightning.model.backbones import backbone
from stablelightning.model.ensemble import (
    LoadedMembers,
    draw_networks,
    predict_ensemble,
    read_state,
)
from stablelightning.model.libraries import library_model
from stablelightning.model.loaded import mark_loaded
from stablelightning.model.mixture import Reading
from stablelightning.nn import MLP


def test_models_of_any_kind_predict_as_one():
    x = torch.randn(6, 4)
    plain, sampled = nn.Linear(4, 3), MLP(4, 3, hidden=[8], dropout=0.5)
    prediction = predict_ensemble([plain, sampled], x, samples=10, seed=0)
    assert prediction.samples_used == 11
    means = plain(x).softmax(-1), mc_dropout(sampled, x, samples=2000, seed=1).mean
    expected = torch.stack([mean.detach() for mean in means]).mean(0)
    torch.testing.assert_close(prediction.mean, expected, atol=0.15, rtol=0)
    again = predict_ensemble([plain, sampled], x, samples=10, seed=0)
    assert torch.equal(again.mean, prediction.mean)
    assert plain.training
    assert sampled.training


def test_a_plain_member_is_in_eval():
    net = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    before = copy.deepcopy(net.state_dict())
    predict_ensemble([net, net], torch.randn(6, 4))
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_regressions_and_settings():
    nets = [nn.Linear(4, 2) for _ in range(3)]
    reading = Reading(task="regression", keep_samples=True)
    prediction = predict_ensemble(nets, torch.randn(6, 4), reading=reading)
    assert prediction.samples.shape == (3, 6, 2)
    torch.testing.assert_close(prediction.total, prediction.samples.var(0, correction=0))
    with pytest.raises(RecipeError, match="samples must be"):
        predict_ensemble(nets, torch.randn(6, 4), samples=0)
    with pytest.raises(ModelError, match="one or more modules"):
        predict_ensemble([], torch.randn(6, 4))


def test_what_makes_a_network_makes_every_member():
    class Special(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)
            nn.init.orthogonal_(self.layer.weight)

    first, second = draw_networks(Special, 2)
    assert not torch.equal(first.layer.weight, second.layer.weight)
    for network in (first, second):
        weight = network.layer.weight
        torch.testing.assert_close(weight @ weight.T, torch.eye(4), atol=1e-5, rtol=0)


def test_a_ready_network_keeps_what_was_loaded_in_every_member():
    network = nn.Sequential(nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 20))
    mark_loaded(network, ["0.weight", "0.bias"])
    members = draw_networks(network, 3)
    assert members[0] is network
    for member in members[1:]:
        assert torch.equal(member[0].weight, network[0].weight)
        assert not torch.equal(member[2].weight, network[2].weight)
        assert float(member[2].weight.detach().std()) == pytest.approx(
            float(network[2].weight.detach().std()), rel=0.2
        )


def test_a_pretrained_backbone_is_the_same_in_every_member_but_for_its_head(monkeypatch):
    library = library_model("resnet18")
    made = library.make({}, for_weights=True)
    monkeypatch.setattr(type(library), "make_pretrained", lambda *_: made)
    network = backbone("resnet18", num_outputs=3)
    first, second = draw_networks(network, 2)
    differ = [n for n, p in first.named_parameters() if not torch.equal(p, second.get_parameter(n))]
    assert differ == ["fc.weight", "fc.bias"]


def test_a_backbone_without_weights_is_drawn_anew(recwarn):
    first, second = draw_networks(backbone("resnet18", weights=None, num_outputs=3), 2)
    assert not torch.equal(first.conv1.weight, second.conv1.weight)
    assert not [w for w in recwarn if issubclass(w.category, StableLightningWarning)]


def test_weights_that_look_set_are_told_before_they_are_drawn_anew():
    network = nn.Linear(20, 20)
    nn.init.constant_(network.weight, 3.0)
    with pytest.warns(StableLightningWarning, match="pass a function that makes the network"):
        draw_networks(network, 2)


def test_a_part_that_every_network_shares_is_drawn_anew():
    shared = nn.Linear(20, 20)
    members = draw_networks(lambda: nn.Sequential(shared, nn.Linear(20, 2)), 2)
    assert members[0][0] is shared
    assert not torch.equal(members[1][0].weight, shared.weight)


def test_seeds_follow_the_global_one():
    def drawn():
        L.seed_everything(5, verbose=False)
        return draw_networks(lambda: nn.Linear(4, 2), 2)

    for one, other in zip(drawn(), drawn(), strict=True):
        assert torch.equal(one.weight, other.weight)


def test_networks_that_were_made_by_hand():
    networks = [nn.Linear(4, 2) for _ in range(2)]
    assert draw_networks(networks, 2) == networks
    with pytest.raises(ModelError, match="one network for each of 3 members, got 2"):
        draw_networks(networks, 3)


def test_checkpoints_are_members_of_one_model(tmp_path):
    nets = [nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)) for _ in range(3)]
    for number, net in enumerate(nets):
        net(torch.randn(8, 4))
        torch.save({"state_dict": net.eval().state_dict()}, tmp_path / f"{number}.ckpt")
    model = copy.deepcopy(nets[0])
    before = copy.deepcopy(model.state_dict())
    members = LoadedMembers(model, [read_state(tmp_path / f"{n}.ckpt") for n in range(3)])
    x = torch.randn(6, 4)
    expected = torch.stack([net(x).detach().softmax(-1) for net in nets]).mean(0)
    prediction = mc_dropout(model, x)
    torch.testing.assert_close(prediction.mean, expected)
    assert prediction.engine == "3 members"
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with members.as_member(2):
        torch.testing.assert_close(model(x), nets[2](x))


def test_checkpoints_that_cannot_be_members(tmp_path):
    with pytest.raises(CheckpointError, match=r"checkpoint 2 of 2 .* differs in bias, weight"):
        LoadedMembers(nn.Linear(4, 3), [nn.Linear(4, n).state_dict() for n in (3, 5)])
    with pytest.raises(CheckpointError, match="got none"):
        LoadedMembers(nn.Linear(4, 3), [])
    (tmp_path / "text.ckpt").write_text("no weights")
    torch.save({"state_dict": {}}, tmp_path / "empty.ckpt")
    for name in ("text.ckpt", "none.ckpt", "empty.ckpt"):
        with pytest.raises(CheckpointError, match=name):
            read_state(tmp_path / name)


def test_checkpoints_take_the_precision_of_the_model_that_speaks_for_them():
    model = nn.Linear(4, 3).to(torch.bfloat16)
    LoadedMembers(model, [nn.Linear(4, 3).state_dict() for _ in range(2)])
    prediction = mc_dropout(model, torch.randn(6, 4, dtype=torch.bfloat16))
    assert prediction.engine == "2 members"
    assert model.weight.dtype == torch.bfloat16
