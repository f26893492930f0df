"""A swap replaces hidden activations and nothing else: no weight, no flag, no key of the rest."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from stablelightning.errors import ModelError, RecipeError
from stablelightning.model.activation import swap_activations
from stablelightning.model.dropout import AddedDropout, add_dropout
from stablelightning.nn import MLP, ConvNet, Maxout, MaxoutConv2d, MaxoutLinear, ScaledSigmoid

torchvision = pytest.importorskip("torchvision")
timm = pytest.importorskip("timm")

ROWS = torch.randn(3, 4)

#: Name, image size, and what is left: the functions that the model calls by itself, and gates.
MODELS = [
    ("resnet18", 32, set()),
    ("efficientnet_b0", 32, {"sigmoid"}),
    ("mobilenet_v3_small", 32, {"hardsigmoid"}),
    ("densenet121", 32, {"F.relu"}),
    ("convnext_tiny", 32, set()),
    ("timm:test_vit", 160, {".sigmoid"}),
    ("timm:test_efficientnet", 64, {"sigmoid"}),
    ("timm:test_nfnet", 64, {"sigmoid"}),
    ("timm:resnet10t", 64, set()),
]


def build(name):
    if name.startswith("timm:"):
        return timm.create_model(name[5:], num_classes=5)
    return torchvision.models.get_model(name, weights=None, num_classes=5)


def small():
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2))


def pairs(changes):
    return {c.path: (c.before, c.after) for c in changes}


@pytest.mark.parametrize("with_example", [False, True], ids=["structure", "flow"])
@pytest.mark.parametrize(("name", "size", "left"), MODELS, ids=[m[0] for m in MODELS])
def test_whole_families(name, size, left, with_example):
    model, x = build(name).train(), torch.randn(2, 3, size, size)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    flags = {n: m.training for n, m in model.named_modules()}
    report = swap_activations(model, "leaky_relu(0.2)", example=x if with_example else None)
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert {n: m.training for n, m in model.named_modules()} == flags
    assert {kept.name for kept in report.kept} == left
    assert len(report.swapped) >= 6
    for swapped in report.swapped:
        assert type(model.get_submodule(swapped.path)) is nn.LeakyReLU
    F.cross_entropy(model(x), torch.tensor([0, 1])).backward()


@pytest.mark.parametrize("name", ["selu", "gelu", "prelu", "scaled_sigmoid", "maxout(3)"])
@pytest.mark.parametrize(
    "model",
    [small(), MLP(4, 2), ConvNet(1, 2, channels=[4, 8])],
    ids=["sequential", "MLP", "ConvNet"],
)
def test_swapped_models_train_copy_and_pickle(model, name):
    model = copy.deepcopy(model)
    x = torch.randn(6, 1, 8, 8) if isinstance(model, ConvNet) else torch.randn(6, 4)
    assert swap_activations(model, name).swapped
    twin = pickle.loads(pickle.dumps(copy.deepcopy(model)))
    twin.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(twin.eval()(x), model.eval()(x))
    model.train()(x).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_there_and_back_is_the_same_model():
    model = MLP(4, 2, hidden=(8, 8))
    x, twin = ROWS, copy.deepcopy(model)
    for activation in ("selu", "elu", "relu"):
        swap_activations(model, activation)
    assert repr(model) == repr(twin)
    assert torch.equal(model.eval()(x), twin.eval()(x))


def test_flags_hooks_and_in_place_are_taken_over():
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True), nn.Linear(4, 2)).train()
    net[1].eval()
    seen = []
    handle = net[1].register_forward_hook(lambda *_: seen.append(1))
    swap_activations(net, "elu")
    assert (net[1].inplace, net[1].training) == (True, False)
    net(ROWS)
    assert seen == [1]
    swap_activations(net, "gelu")  # which has no such flag
    handle.remove()
    net(ROWS)
    assert seen == [1]


@pytest.mark.parametrize("after", ["tanh", "leaky_relu", "selu", "silu", "elu"])
@pytest.mark.parametrize("before", [nn.Hardswish(inplace=True), nn.SiLU(), nn.ReLU(inplace=True)])
def test_nothing_is_overwritten_that_the_backward_pass_needs(before, after):
    drop = nn.Dropout(0.1, inplace=True)
    net = nn.Sequential(nn.Linear(4, 4), copy.deepcopy(before), drop, nn.Linear(4, 2))
    swap_activations(net, after)
    net(ROWS).sum().backward()
    assert net[0].weight.grad.abs().sum() > 0


def test_a_shared_module_stays_shared():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.act = nn.ReLU()
            self.body = nn.Sequential(nn.Linear(4, 4), self.act)
            self.acts = nn.ModuleDict({"a": self.act})
            self.head = nn.Linear(4, 2)

    model = Shared()
    report = swap_activations(model, "prelu")
    assert model.act is model.body[1] is model.acts["a"]
    assert isinstance(model.act, nn.PReLU)
    assert {s.path for s in report.swapped} == {"act", "body.1", "acts.a"}
    assert report.parameters_after - report.parameters_before == 1


def test_new_parameters_are_where_the_others_are():
    model = small().to(torch.float64)
    swap_activations(model, "prelu")
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    with torch.device("meta"):
        unborn = small()
    swap_activations(unborn, "prelu")
    assert all(p.is_meta for p in unborn.parameters())


def test_an_encoder_layer_computes_what_it_was_given_also_in_its_fused_path():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2).eval()
    report = swap_activations(encoder, "silu")
    assert pairs(report.swapped) == {f"layers.{i}.activation": ("relu", "silu") for i in range(2)}
    x = torch.randn(2, 5, 8)
    mask = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    slow = encoder(x)  # gradients are recorded, which turns the fused path off
    with torch.no_grad():
        assert torch.allclose(encoder(x), slow, atol=1e-6)
        assert encoder(x, src_key_padding_mask=mask).shape == x.shape
    swap_activations(encoder, "gelu")
    slow = encoder(x)
    with torch.no_grad():
        assert torch.allclose(encoder(x), slow, atol=1e-6)


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)
        self.act = nn.ReLU()

    def forward(self, x):
        x = F.relu(self.first(x))
        return self.head(self.act(self._middle(x)))

    def _middle(self, x):
        return self.second(x).tanh()

    def explain(self, x):
        return self(x).sigmoid()


def test_functions_called_in_forward_are_reported():
    report = swap_activations(nn.Sequential(Functional()), "elu")
    assert pairs(report.swapped) == {"0.act": ("relu", "elu")}
    assert [(k.path, k.name) for k in report.kept] == [("0", "F.relu"), ("0", ".tanh")]
    assert "make it a module" in str(report)


class Bent(nn.Module):
    """An activation of somebody's own, whose name tells nothing."""

    def forward(self, x):
        return torch.where(x > 0, x, 0.1 * x.exp() - 0.1)


