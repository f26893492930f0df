"""Which parameters are decayed, and what groups an optimizer gets."""

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from stablelightning.errors import StableLightningError
from stablelightning.model.groups import (
    ParameterGroups,
    decay_groups,
    decayed_parameters,
    layerwise_groups,
)


def names(model: nn.Module) -> list[str]:
    return list(decayed_parameters(model))


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (nn.Linear(3, 1), ["weight"]),
        (nn.Linear(1, 1), ["weight"]),
        (nn.Conv2d(1, 1, 1), ["weight"]),
        (nn.ConvTranspose1d(2, 3, 2), ["weight"]),
        (nn.Bilinear(2, 2, 1), ["weight"]),
        (nn.Embedding(3, 1), ["weight"]),
        (nn.LSTM(2, 1), ["weight_ih_l0", "weight_hh_l0"]),
        (nn.MultiheadAttention(2, 1), ["in_proj_weight", "out_proj.weight"]),
        (nn.BatchNorm2d(4), []),
        (nn.LayerNorm((4, 4)), []),
        (nn.GroupNorm(2, 4), []),
        (nn.RMSNorm((4, 4)), []),
        (nn.PReLU(4), []),
        (weight_norm(nn.Linear(3, 4)), ["parametrizations.weight.original1"]),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_weights_are_decayed_and_scales_and_shifts_are_not(layer, expected):
    assert names(layer) == expected


class Owner(nn.Module):
    """Parameters of its own, as vision transformers and ConvNeXt have them."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.zeros(3, 4))
        self.layer_scale = nn.Parameter(torch.zeros(3, 1, 1))
        self.position_bias = nn.Parameter(torch.zeros(3, 4))
        self.positions = nn.Parameter(torch.zeros(1, 5, 4))
        self.lazy = nn.LazyLinear(2)

    def no_weight_decay(self) -> set[str]:
        return {"positions"}


def test_a_module_says_what_of_its_own_is_spared():
    assert names(Owner()) == ["matrix"]
    assert names(nn.Sequential(Owner())) == ["0.matrix"]


def test_a_tied_weight_is_there_once_and_frozen_ones_too():
    embedding, head = nn.Embedding(5, 3), nn.Linear(3, 5)
    head.weight = embedding.weight
    embedding.weight.requires_grad_(False)
    assert names(nn.Sequential(embedding, head)) == ["0.weight"]


def test_a_weight_that_a_norm_shares_is_spared():
    norm, owner = nn.LayerNorm((3, 4)), Owner()
    owner.matrix = norm.weight
    assert names(nn.ModuleList([owner, norm])) == []


# ---- groups for an optimizer --------------------------------------------------------------------


def held(groups: list[dict]) -> list[int]:
    return [id(p) for group in groups for p in group["params"]]


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Embedding(9, 4), nn.Linear(4, 4), nn.LayerNorm(4), nn.PReLU(4), nn.Linear(4, 9)
    )


def test_decay_groups_hold_every_parameter_once():
    model = network()
    decay, rest = decay_groups(model, 0.1)
    assert (decay["weight_decay"], rest["weight_decay"]) == (0.1, 0.0)
    assert held([decay]) == [id(p) for p in decayed_parameters(model).values()]
    assert sorted(held([decay, rest])) == sorted(id(p) for p in model.parameters())


def test_equal_parameters_are_told_apart_and_shared_ones_kept_together():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3))
    for layer in model:
        nn.init.zeros_(layer.bias)  # by value all biases are one
    model[2].weight = model[0].weight
    groups = decay_groups(model)
    assert [len(group["params"]) for group in groups] == [2, 3]
    torch.optim.AdamW(groups)


def test_frozen_parameters_keep_their_place():
    model = network()
    model[1].requires_grad_(False)
    assert sorted(held(decay_groups(model))) == sorted(id(p) for p in model.parameters())


def test_the_optimizers_own_decay_is_taken_where_none_is_given():
    decay, rest = torch.optim.AdamW(decay_groups(network()), weight_decay=0.3).param_groups
    assert (decay["weight_decay"], rest["weight_decay"]) == (0.3, 0.0)


def test_what_is_spared_does_not_move_and_what_decays_shrinks():
    model = network()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0)
    adamw = torch.optim.AdamW(decay_groups(model, 0.5), lr=0.1)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    adamw.step()
    moved = {name for name, p in model.named_parameters() if not (p == 1.0).all()}
    assert moved == {"0.weight", "1.weight", "4.weight"}


def test_rates_fall_layer_by_layer_from_the_output():
    model = network()
    groups = layerwise_groups(model, 1.0, decay=0.5)
    names = {id(p): name for name, p in model.named_parameters()}
    found = {g["lr"]: [names[id(p)] for p in g["params"]] for g in groups}
    assert found == {
        0.25: ["0.weight"],
        0.5: ["1.weight", "1.bias", "2.weight", "2.bias", "3.weight"],  # its norm and slope
        1.0: ["4.weight", "4.bias"],
    }


class Blocks(nn.Module):
    """A stem, blocks that are registered backwards, a norm, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, 4))
        self.stem = nn.Linear(3, 4)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True) for _ in range(3)
        )
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        x = self.stem(x) + self.token
        for block in reversed(self.blocks):
            x = block(x)
        return self.head(self.norm(x))


