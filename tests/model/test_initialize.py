"""What sl.initialize draws, by layer and by rule."""

import copy
import io
import math
from itertools import pairwise

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from rich.console import Console
from torch import nn
from torch.nn.utils import parametrizations

import stablelightning as sl
from stablelightning.functional.gains import forward_gain
from stablelightning.model.initialization import InitializationReport
from stablelightning.model.schemes import SCHEMES, Scheme, he_rule
from stablelightning.nn import ScaledResidual

X = torch.randn(64, 48)


def stack(*functions, width=48, out=10):
    layers = []
    for function in functions:
        layers += [nn.Linear(width, width), function]
    return nn.Sequential(*layers, nn.Linear(width, out))


class Called(nn.Module):
    """Linear layers with one function between, called as a function."""

    def __init__(self, function, depth=2):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(48, 48) for _ in range(depth))
        self.function = function

    def forward(self, x):
        for layer in self.layers[:-1]:
            x = self.function(layer(x))
        return self.layers[-1](x)


def std(tensor):
    return tensor.detach().square().mean().sqrt().item()


# ---- rules --------------------------------------------------------------------------------------

HE = {
    "relu": F.relu,
    "leaky": lambda x: F.leaky_relu(x, 0.2),
    "elu": F.elu,
    "gelu": F.gelu,
    "silu": F.silu,
    "mish": F.mish,
    "hardswish": F.hardswish,
    "by hand": lambda x: x * torch.sigmoid(1.702 * x),
    "a user's own": lambda x: torch.where(x > 0, x, 0.05 * x) ** 1,
}


@pytest.mark.parametrize("name", HE)
def test_he_with_the_exact_gain_before_relu_like_functions(name):
    model = Called(HE[name])
    report = sl.initialize(model, X)
    row, expected = report["layers.0"], forward_gain(HE[name])
    assert row.distribution == "He normal"
    assert row.gain == pytest.approx(expected, abs=1e-6)
    assert std(model.layers[0].weight) == pytest.approx(expected / math.sqrt(48), rel=0.05)
    assert not model.layers[0].bias.any()
    assert report["layers.1"].distribution == "Glorot uniform"


@pytest.mark.parametrize(
    "function", [torch.tanh, torch.sigmoid, F.hardtanh, F.softsign, lambda x: 4 * x.sigmoid() - 2]
)
def test_glorot_before_bounded_functions(function):
    model = Called(function)
    report = sl.initialize(model, X)
    assert report["layers.0"].distribution == "Glorot uniform"
    assert model.layers[0].weight.abs().max() <= math.sqrt(6 / 96)
    assert std(model.layers[0].weight) == pytest.approx(math.sqrt(2 / 96), rel=0.05)


def test_lecun_before_selu():
    model = Called(F.selu)
    row = sl.initialize(model, X)["layers.0"]
    assert (row.distribution, row.gain) == ("LeCun normal", 1.0)
    assert std(model.layers[0].weight) == pytest.approx(48**-0.5, rel=0.05)


def test_the_slope_of_prelu_and_leaky_relu_counts():
    slopes = (0.3, 0.01)
    model = stack(nn.PReLU(init=slopes[0]), nn.LeakyReLU(slopes[1]))
    report = sl.initialize(model, X)
    for row, slope in zip(report.rows, slopes, strict=False):
        assert row.gain == pytest.approx(math.sqrt(2 / (1 + slope**2)), abs=1e-6)


def test_what_the_report_says_of_the_consumer():
    report = sl.initialize(stack(nn.Sigmoid(), nn.SiLU()), X)
    assert (report["0"].at_zero, report["0"].slope_at_zero) == (0.5, 0.25)
    assert (report["2"].at_zero, report["2"].slope_at_zero) == (0.0, 0.5)
    assert report["4"].at_zero is None
    assert report["0"].std_before == pytest.approx(48**-0.5 / math.sqrt(3), rel=0.05)