class Generated(nn.Module):
    """Its forward has no source that could be read."""

    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Linear(4, 4), nn.Linear(4, 2)


exec("def made(self, x): return self.head(self.first(x).relu())", made_here := {})
Generated.forward = made_here["made"]


def test_with_an_example_activations_are_known_by_what_they_do():
    model = nn.Sequential(nn.Linear(4, 4), Bent(), nn.BatchNorm1d(4), nn.Linear(4, 2), Bent())
    assert not swap_activations(copy.deepcopy(model), "elu").swapped
    report = swap_activations(model, "elu", example=ROWS)
    assert pairs(report.swapped) == {"1": ("Bent", "elu")}
    assert [(k.path, k.name) for k in report.kept] == [("4", "Bent")]
    fresh = nn.Sequential(nn.Linear(4, 4), Bent(), nn.BatchNorm1d(4), nn.Linear(4, 2), Bent())
    assert pairs(swap_activations(fresh, "elu", only=["1"]).swapped) == {"1": ("Bent", "elu")}
    generated = swap_activations(nn.Sequential(Generated()), "elu", example=ROWS)
    assert [(k.path, k.name) for k in generated.kept] == [("0", "relu")]
    assert swap_activations(nn.Sequential(Generated()), "elu").kept == []


# ---- dropout ------------------------------------------------------------------------------------


def test_dropout_behind_selu_keeps_its_mean_and_variance():
    model = nn.Sequential(
        nn.Dropout(0.1),  # of the input
        *(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.3)),
        *(nn.Linear(8, 8), nn.ReLU(), nn.LayerNorm(8), nn.Dropout(0.2)),
        nn.Linear(8, 2),
    ).train()
    model[3].eval()
    report = swap_activations(model, "selu")
    assert pairs(report.dropout) == {"3": ("Dropout", "AlphaDropout")}
    assert (model[3].p, model[3].inplace, model[3].training) == (0.3, False, False)
    swap_activations(model, "relu")
    assert (type(model[3]), model[3].p, model[3].inplace) == (nn.Dropout, 0.3, False)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_channels_are_dropped_whole_as_before(dims):
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1](2, 4, 1)
    drop = (nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)[dims - 1]
    model = nn.Sequential(conv, nn.ReLU(), nn.Identity(), drop(0.2), nn.Flatten(), nn.LazyLinear(2))
    swap_activations(model, "selu")
    assert type(model[3]) is nn.FeatureAlphaDropout
    swap_activations(model, "elu")
    assert type(model[3]) is drop


def test_a_users_own_alpha_dropout_is_left_where_no_selu_was():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.AlphaDropout(0.1), nn.Linear(4, 2))
    assert swap_activations(model, "elu").dropout == []


def test_added_dropout_stays():
    model = add_dropout(small(), 0.2)
    assert swap_activations(model, "selu").dropout == []
    assert any(isinstance(m, AddedDropout) for m in model.modules())


# ---- maxout -------------------------------------------------------------------------------------


