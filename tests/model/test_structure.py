"""Heads and blocks are where a careful reader of the network would point."""

import pytest
import torch
from torch import nn

from stablelightning.errors import ModelError
from stablelightning.model.structure import find_blocks, find_heads, is_weight_layer, weight_layers

torchvision = pytest.importorskip("torchvision")
timm = pytest.importorskip("timm")


class TwoHeads(nn.Module):
    """The log-variance runs last and was made first; both are heads, ``unused`` is none."""

    def __init__(self):
        super().__init__()
        self.log_variance = nn.Linear(8, 1)
        self.mean = nn.Linear(8, 1)
        self.body = nn.Linear(4, 8)
        self.unused = nn.Linear(8, 8)

    def forward(self, x):
        features = self.body(x).relu()
        return {"mean": self.mean(features), "log_variance": self.log_variance(features)}


class WithFeatures(nn.Module):
    """Returns its features beside the scores, and adds its input to them."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 4)
        self.body = nn.Linear(4, 4)

    def forward(self, x):
        features = self.body(x)
        return features + self.head(features), features


class Cosine(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 8))

    def forward(self, x):
        return nn.functional.linear(
            nn.functional.normalize(x), nn.functional.normalize(self.weight)
        )


def names_of(model, modules):
    return [name for name, module in model.named_modules() if any(module is m for m in modules)]


def test_every_head_is_found_by_the_flow_of_data():
    model = TwoHeads()
    heads = find_heads(model, lambda: model(torch.randn(2, 4)))
    assert names_of(model, heads) == ["log_variance", "mean"]


def test_features_beside_the_scores_and_skips_do_not_make_an_earlier_layer_a_head():
    model = WithFeatures()
    assert names_of(model, find_heads(model, lambda: model(torch.randn(2, 4)))) == ["head"]


def test_a_frozen_network_is_followed_and_stays_frozen():
    model = TwoHeads().requires_grad_(False).train()
    model.body.requires_grad_(True)
    with torch.inference_mode():
        example = torch.randn(2, 4)
    with torch.no_grad():
        heads = find_heads(model, lambda: model(example.clone()))
    assert names_of(model, heads) == ["log_variance", "mean"]
    assert [n for n, p in model.named_parameters() if p.requires_grad] == [
        "body.weight",
        "body.bias",
    ]
    assert all(m.training for m in model.modules())
    assert not any(m._forward_hooks for m in model.modules())


def test_a_model_that_runs_itself_without_gradients_gives_the_layer_that_ran_last():
    model = TwoHeads()
    heads = find_heads(model, torch.no_grad()(lambda: model(torch.randn(2, 4))))
    assert names_of(model, heads) == ["log_variance"]


def test_a_distribution_as_output_is_looked_into():
    class Normal(TwoHeads):
        def forward(self, x):
            out = super().forward(x)
            return torch.distributions.Normal(out["mean"], out["log_variance"].exp())

    model = Normal()
    heads = find_heads(model, lambda: model(torch.randn(2, 4)))
    assert names_of(model, heads) == ["log_variance", "mean"]


def test_weights_in_a_module_of_the_users_own_count():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), Cosine())
    assert find_heads(model)[0] is model[2]
    assert find_heads(model, lambda: model(torch.randn(2, 4)))[0] is model[2]


def test_norms_and_embeddings_and_the_uncalled_layer_of_attention_have_no_part_in_it():
    attention = nn.MultiheadAttention(8, 2)
    assert weight_layers(attention) == []
    assert not is_weight_layer(nn.Embedding(3, 4))
    assert not is_weight_layer(nn.LayerNorm((4, 4)))
    assert is_weight_layer(nn.LSTM(3, 4))


def test_a_parametrized_layer_is_still_a_layer():
    layer = nn.utils.parametrizations.spectral_norm(nn.Linear(4, 3))
    assert weight_layers(nn.Sequential(layer)) == [layer]


def test_the_auxiliary_head_of_a_segmentation_network_is_one_head_of_two_with_an_example():
    model = torchvision.models.segmentation.fcn_resnet50(
        weights=None, weights_backbone=None, aux_loss=True
    )
    assert names_of(model, find_heads(model)) == ["classifier.4"]
    heads = find_heads(model, lambda: model(torch.randn(1, 3, 32, 32)))
    assert names_of(model, heads) == ["classifier.4", "aux_classifier.4"]


def test_a_wrapper_around_the_network_is_looked_through():
    wrapper = nn.Module()
    wrapper.loss = nn.CrossEntropyLoss()
    wrapper.network = torchvision.models.resnet18(weights=None)
    assert names_of(wrapper, find_heads(wrapper)) == ["network.fc"]


def test_the_two_heads_of_a_distilled_transformer_are_found_by_timms_convention():
    model = timm.create_model("deit_tiny_distilled_patch16_224")
    assert names_of(model, find_heads(model)) == ["head", "head_dist"]


def test_no_weights_no_head():
    with pytest.raises(ModelError, match="ReLU has none"):
        find_heads(nn.ReLU())
    model = nn.ModuleList([nn.Linear(2, 2)])
    with pytest.raises(ModelError, match="reached none"):
        find_heads(model, lambda: torch.ones(1))


BLOCKS = {
    "resnet18": {"BasicBlock": 8},
    "densenet121": {"_DenseLayer": 58},
    "convnext_tiny": {"CNBlock": 18},
    "efficientnet_b0": {"MBConv": 16},
    "mobilenet_v3_small": {"InvertedResidual": 11},
    "googlenet": {"Inception": 9, "InceptionAux": 2},
    "swin_t": {"SwinTransformerBlock": 12},
    "vit_b_32": {"EncoderBlock": 12},
    "vgg11_bn": {},
    "timm/resnet10t": {"BasicBlock": 4},
    "timm/vit_tiny_patch16_224": {"Block": 12},
    "timm/swin_tiny_patch4_window7_224": {"SwinTransformerBlock": 12},
    "timm/mobilenetv3_small_050": {"InvertedResidual": 10},
}


@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_are_what_their_authors_call_blocks(name):
    with torch.device("meta"):
        if name.startswith("timm/"):
            model = timm.create_model(name.removeprefix("timm/"))
        else:
            kwargs = {"init_weights": False} if name == "googlenet" else {}
            model = torchvision.models.get_model(name, weights=None, **kwargs)
    kinds = [type(block).__name__ for block in find_blocks(model)]
    assert {kind: kinds.count(kind) for kind in kinds} == BLOCKS[name]


def test_blocks_that_eval_does_not_run_are_left_out_with_an_example():
    model = torchvision.models.googlenet(weights=None, init_weights=False)
    blocks = find_blocks(model, lambda: model(torch.randn(1, 3, 32, 32)))
    assert [type(block).__name__ for block in blocks] == ["Inception"] * 9


def test_plain_sequences_are_blocks_where_nothing_else_repeats():
    def block(features):
        return nn.Sequential(nn.Conv2d(features, 8, 3), nn.BatchNorm2d(8), nn.ReLU())

    model = nn.Sequential(block(1), block(8), nn.Flatten(), nn.Linear(8, 2))
    assert find_blocks(model) == [model[0], model[1]]


def test_a_block_that_is_run_twice_is_one_block():
    layer = nn.TransformerEncoderLayer(8, 2, 16)
    assert find_blocks(nn.ModuleList([layer, layer, nn.TransformerEncoderLayer(8, 2, 16)])) != []
    assert (
        len(find_blocks(nn.ModuleList([layer, layer, nn.TransformerEncoderLayer(8, 2, 16)]))) == 2
    )