@pytest.mark.parametrize(
    "module",
    [
        nn.Conv2d(8, 16, 3, groups=4),
        nn.Conv2d(8, 16, 3, stride=2, padding=1),
        nn.ConvTranspose2d(8, 16, 4, stride=2),
        nn.ConvTranspose2d(8, 16, 4, stride=2, groups=2),
    ],
    ids=str,
)
def test_the_size_is_kept_through_every_kind_of_convolution(module):
    model = nn.Sequential(module, nn.ReLU(), nn.Conv2d(16, 4, 1))
    x = torch.randn(32, 8, 16, 16)
    sl.initialize(model, x)
    inner = model[:2](x)[..., 4:-4, 4:-4] if module.transposed else model[:2](x)[..., 2:-2, 2:-2]
    assert inner.square().mean().item() == pytest.approx(1.0, rel=0.15)


def test_scales_hold_for_narrow_dtypes():
    for dtype in (torch.bfloat16, torch.float16):
        model = stack(nn.ReLU()).to(dtype)
        sl.initialize(model, X.to(dtype))
        assert model[0].weight.dtype == dtype
        assert std(model[0].weight.float()) == pytest.approx(math.sqrt(2 / 48), rel=0.05)


def test_lstm_and_gru_by_their_usual_rules():
    for kind, gates in ((nn.LSTM, 4), (nn.GRU, 3)):
        model = kind(12, 20, 2, bidirectional=True)
        report = sl.initialize(model, torch.randn(5, 3, 12))
        for gate in model.weight_hh_l1_reverse.chunk(gates):
            torch.testing.assert_close(gate @ gate.T, torch.eye(20), atol=1e-5, rtol=0)
        for gate in model.weight_ih_l0.chunk(gates):
            assert gate.abs().max() <= math.sqrt(6 / 32)
            assert gate.abs().max() > 0.9 * math.sqrt(6 / 32)
        forget = (model.bias_ih_l0 + model.bias_hh_l0).view(gates, -1)[1]
        assert torch.equal(forget, torch.full((20,), 1.0 if kind is nn.LSTM else 0.0))
        assert len(report.changed) == 16
        (row,) = report.rows
        assert row.kind == "recurrent"


def test_a_cell_is_initialized_as_a_layer():
    class Unrolled(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell, self.head = nn.LSTMCell(6, 10), nn.Linear(10, 2)

        def forward(self, x):
            h = c = x.new_zeros(len(x), 10)
            for step in x.unbind(1):
                h, c = self.cell(step, (h, c))
            return self.head(h)

    model = Unrolled()
    report = sl.initialize(model, torch.randn(4, 5, 6))
    assert set(report.changed) == set(dict(model.named_parameters()))
    assert model.cell.bias_ih[10:20].eq(1).all()


def test_attention_and_embeddings_by_their_usual_rules():
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, norm_first=True)
    encoder = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
    model = nn.Sequential(nn.Embedding(50, 16, padding_idx=0), encoder, nn.Linear(16, 5))
    report = sl.initialize(model, torch.randint(50, (4, 7)))
    attention = model[1].layers[0].self_attn
    for part in attention.in_proj_weight.chunk(3):
        assert part.abs().max() <= math.sqrt(6 / 32)
        assert part.abs().max() > 0.9 * math.sqrt(6 / 32)
    assert not model[0].weight[0].any()
    assert std(model[0].weight[1:]) == pytest.approx(0.25, rel=0.1)
    # Pre-norm: the last weight of each of six branches, so that the stream does not grow.
    assert report["1.layers.2.linear2"].gain == pytest.approx(6**-0.5)
    assert report["1.layers.2.self_attn.out_proj"].gain == pytest.approx(6**-0.5)


def test_an_embedding_that_a_layer_reads_has_unit_variance():
    model = nn.Sequential(nn.Embedding(80, 16), nn.Linear(16, 30), nn.ReLU(), nn.Linear(30, 2))
    sl.initialize(model, torch.randint(80, (4, 7)))
    assert std(model[0].weight) == pytest.approx(1.0, rel=0.1)


# ---- residual branches --------------------------------------------------------------------------


class Residual(nn.Module):
    def __init__(self, *, norm=False, function_last=False):
        super().__init__()
        self.first, self.last = nn.Linear(48, 48), nn.Linear(48, 48)
        self.norm = nn.BatchNorm1d(48) if norm else nn.Identity()
        self.function_last = function_last

    def forward(self, x):
        branch = self.norm(self.last(torch.relu(self.first(x))))
        return x + (torch.relu(branch) if self.function_last else branch)


