"""Every parameter is in one group, groups follow the forward, and the head is the last."""

import pytest
import torch
from torch import nn

from stablelightning.errors import ModelError, RecipeError
from stablelightning.model.depth import depth_groups, depths_of, merged_groups
from stablelightning.nn import ConvNet

torchvision = pytest.importorskip("torchvision")
timm = pytest.importorskip("timm")


def names(groups):
    return [group.name for group in groups]


def resnet():
    return torchvision.models.get_model("resnet18", weights=None, num_classes=3)


def vit():
    return timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=3, depth=3)


class Backwards(nn.Module):
    """Registers its layers in another order than it uses them."""

    def __init__(self):
        super().__init__()
        self.last = nn.Linear(4, 2)
        self.middle = nn.Linear(4, 4)
        self.first = nn.Linear(3, 4)

    def forward(self, x):
        return self.last(self.middle(self.first(x)))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(5, 4)
        self.body = nn.Linear(4, 4)
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x):
        return self.head(self.body(self.embedding(x)))


@pytest.mark.parametrize("make", [resnet, vit, lambda: ConvNet(1, 3), Backwards, Tied])
def test_every_parameter_is_in_exactly_one_group(make):
    model = make()
    found = [name for group in depth_groups(model) for name in group.parameters]
    assert sorted(found) == sorted(name for name, _ in model.named_parameters())


def test_blocks_of_a_resnet_are_groups_between_stem_and_head():
    groups = depth_groups(resnet())
    blocks = [f"layer{stage}.{block}" for stage in (1, 2, 3, 4) for block in (0, 1)]
    assert names(groups) == ["stem", *blocks, "fc"]
    assert groups[0].parameters == ("conv1.weight", "bn1.weight", "bn1.bias")
    assert "layer3.0.downsample.1" in groups[5].modules
    assert groups[5].modules[0] == "layer3.0"
    assert groups[-1].parameters == ("fc.weight", "fc.bias")


def test_a_final_norm_goes_with_the_last_block_and_not_with_the_head():
    groups = depth_groups(vit())
    assert names(groups) == ["stem", "blocks.0", "blocks.1", "blocks.2", "head"]
    assert "cls_token" in groups[0].parameters
    assert {"norm.weight", "norm.bias"} <= set(groups[-2].parameters)
    assert "norm" in groups[-2].modules


def test_the_forward_decides_the_order_where_it_is_known():
    model = Backwards()
    assert names(depth_groups(model, lambda: model(torch.zeros(2, 3)))) == [
        "first",
        "middle",
        "last",
    ]


def test_a_shared_parameter_is_in_the_first_group_that_has_it():
    groups = depth_groups(Tied())
    assert groups[0].parameters == ("embedding.weight",)
    assert names(groups) == ["embedding", "body"]


def test_a_norm_without_parameters_goes_with_the_layer_before_it():
    model = nn.Sequential(
        nn.Linear(2, 3), nn.BatchNorm1d(3, affine=False), nn.Linear(3, 3), nn.Linear(3, 1)
    )
    assert depth_groups(model)[0].modules == ("0", "1")


def test_names_hold_for_the_module_around_the_network():
    model = nn.Module()
    model.network = resnet()
    assert depth_groups(model)[1].name == "network.layer1.0"


def test_nothing_is_changed():
    model = vit().train()
    model.blocks[0].requires_grad_(False)
    before = {name: p.clone() for name, p in model.state_dict().items()}
    flags = [p.requires_grad for p in model.parameters()]
    depth_groups(model, lambda: model(torch.zeros(2, 3, 32, 32)))
    assert all(torch.equal(before[name], p) for name, p in model.state_dict().items())
    assert flags == [p.requires_grad for p in model.parameters()]
    assert all(m.training for m in model.modules())


def test_own_groups_by_name():
    groups = depth_groups(
        resnet(), named=[["conv1", "bn1", "layer1"], ["layer2", "layer3"], "layer4", "fc"]
    )
    assert names(groups) == ["conv1, bn1, layer1", "layer2, layer3", "layer4", "fc"]
    assert len(groups[0].parameters) == 3 + 12
    assert {"layer1", "layer1.0", "bn1"} <= set(groups[0].modules)


@pytest.mark.parametrize(
    ("named", "said"),
    [
        (["conv1", "bn1", "layer1", "layer2", "layer3", "fc"], "first of all layer4.0"),
        (["conv1", "bn1", "layer1", "layer1.0"], "overlap, got 'layer1.0'"),
        (["conv"], "did you mean 'conv1'"),
        (["nothing"], "there are conv1, bn1"),
    ],
)
def test_wrong_names_are_told(named, said):
    with pytest.raises(RecipeError, match=said):
        depth_groups(resnet(), named=named)


def test_a_model_without_weights_is_told():
    with pytest.raises(ModelError, match="ReLU has none"):
        depth_groups(nn.ReLU())


@pytest.mark.parametrize("most", [2, 3, 5, 9, 10, 20])
def test_merging_keeps_order_parameters_and_the_head(most):
    groups = depth_groups(resnet())
    merged = merged_groups(groups, most)
    assert len(merged) == min(most, len(groups))
    assert [n for g in merged for n in g.parameters] == [n for g in groups for n in g.parameters]
    assert merged[-1] == groups[-1]
    sizes = [len(group.name.split(" to ")) for group in merged]
    assert max(sizes) <= 2


def test_merging_into_one_is_refused():
    with pytest.raises(RecipeError, match="got 1"):
        merged_groups(depth_groups(resnet()), 1)


def test_depths_count_layers_where_nothing_repeats():
    model = nn.Sequential(nn.Linear(2, 3), nn.PReLU(), nn.Linear(3, 1))
    assert list(depths_of(model).values()) == [0, 0, 0, 1, 1]
