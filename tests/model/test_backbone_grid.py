"""New heads on the architectures that people fine-tune: small ones of each family, made by name."""

import pytest
import torch

from stablelightning.model.backbones import backbone
from stablelightning.model.depth import depth_groups
from stablelightning.model.head import replace_head
from stablelightning.model.sample import mc_dropout
from stablelightning.model.weights_file import WeightsFile, load_file

pytest.importorskip("torchvision")
pytest.importorskip("timm")

_SHALLOW = {"depths": (1, 1, 1, 1)}
_VIT = {"embed_dim": 24, "depth": 2, "num_heads": 2}
_HEADS = {
    # torchvision: name, settings, pixels, names of the head
    "resnet18": ({}, 32, ["fc"]),
    "mobilenet_v2": ({"width_mult": 0.35}, 32, ["classifier.1"]),
    "mobilenet_v3_small": ({}, 32, ["classifier.3"]),
    "shufflenet_v2_x0_5": ({}, 32, ["fc"]),
    "squeezenet1_1": ({}, 32, ["classifier.1"]),
    "mnasnet0_5": ({}, 32, ["classifier.1"]),
    "efficientnet_b0": ({}, 32, ["classifier.1"]),
    "regnet_y_400mf": ({}, 32, ["fc"]),
    "googlenet": ({}, 64, ["fc"]),
    # timm
    "timm/resnet10t": ({}, 32, ["fc"]),
    "timm/mobilenetv3_small_050": ({}, 32, ["classifier"]),
    "timm/convnext_atto": (_SHALLOW, 32, ["head.fc"]),
    "timm/efficientnet_lite0": ({}, 32, ["classifier"]),
    "timm/densenet121": ({"block_config": (1, 2, 1, 1)}, 32, ["classifier"]),
    "timm/vgg11": ({"mlp_ratio": 0.02}, 64, ["head.fc"]),
    "timm/swin_tiny_patch4_window7_224": (
        {**_SHALLOW, "embed_dim": 24, "img_size": 64, "window_size": 2},
        64,
        ["head.fc"],
    ),
    "timm/vit_tiny_patch16_224": ({**_VIT, "img_size": 32, "patch_size": 8}, 32, ["head"]),
    "timm/deit_tiny_distilled_patch16_224": (
        {**_VIT, "img_size": 32, "patch_size": 8},
        32,
        ["head", "head_dist"],
    ),
    "timm/mixer_s32_224": ({"img_size": 64}, 64, ["head"]),
    "timm/nf_resnet26": ({}, 32, ["head.fc"]),
    "timm/regnetx_002": ({}, 32, ["head.fc"]),
}
ARCHITECTURES = [pytest.param(name, *given, id=name) for name, given in _HEADS.items()]


def without(names, state):
    heads = tuple(f"{name}." for name in names)
    return {key: value for key, value in state.items() if not key.startswith(heads)}


@pytest.mark.parametrize(("name", "settings", "pixels", "heads"), ARCHITECTURES)
def test_the_head_is_new_and_everything_else_keeps_its_bits(name, settings, pixels, heads):
    net = backbone(name, weights=None, settings=settings)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    kept = {id(p) for n, p in net.named_parameters() if not n.startswith(tuple(heads))}
    replace_head(net, 7, dropout=0.25)
    after = net.state_dict()
    assert list(after) == list(before)
    assert [key for key in before if not torch.equal(before[key], after[key])] == [
        f"{head}.{kind}" for head in heads for kind in ("weight", "bias")
    ]
    assert kept <= {id(p) for p in net.parameters()}
    x = torch.randn(2, 3, pixels, pixels)
    assert net(x).shape == net.eval()(x).shape == (2, 7)
    *body, head = depth_groups(net)
    assert set(head.parameters) == {f"{h}.{kind}" for h in heads for kind in ("weight", "bias")}
    assert len(body) >= 3


@pytest.mark.parametrize(("name", "settings", "pixels", "heads"), ARCHITECTURES)
def test_weights_of_a_thousand_classes_go_below_a_head_of_seven(name, settings, pixels, heads):
    source = backbone(name, weights=None, settings=settings).state_dict()
    net = backbone(name, weights=None, num_outputs=7, settings=settings)
    report = load_file(net, WeightsFile("source.pt", {f"model.{k}": v for k, v in source.items()}))
    wanted, found = without(heads, source), without(heads, net.state_dict())
    assert wanted.keys() == found.keys()
    assert all(torch.equal(wanted[key], found[key]) for key in wanted)
    assert report.whole
    assert report.share == 1.0
    assert {key.rpartition(".")[0] for key, _, _ in report.reshaped} == set(heads)


@pytest.mark.parametrize("name", ["resnet18", "timm/vit_tiny_patch16_224", "timm/convnext_atto"])
def test_only_the_new_head_is_sampled(name):
    settings, pixels, _ = _HEADS[name]
    net = backbone(name, weights=None, num_outputs=7, dropout=0.5, settings=settings)
    calls = []
    first = next(m for m in net.modules() if isinstance(m, torch.nn.Conv2d))
    first.register_forward_hook(lambda *_: calls.append(1))
    prediction = mc_dropout(
        net, torch.randn(2, 3, pixels, pixels), samples=30, task="classification"
    )
    assert (prediction.epistemic > 0).all()
    assert len(calls) < 30