def test_the_last_norm_of_a_branch_is_zero_and_the_block_the_identity():
    model = nn.Sequential(nn.Linear(48, 48), Residual(norm=True), Residual(norm=True))
    report = sl.initialize(model, X)
    assert not model[1].norm.weight.any()
    assert report["1.norm"].distribution == "zero"
    model.eval()
    torch.testing.assert_close(model[1](X), X)


def test_a_branch_without_norm_is_scaled_by_depth():
    model = nn.Sequential(nn.Linear(48, 48), *(Residual() for _ in range(16)))
    report = sl.initialize(model, X)
    assert not model[5].last.weight.any()
    expected = 16**-0.5 * math.sqrt(2 / 48)
    assert std(model[5].first.weight) == pytest.approx(expected, rel=0.05)
    assert "Fixup" in report["5.first"].why


def test_a_branch_that_ends_in_a_relu_is_not_closed():
    """Behind a zero ReLU no gradient would ever open it."""
    for norm in (False, True):
        model = nn.Sequential(
            nn.Linear(48, 48), *(Residual(norm=norm, function_last=True) for _ in range(4))
        )
        sl.initialize(model, X)
        assert model[1].last.weight.any()
        if norm:
            assert model[1].norm.weight.eq(1).all()
        model(X).square().mean().backward()
        assert all(p.grad.any() for p in model[1].first.parameters())


def test_a_branch_with_a_learned_scale_keeps_its_weights():
    """Its scale is zero already; a zero weight behind it would never learn."""
    branch = nn.Sequential(nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 48))
    model = nn.Sequential(nn.Linear(48, 48), ScaledResidual(branch), nn.Linear(48, 2))
    sl.initialize(model, X)
    assert branch[2].weight.any()


# ---- deep plain stacks --------------------------------------------------------------------------

DEEP = {
    "relu": nn.ReLU,
    "leaky": lambda: nn.LeakyReLU(0.2),
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "mish": nn.Mish,
    "elu": nn.ELU,
    "selu": nn.SELU,
    "tanh": nn.Tanh,
    "softsign": nn.Softsign,
    "sigmoid": nn.Sigmoid,
}


@pytest.mark.parametrize("name", DEEP)
def test_a_deep_stack_keeps_size_cosine_and_gradient(name):
    depth = 60
    model = stack(*(DEEP[name]() for _ in range(depth)), width=48, out=12).double()
    x = torch.randn(32, 48, dtype=torch.float64)
    report = sl.initialize(model, x)
    assert {row.distribution for row in report.rows} <= {"mirrored orthogonal", "orthogonal"}
    sizes, gradients, h = [], [], x
    for module in model:
        h = module(h)
        if isinstance(module, nn.Linear):
            h.retain_grad()
            gradients.append(h)
            sizes.append(std(h))
    h.square().sum().backward()
    slopes = [math.log(std(g.grad)) for g in gradients[1:-1]]
    assert max(sizes[:-1]) / min(sizes[:-1]) < 1.5
    assert max(slopes) - min(slopes) < 1.0
    before, after = F.cosine_similarity(x[:16], x[16:]), F.cosine_similarity(h[:16], h[16:])
    assert after.abs().mean() < before.abs().mean() + 0.3


@pytest.mark.parametrize("name", ["relu", "leaky", "gelu", "silu"])
def test_a_mirrored_deep_network_is_linear_at_the_start(name):
    model = stack(*(DEEP[name]() for _ in range(30)), width=20).double()
    a, b = torch.randn(2, 8, 20, dtype=torch.float64)
    sl.initialize(model, a)
    torch.testing.assert_close(model(a + 2 * b), model(a) + 2 * model(b))


def test_odd_widths_and_changing_widths_stay_linear():
    widths = [20, *([21, 33, 16] * 8), 7]
    layers = [nn.Linear(a, b) for a, b in pairwise(widths)]
    modules = [m for layer in layers for m in (layer, nn.ReLU())][:-1]
    model = nn.Sequential(*modules).double()
    a, b = torch.randn(2, 8, 20, dtype=torch.float64)
    sl.initialize(model, a)
    torch.testing.assert_close(model(a + 2 * b), model(a) + 2 * model(b))
    assert model(a).abs().max() > 1e-3