@pytest.mark.parametrize("act", [nn.ReLU(), nn.LeakyReLU(0.3), nn.PReLU(init=0.1)], ids=repr)
@pytest.mark.parametrize("pieces", [2, 3])
def test_a_trained_layer_computes_the_same_as_maxout(act, pieces):
    conv = nn.Conv2d(4, 6, 3, padding=1, groups=2, stride=2)
    middle = nn.Linear(96, 5, bias=False)
    model = nn.Sequential(conv, act, nn.Flatten(), middle, act, nn.Linear(5, 2))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    model[0].bias.requires_grad_(False)
    x = torch.randn(2, 4, 8, 8)
    before = model(x)
    report = swap_activations(model, f"maxout({pieces})")
    assert torch.allclose(model(x), before, atol=1e-5)
    assert [type(m) for m in model[:2]] == [MaxoutConv2d, nn.Identity]
    assert [p.requires_grad for p in model[0].parameters()] == [True, False]
    assert f"({report.parameters_after / report.parameters_before:.2f}x)" in str(report)


def test_a_new_layer_gets_independent_pieces():
    model = small()
    swap_activations(model, "maxout")
    assert [type(m) for m in model] == [
        MaxoutLinear,
        nn.Identity,
        MaxoutLinear,
        nn.Identity,
        nn.Linear,
    ]
    weight = model[2].layer.weight.unflatten(0, (6, 2))
    assert not weight[:, 1].eq(0).any()
    assert (weight[:, 0] - weight[:, 1]).abs().min() > 0


def test_the_maximum_is_taken_before_a_norm():
    model = ConvNet(1, 2, channels=[4, 8])
    report = swap_activations(model, "maxout")
    assert {s.before for s in report.swapped} == {"Conv2d", "relu"}
    assert [type(m) for m in model.body[0][:3]] == [MaxoutConv2d, nn.BatchNorm2d, nn.Identity]
    assert model(torch.randn(3, 1, 8, 8)).shape == (3, 2)


def test_what_cannot_become_maxout_is_left_with_a_reason():
    shared = nn.Linear(4, 4)
    trained = nn.Linear(4, 4)
    nn.init.normal_(trained.weight)
    normed = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
    model = nn.Sequential(
        *(shared, nn.ReLU(), shared, nn.ReLU()),
        *(trained, nn.Tanh(), normed, nn.ReLU()),
        *(nn.LazyLinear(4), nn.ReLU(), nn.Linear(4, 2)),
    )
    report = swap_activations(model, "maxout")
    assert not report.swapped
    reasons = [kept.why for kept in report.kept]
    for said in ("is shared", "is shared", "is trained", "parametrization", "is lazy"):
        assert any(said in why for why in reasons)
    assert not any(isinstance(m, Maxout) for m in model.modules())
    (alone,) = swap_activations(Functional(), "maxout").kept[:1]
    assert "side by side in a Sequential" in alone.why


# ---- the report and bad input -------------------------------------------------------------------


def test_the_report_is_plain_and_told_in_lines():
    report = swap_activations(nn.Sequential(small(), nn.Sigmoid()), "selu")
    told = report.to_dict()
    assert told["activation"] == "selu"
    assert "LeCun" in told["initialization"]
    assert [k["path"] for k in told["kept"]] == ["1"]
    assert len(report.rows_for_table()) == 3
    assert "2 swapped, 1 left" in str(report)
    assert "0.1 and 1 more  relu     selu" in str(report)


def test_nothing_to_swap_is_said_and_no_error():
    report = swap_activations(nn.LSTM(3, 3), "relu")
    assert (report.swapped, report.kept) == ([], [])


def test_only_some_are_swapped_where_only_these_are_named():
    model = nn.Sequential(small(), nn.Sigmoid())
    report = swap_activations(model, "tanh", only=["0.3", "1"])
    assert [type(m) for m in (model[0][1], model[0][3], model[1])] == [nn.ReLU, nn.Tanh, nn.Tanh]
    assert [(k.path, k.why) for k in report.kept] == [("0.1", "it was not asked for")]
    with pytest.raises(RecipeError, match=r"got '0\.2'; near it are 0\.[13]"):
        swap_activations(model, "tanh", only=["0.2"])


def test_an_unknown_name_changes_nothing():
    model = small()
    with pytest.raises(RecipeError, match="did you mean 'selu'"):
        swap_activations(model, "seluu")
    assert type(model[1]) is nn.ReLU


@pytest.mark.parametrize(
    "model",
    [
        lambda: torch.compile(small()),
        lambda: torch.jit.script(small()),
        lambda: nn.Linear,
    ],
    ids=["compiled", "scripted", "class"],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_models_that_cannot_be_changed(model):
    with pytest.raises(ModelError, match=r"before torch\.compile|must be a torch\.nn\.Module"):
        swap_activations(model(), "selu")


def test_any_factory_will_do():
    model = small()
    swap_activations(model, ScaledSigmoid)
    assert isinstance(model[1], ScaledSigmoid)
    assert model[1] is not model[3]
