"""A classifier is taken off; the last layer of what gives features is not."""

import pytest
from torch import nn

from stablelightning.errors import ModelError
from stablelightning.nn import MLP, ConvNet, RecurrentNet
from stablelightning.nn.heads import GaussianHead
from stablelightning.pretraining.head import take_head_off


@pytest.mark.parametrize(
    ("net", "name"),
    [
        (ConvNet(1, 10), "head"),
        (MLP(4, 3), "head"),
        (RecurrentNet(2, 3), "head"),
        (nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), "2"),
        (nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3), nn.Softmax(1)), "2"),
    ],
)
def test_a_linear_layer_at_the_end_is_a_head(net, name):
    taken = take_head_off(net)
    assert taken.name == name
    assert isinstance(net.get_submodule(name), nn.Identity)


@pytest.mark.parametrize(
    "net",
    [
        nn.Sequential(nn.Linear(4, 8), nn.ReLU()),
        nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8)),
        nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        nn.Sequential(nn.Conv2d(1, 4, 3)),
        nn.Linear(4, 8),
    ],
)
def test_features_stay(net):
    keys = list(net.state_dict())
    assert take_head_off(net) is None
    assert list(net.state_dict()) == keys


def test_mean_and_variance_go_together():
    net = MLP(4, variance=True)
    taken = take_head_off(net)
    assert taken.name == "head"
    assert isinstance(taken.head, GaussianHead)
    assert isinstance(net.head, nn.Identity)


def test_a_flag_of_evaluation_is_kept():
    net = MLP(4, 3).eval()
    take_head_off(net)
    assert not net.head.training


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "squeezenet1_1"])
def test_torchvisions_classifiers_are_found(name):
    models = pytest.importorskip("torchvision.models")
    net = getattr(models, name)(num_classes=5)
    taken = take_head_off(net)
    assert taken.name.partition(".")[0] in ("fc", "classifier")


def test_a_timm_model_without_a_classifier_stays():
    timm = pytest.importorskip("timm")
    settings = {"img_size": 32, "patch_size": 8, "depth": 1}
    net = timm.create_model("vit_tiny_patch16_224", num_classes=0, **settings)
    assert take_head_off(net) is None
    net = timm.create_model("vit_tiny_patch16_224", num_classes=3, **settings)
    assert take_head_off(net).name == "head"


def test_a_network_without_weights_is_refused():
    with pytest.raises(ModelError, match="must be weights to pretrain"):
        take_head_off(nn.ReLU())