def test_a_deep_convolutional_stack_is_linear_too():
    convolutions = [nn.Conv2d(1 if i == 0 else 8, 8, 3, padding=1) for i in range(25)]
    modules = [m for c in convolutions for m in (c, nn.ReLU())]
    model = nn.Sequential(*modules, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)).double()
    a, b = torch.randn(2, 4, 1, 8, 8, dtype=torch.float64)
    report = sl.initialize(model, a)
    assert {row.distribution for row in report.rows} == {"mirrored orthogonal"}
    torch.testing.assert_close(model(a + 2 * b), model(a) + 2 * model(b))


def test_a_layer_that_is_left_ends_the_mirror():
    model = stack(*(nn.ReLU() for _ in range(50)))
    with torch.no_grad():
        model[50].weight.mul_(0.9)
    before = model[50].weight.clone()
    report = sl.initialize(model, X)
    assert torch.equal(model[50].weight, before)
    assert report["50"].distribution == "left"
    assert report["52"].distribution == "mirrored orthogonal"
    assert model[52].weight.std() > 0
    assert not torch.equal(model[52].weight[:, :24], -model[52].weight[:, 24:])  # reads plainly


def test_a_norm_or_a_way_around_needs_no_isometry():
    modules = [m for _ in range(30) for m in (nn.Linear(48, 48), nn.LayerNorm(48), nn.ReLU())]
    report = sl.initialize(nn.Sequential(*modules), X)
    assert {row.distribution for row in report.rows[:-1]} == {"He normal"}


# ---- schemes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCHEMES)
def test_every_scheme_runs_and_says_its_name(name):
    model = stack(nn.ReLU(), nn.Tanh())
    report = sl.initialize(model, X, scheme=name)
    assert report.scheme == name
    assert set(report.changed) == set(dict(model.named_parameters()))
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_lsuv_gives_every_layer_unit_size():
    model = stack(nn.ReLU(), nn.GELU(), nn.Tanh(), nn.SELU())
    sl.initialize(model, X, scheme="lsuv")
    h = X
    for module in model:
        h = module(h)
        if isinstance(module, nn.Linear):
            assert std(h) == pytest.approx(1.0, rel=1e-3)


def test_a_scheme_of_ones_own():
    report = sl.initialize(stack(nn.Tanh()), X, scheme=Scheme("mine", he_rule))
    assert report.scheme == "mine"
    assert report["0"].gain == pytest.approx(forward_gain(torch.tanh))


# ---- what is left -------------------------------------------------------------------------------


def test_frozen_shared_and_parametrized_weights_are_left_and_forced_ones_written():
    model = stack(nn.ReLU(), nn.ReLU(), nn.ReLU(), nn.ReLU(), out=48)
    model[0].requires_grad_(False)
    model[2].weight = model[4].weight
    parametrizations.spectral_norm(model[6])
    before = copy.deepcopy(model.state_dict())
    report = sl.initialize(model, X)
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {"8.weight", "8.bias"}
    assert "frozen" in report["0"].why
    assert "shared" in report["2"].why
    assert "SpectralNorm" in report["6"].why
    forced = sl.initialize(model, X, overwrite=True)
    assert all(row.changed for row in forced.rows)


def test_overwrite_by_name():
    model = stack(nn.ReLU(), nn.ReLU())
    for layer in (model[0], model[2]):
        nn.init.normal_(layer.weight)
    before = model[2].weight.clone()
    report = sl.initialize(model, X, overwrite=["0"])
    assert report["0"].changed
    assert torch.equal(model[2].weight, before)


LOADED = {
    "resnet18": lambda: (torchvision.models.resnet18(num_classes=7), (2, 3, 32, 32)),
    "mobilenet": lambda: (torchvision.models.mobilenet_v3_small(num_classes=7), (2, 3, 32, 32)),
    "convnext": lambda: (
        timm.create_model("convnext_atto", num_classes=7, depths=(1, 1, 2, 1)),
        (2, 3, 32, 32),
    ),
    "vit": lambda: (
        timm.create_model(
            "vit_tiny_patch16_224", img_size=32, patch_size=8, depth=2, num_classes=7
        ),
        (2, 3, 32, 32),
    ),
    "densenet": lambda: (
        torchvision.models.DenseNet(growth_rate=8, block_config=(2, 2), num_init_features=16),
        (2, 3, 32, 32),
    ),
    "mlp": lambda: (stack(nn.ReLU(), nn.GELU()), (4, 48)),
    "lstm": lambda: (nn.LSTM(6, 9, 2), (5, 3, 6)),
    "gru": lambda: (nn.GRU(6, 9), (5, 3, 6)),
    "transformer": lambda: (
        nn.TransformerEncoder(
            nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 2, enable_nested_tensor=False
        ),
        (2, 5, 16),
    ),
    "norms": lambda: (
        nn.Sequential(nn.Linear(8, 30), nn.LayerNorm(30), nn.PReLU(), nn.Linear(30, 2)),
        (4, 8),
    ),
    "small layers": lambda: (nn.Sequential(nn.Linear(1, 3), nn.Tanh(), nn.Linear(3, 1)), (4, 1)),
    "deep": lambda: (stack(*(nn.ReLU() for _ in range(30))), (4, 48)),
}