def rates_of(model: nn.Module, groups: list[dict]) -> dict[str, float]:
    names = {id(p): name for name, p in model.named_parameters()}
    return {names[id(p)]: group["lr"] for group in groups for p in group["params"]}


def test_blocks_are_layers_with_a_stem_below_and_a_head_above():
    model = Blocks()
    rates = rates_of(model, layerwise_groups(model, 1.0, decay=0.1))
    assert len(rates) == len(list(model.parameters()))
    assert rates["token"] == rates["stem.weight"] == pytest.approx(1e-4)
    assert [rates[f"blocks.{n}.linear1.weight"] for n in range(3)] == pytest.approx(
        [1e-3, 1e-2, 1e-1]
    )
    assert {rates[f"blocks.0.{name}"] for name, _ in model.blocks[0].named_parameters()} == {
        rates["blocks.0.linear1.weight"]
    }
    assert rates["norm.weight"] == rates["head.weight"] == 1.0


def test_the_order_in_which_layers_run_can_be_watched():
    model = Blocks()
    x = torch.randn(2, 5, 3)
    rates = rates_of(model, layerwise_groups(model, 1.0, decay=0.1, run=lambda: model(x)))
    assert [rates[f"blocks.{n}.linear1.weight"] for n in range(3)] == pytest.approx(
        [1e-1, 1e-2, 1e-3]
    )


@pytest.mark.parametrize("inner_first", [True, False])
def test_both_groupings_compose_in_either_order(inner_first):
    model = network()
    if inner_first:
        groups = decay_groups(model, 0.1, groups=layerwise_groups(model, 1.0, decay=0.5))
    else:
        groups = layerwise_groups(model, 1.0, decay=0.5, groups=decay_groups(model, 0.1))
    assert sorted(held(groups)) == sorted(id(p) for p in model.parameters())
    assert len({group["name"] for group in groups}) == len(groups) == 5
    decays = {
        (group["lr"], group["weight_decay"]): len(group["params"])
        for group in torch.optim.AdamW(groups).param_groups
    }
    assert decays == {(0.25, 0.1): 1, (0.5, 0.1): 1, (0.5, 0.0): 4, (1.0, 0.1): 1, (1.0, 0.0): 1}


def test_the_rates_of_groups_are_kept_in_proportion():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    weights = [{"params": [m.weight for m in model], "lr": 0.1}]
    biases = [{"params": [m.bias for m in model]}]
    groups = layerwise_groups(model, 1.0, decay=0.5, groups=weights + biases)
    assert [group["lr"] for group in groups] == [0.05, 0.5, 0.1, 1.0]


def test_one_object_makes_both_kinds_for_the_optimizer_of_a_recipe():
    model = network()
    trial = torch.optim.SGD(model.parameters(), lr=0.2, weight_decay=0.1)
    rates = {g["lr"] for g in ParameterGroups(layer_decay=0.5)(model, trial)}
    assert rates == {0.05, 0.1, 0.2}
    assert [g["name"] for g in ParameterGroups()(model, trial)] == ["decay", "no_decay"]
    (plain,) = ParameterGroups(decay_weights_only=False)(model, trial)
    assert held([plain]) == [id(p) for p in model.parameters()]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: decay_groups(network(), -0.1), "weight_decay must be a number >= 0, got -0.1"),
        (lambda: layerwise_groups(network(), 0.0), "lr must be a number > 0"),
        (lambda: layerwise_groups(network(), 1.0, decay=1.5), "decay must be a number from 0 to 1"),
        (lambda: layerwise_groups(network(), 1.0, decay=0.0), "decay must be a number > 0"),
        (lambda: layerwise_groups(nn.LayerNorm(3), 1.0), "needs? a layer with weights"),
        (lambda: ParameterGroups(layer_decay=2.0), "layer_decay must be a number from 0 to 1"),
    ],
)
def test_settings_that_make_no_groups(make, words):
    with pytest.raises(StableLightningError, match=words):
        make()
