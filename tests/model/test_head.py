"""A new head has the size that was asked for; everything that is kept has its bits."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

import stablelightning as sl
from stablelightning.errors import DataError, ModelError, RecipeError, StableLightningWarning
from stablelightning.model.depth import depth_groups
from stablelightning.model.head import put_back, remove_head, replace_head
from stablelightning.module import StableModule
from stablelightning.nn import MLP
from stablelightning.nn.heads import GaussianHead


def small_conv():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 5),
    )


def trained(model, example):
    """Moved away from every default, so that what is drawn anew can be told."""
    model.train()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    model(example)
    return model


def state_of(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("with_example", [True, False])
def test_all_but_the_head_keeps_its_bits_flags_and_identity(with_example):
    x = torch.randn(16, 1, 8, 8)
    model = trained(small_conv(), x)
    model[0].requires_grad_(False)
    model[1].eval()
    before, same = state_of(model), list(model[:8].parameters())
    flags = [m.training for m in model]
    assert replace_head(model, 3, example=x if with_example else None) is model
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[n], before[n]) for n in before if not n.startswith("8."))
    assert all(a is b for a, b in zip(model[:8].parameters(), same, strict=True))
    assert [p.requires_grad for p in model.parameters()] == [False] * 2 + [True] * 8
    assert [m.training for m in model] == flags
    assert model(x).shape == (16, 3)


def test_the_new_head_is_drawn_by_glorot_with_zero_bias():
    head = replace_head(nn.Sequential(nn.Linear(4, 300), nn.ReLU(), nn.Linear(300, 9)), 300)[2]
    assert head.bias.abs().max() == 0
    assert head.weight.std().item() == pytest.approx((2 / 600) ** 0.5, rel=0.02)


def test_what_lies_above_the_kept_groups_is_drawn_anew_with_its_norms():
    x = torch.randn(16, 1, 8, 8)
    model = trained(small_conv(), x)
    assert [g.name for g in depth_groups(model)] == ["0", "3", "8"]
    before = state_of(model)
    replace_head(model, 5, keep_layers=1, example=x)
    after = model.state_dict()
    kept = [n for n in before if n.startswith(("0.", "1."))]
    assert all(torch.equal(after[n], before[n]) for n in kept)
    assert not any(torch.equal(after[n], before[n]) for n in before if n not in kept)
    assert torch.equal(model[4].running_mean, torch.zeros(8))
    assert model[4].num_batches_tracked == 0
    he = (2 / 36) ** 0.5  # for the ReLU
    assert model[3].weight.std().item() == pytest.approx(he, rel=0.2)


def test_keeping_nothing_draws_everything_and_keeping_all_only_the_head():
    x = torch.randn(16, 1, 8, 8)
    model = trained(small_conv(), x)
    before = state_of(model)
    replace_head(model, 5, keep_layers=2)
    assert torch.equal(model[3].weight, before["3.weight"])
    replace_head(model, 5, keep_layers=0)
    assert not any(torch.equal(v, before[n]) for n, v in model.state_dict().items())


def test_more_layers_than_there_are_is_refused_by_their_names():
    with pytest.raises(RecipeError, match=r"at most 2, .*\(0, 3\), got 3"):
        replace_head(small_conv(), 5, keep_layers=3)


def test_one_model_and_one_seed_give_one_head():
    models = [small_conv(), small_conv()]
    models[1].load_state_dict(models[0].state_dict())
    for model in models:
        torch.manual_seed(3)
        replace_head(model, 2, keep_layers=1, example=torch.ones(4, 1, 8, 8))
    pairs = zip(models[0].parameters(), models[1].parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_dropout_before_the_head_is_all_that_is_sampled():
    model = replace_head(small_conv(), 3, dropout=0.5)
    x = torch.randn(6, 1, 8, 8)
    calls = []
    model[0].register_forward_hook(lambda *_: calls.append(1))
    prediction = sl.mc_dropout(model.eval(), x, samples=200)
    assert prediction.mean.shape == (6, 3)
    assert (prediction.epistemic > 0).all()
    assert list(model.state_dict()) == list(small_conv().state_dict())
    assert len(calls) < 20  # the features are computed about once, not 200 times


def test_dropout_that_stands_there_takes_the_rate():
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.1), nn.Linear(8, 10))
    replace_head(model, 2, dropout=0.4)
    assert model[1].p == 0.4
    assert [m for m in model.modules() if isinstance(m, nn.Dropout)] == [model[1]]
    replace_head(model, 3)
    assert model[1].p == 0.4


def test_added_dropout_goes_over_to_the_new_head():
    model = sl.add_dropout(small_conv(), 0.3)
    replace_head(model, 2)
    assert sl.mc_dropout(model, torch.randn(4, 1, 8, 8), samples=10).epistemic.max() > 0
    assert model[8].added_dropout.p == 0.3


def test_a_model_with_a_new_head_is_copied_and_pickled():
    model = replace_head(small_conv(), 3, dropout=0.5).eval()
    x = torch.randn(4, 1, 8, 8)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(x), model(x))
        assert other.train()[8].added_dropout.training
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    buffer.seek(0)
    replace_head(small_conv(), 3).load_state_dict(torch.load(buffer, weights_only=True))


def test_a_convolution_stays_one():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 10, 1), nn.Flatten())
    replace_head(model, 2, dropout=0.2)
    assert isinstance(model[2], nn.Conv2d)
    assert model[2].weight.shape == (2, 4, 1, 1)


def test_a_gaussian_head_predicts_so_many_targets():
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), GaussianHead(8, 1))
    replace_head(model, 3)
    assert model(torch.randn(5, 4)).mean.shape == (5, 3)


def test_the_network_inside_a_module_is_meant():
    module = StableModule(MLP(6, 4, hidden=[8]), task="classification")
    replace_head(module, 7, example=torch.randn(4, 6))
    assert module(torch.randn(2, 6)).shape == (2, 7)


def test_a_weight_shared_with_what_is_kept_stays():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3))
    model[2].weight = model[0].weight
    before = model[0].weight.clone()
    bias = model[2].bias.clone()
    replace_head(model, 3, keep_layers=1)
    assert torch.equal(model[2].weight, before)
    assert model[2].weight is model[0].weight
    assert not torch.equal(model[2].bias, bias)


def test_a_parametrized_layer_is_drawn_through_its_parametrization():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3))
    nn.utils.parametrizations.weight_norm(model[2])
    before = model[2].weight.clone()
    replace_head(model, 3, keep_layers=1)
    assert model[2].weight.isfinite().all()
    assert not torch.equal(model[2].weight, before)


class Token(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.full((4,), 7.0))
        self.register_buffer("places", torch.arange(4))

    def forward(self, x):
        return x * self.scale


def test_what_no_layer_knows_is_drawn_small_and_told_and_constants_stay():
    inner = nn.Sequential(nn.Linear(4, 4), Token())
    model = nn.Sequential(nn.Linear(4, 4), inner, nn.Linear(4, 2))
    with pytest.warns(StableLightningWarning, match=r"1 parameters .* 1\.1\.scale"):
        replace_head(model, 2, keep_layers=1)
    assert inner[1].scale.abs().max() < 0.1
    assert torch.equal(inner[1].places, torch.arange(4))


def test_a_removed_head_leaves_features_and_comes_back():
    x = torch.randn(3, 1, 8, 8)
    model = small_conv().eval()
    expected = model(x)
    head, name = remove_head(model, x)
    assert name == "8"
    assert model(x).shape == (3, 8)
    assert torch.equal(head(model(x)), expected)
    assert torch.equal(put_back(model, head, name)(x), expected)


def test_a_head_that_two_names_hold_is_replaced_under_both():
    model = nn.Module()
    model.body, model.fc = nn.Linear(4, 8), nn.Linear(8, 5)
    model.alias = model.fc
    replace_head(model, 2)
    assert model.alias is model.fc
    assert model.fc.out_features == 2


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"num_outputs": 0}, "num_outputs must be a whole number >= 1"),
        ({"num_outputs": 2, "dropout": 1.0}, r"dropout must be a rate in \[0, 1\), got 1.0"),
        ({"num_outputs": 2, "keep_layers": -1}, "keep_layers must be a whole number >= 0"),
    ],
)
def test_settings_out_of_range_are_refused(settings, says):
    with pytest.raises(RecipeError, match=says):
        replace_head(small_conv(), **settings)


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (nn.Linear(3, 2), "is the head itself"),
        (nn.Sequential(nn.ReLU()), "must be a layer with weights"),
        (nn.Sequential(nn.Linear(3, 3), nn.LazyLinear(2)), "lazy layer; pass an example"),
        (nn.Sequential(nn.Linear(3, 3), nn.GRU(3, 2)), "a GRU; replace it by hand"),
        (torch.jit.script(nn.Sequential(nn.Linear(3, 3))), "before torch.compile or scripting"),
        (torch.compile(nn.Sequential(nn.Linear(3, 3))), "before torch.compile or scripting"),
    ],
    ids=["alone", "none", "lazy", "recurrent", "scripted", "compiled"],
)
def test_models_without_a_head_that_could_be_replaced_are_refused(model, says):
    with pytest.raises(ModelError, match=says):
        replace_head(model, 2)


def test_heads_of_two_sizes_are_refused():
    model = nn.Module()
    model.fc, model.head = nn.Linear(4, 2), nn.Linear(4, 3)
    with pytest.raises(ModelError, match="fc: 2, head: 3"):
        replace_head(model, 5)
    with pytest.raises(ModelError, match="one head"):
        remove_head(model)


def test_an_example_that_does_not_fit_is_refused():
    with pytest.raises(DataError, match="must fit the forward of Sequential"):
        replace_head(small_conv(), 2, example=torch.randn(4, 7))


def test_classifiers_of_torchvision_and_timm():
    torchvision, timm = pytest.importorskip("torchvision"), pytest.importorskip("timm")
    x = torch.randn(2, 3, 32, 32)
    models = [
        torchvision.models.resnet18(),
        torchvision.models.squeezenet1_1(),
        timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2),
        timm.create_model("deit_tiny_distilled_patch16_224", img_size=32, depth=2),
    ]
    for model in models:
        keys = list(model.state_dict())
        replace_head(model.eval(), 4)
        assert model(x).shape == (2, 4)
        assert list(model.state_dict()) == keys
    assert models[2].num_classes == 4