@pytest.mark.parametrize("step", [1e-1, 1e-5])
@pytest.mark.parametrize("name", LOADED)
def test_of_a_loaded_model_no_tensor_changes(name, step):
    """Trained elsewhere for as little as one small step, and loaded here."""
    trained, shape = LOADED[name]()
    with torch.no_grad():
        for tensor in trained.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(step * torch.rand_like(tensor))
    model, _ = LOADED[name]()
    model.load_state_dict(trained.state_dict())
    before = copy.deepcopy(model.state_dict())
    report = sl.initialize(model, torch.randn(shape))
    changed = [k for k, v in model.state_dict().items() if not torch.equal(v, before[k])]
    assert changed == []
    assert report.changed == ()


def test_a_new_head_on_a_loaded_backbone_is_initialized_alone():
    model = torchvision.models.resnet18(num_classes=1000)
    before = copy.deepcopy(model.state_dict())
    model.fc = nn.Linear(512, 5)
    report = sl.initialize(model, torch.randn(2, 3, 32, 32))
    assert report.changed == ("fc.weight", "fc.bias")
    assert not [
        k
        for k, v in model.state_dict().items()
        if not k.startswith("fc") and not torch.equal(v, before[k])
    ]


# ---- as a function ------------------------------------------------------------------------------


def test_a_seed_repeats_it_and_another_changes_it():
    weights = []
    for seed in (5, 5, 6):
        torch.manual_seed(0)
        model = stack(nn.ReLU(), nn.SELU())
        torch.manual_seed(seed)
        sl.initialize(model, X)
        weights.append(model[0].weight.detach().clone())
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_twice_does_nothing_the_second_time():
    model = stack(nn.ReLU(), nn.Tanh(), nn.SELU())
    sl.initialize(model, X)
    before = copy.deepcopy(model.state_dict())
    assert sl.initialize(model, X).changed == ()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_flags_buffers_and_gradients_stay():
    model = nn.Sequential(nn.Linear(48, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2))
    model[2].eval()
    before = copy.deepcopy(dict(model.named_buffers()))
    with torch.inference_mode():
        sl.initialize(model, X)
    assert [m.training for m in model] == [True, True, False, True]
    assert all(torch.equal(b, before[n]) for n, b in model.named_buffers())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    model(X).sum().backward()


def test_a_batch_with_a_target_behind_the_inputs_will_do():
    model = stack(nn.ReLU())
    assert len(sl.initialize(model, (X, torch.zeros(64))).changed) == 4


def test_what_the_example_does_not_reach_is_left_and_said():
    class Spare(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.spare = nn.Linear(48, 3), nn.Linear(48, 3)

        def forward(self, x):
            return self.used(x)

    report = sl.initialize(Spare(), X)
    assert report["spare"].distribution == "left"
    assert "did not reach" in report["spare"].why


def test_the_report_as_text_dict_and_table():
    report = sl.initialize(stack(nn.ReLU()), X)
    assert isinstance(report, InitializationReport)
    text = str(report)
    assert "He normal" in text
    assert text.startswith("initialize (auto): 2 layers written, 0 left")
    assert report.to_dict()["rows"][0]["consumer"] == "relu"
    columns, rows = report.rows_for_table()
    assert len(columns) == len(rows[0])
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(report)
    assert "Glorot uniform" in console.export_text()
    with pytest.raises(KeyError):
        report["nowhere"]
    report.rows.pop()
    assert report.summary() == "initialize (auto): 1 layer written, 0 left"
