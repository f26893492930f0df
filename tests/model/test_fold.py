"""Folding batch norm: the same outputs, fewer operations, and nothing folded that must not be."""

import copy
from collections import OrderedDict

import pytest
import timm
import torch
import torchvision
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune

import stablelightning as sl
from stablelightning.errors import DataError, ModelError
from stablelightning.model.folding import FoldReport
from stablelightning.model.stochastic import StochasticModules, sampling_mode
from stablelightning.nn import ConvNet


def settle(model: nn.Module) -> nn.Module:
    """Statistics and weights of every norm as after training, and the model in eval."""
    for module in model.modules():
        if getattr(module, "running_mean", None) is not None:
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.4, 2.0)
        if getattr(module, "running_mean", None) is not None and module.weight is not None:
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(0, 0.3)
    return model.eval()


def close(model: nn.Module, folded: nn.Module, x: torch.Tensor) -> None:
    """The same on the example and on rows that folding has not seen."""
    other = torch.randn(3, *x.shape[1:]).to(x)
    with torch.no_grad():
        for batch in (x, other):
            expected = model(batch)
            error = (folded(batch) - expected).abs().max() / expected.abs().max()
            assert error <= (1e-5 if x.dtype == torch.float32 else 1e-10)


def fold(model: nn.Module, x: torch.Tensor) -> tuple[nn.Module, FoldReport]:
    folded = copy.deepcopy(model)
    report = sl.fold_batch_norm(folded, x)
    close(model, folded, x)
    return folded, report


def norms(model: nn.Module) -> int:
    return sum(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())


# ---- what is folded -----------------------------------------------------------------------------

IMAGE, ROW, LINE, BLOCK = (2, 4, 7, 7), (5, 6), (2, 4, 9), (2, 4, 5, 5, 5)
FOLDED = {
    "conv1d": (LINE, [nn.Conv1d(4, 6, 3, padding=1), nn.BatchNorm1d(6)], True),
    "conv2d": (IMAGE, [nn.Conv2d(4, 6, 3, bias=False), nn.BatchNorm2d(6)], True),
    "conv3d": (BLOCK, [nn.Conv3d(4, 6, 3, stride=2), nn.BatchNorm3d(6)], True),
    "depthwise": (IMAGE, [nn.Conv2d(4, 8, 3, groups=4), nn.BatchNorm2d(8)], True),
    "grouped": (IMAGE, [nn.Conv2d(4, 6, 3, groups=2), nn.BatchNorm2d(6)], True),
    "circular": (IMAGE, [nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"),
                         nn.BatchNorm2d(6)], True),
    "transposed": (IMAGE, [nn.ConvTranspose2d(4, 6, 3, stride=2), nn.BatchNorm2d(6)], True),
    "transposed-grouped": (
        LINE, [nn.ConvTranspose1d(4, 6, 3, groups=2, bias=False), nn.BatchNorm1d(6)], True,
    ),
    "linear": (ROW, [nn.Linear(6, 3), nn.BatchNorm1d(3)], True),
    "no-affine": (ROW, [nn.Linear(6, 3, bias=False), nn.BatchNorm1d(3, affine=False)], True),
    "flattened": (IMAGE, [nn.Conv2d(4, 6, 7), nn.Flatten(), nn.BatchNorm1d(6)], True),
    "shuffled": (IMAGE, [nn.Conv2d(4, 6, 3), nn.ChannelShuffle(2), nn.BatchNorm2d(6)], True),
    "before-conv": (IMAGE, [nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3)], False),
    "before-grouped": (IMAGE, [nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3, groups=2)], False),
    "before-depthwise": (IMAGE, [nn.BatchNorm2d(4), nn.Conv2d(4, 8, 3, groups=4)], False),
    "before-reflecting": (
        IMAGE, [nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect")], False,
    ),
    "before-transposed": (IMAGE, [nn.BatchNorm2d(4), nn.ConvTranspose2d(4, 6, 1)], False),
    "before-linear": (ROW, [nn.BatchNorm1d(6), nn.Linear(6, 3)], False),
    "before-flattened": (LINE, [nn.BatchNorm1d(4), nn.Flatten(), nn.Linear(36, 3)], False),
    "dropout-that-does-nothing": (
        ROW, [nn.Linear(6, 3), nn.Dropout(0.0), nn.BatchNorm1d(3)], True,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", FOLDED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_folds(case, dtype):
    shape, layers, after = FOLDED[case]
    model = settle(nn.Sequential(*copy.deepcopy(layers), nn.ReLU()).to(dtype))
    folded, report = fold(model, torch.randn(shape, dtype=dtype))
    assert [row.after for row in report.folded] == [after]
    assert report.left == []
    assert norms(folded) == 0
    assert report.difference <= 1e-5


def test_a_zero_padding_is_no_hindrance_where_the_shift_is_zero():
    model = nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3, padding=1)).eval()
    model[0].running_var.uniform_(0.4, 2.0)
    _, report = fold(model, torch.randn(IMAGE))
    assert len(report.folded) == 1


def test_a_layer_between_two_norms_takes_both():
    model = settle(nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 3), nn.BatchNorm1d(3)))
    _, report = fold(model, torch.randn(ROW))
    assert [(row.norm, row.layer) for row in report.folded] == [("0", "1"), ("2", "1")]


class Tokens(nn.Module):
    """Channels last for the layer, second for the norm."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm = nn.Linear(6, 5), nn.BatchNorm1d(5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.layer(x).transpose(1, 2)).sin()


def test_channels_are_followed_through_a_transposition():
    _, report = fold(settle(Tokens()), torch.randn(2, 5, 6))
    assert len(report.folded) == 1


class Siamese(nn.Module):
    """One encoder, called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Tanh())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.encoder(x) * self.encoder(x.flip(0))


def test_a_pair_that_is_called_twice_together_is_folded():
    _, report = fold(settle(Siamese()), torch.randn(ROW))
    assert len(report.folded) == 1


class UNet(nn.Module):
    """Down, up by a transposed convolution, and a skip between."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(4, 6, 3, 2, 1, bias=False), nn.BatchNorm2d(6))
        self.up, self.norm = nn.ConvTranspose2d(6, 4, 2, stride=2), nn.BatchNorm2d(4)
        self.out = nn.Conv2d(8, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        up = F.relu(self.norm(self.up(F.relu(self.down(x)))))
        return self.out(torch.cat([x, up], 1))


def test_a_u_net_is_folded_whole():
    _, report = fold(settle(UNet()), torch.randn(2, 4, 8, 8))
    assert [(row.norm, row.layer) for row in report.folded] == [("down.1", "down.0"),
                                                                ("norm", "up")]  # fmt: skip


TORCHVISION = {  # folded of all
    "resnet18": (20, 20),
    "mobilenet_v2": (52, 52),
    "mobilenet_v3_small": (34, 34),
    "shufflenet_v2_x0_5": (56, 56),
    "densenet121": (59, 121),
    "googlenet": (57, 59),
}


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision(name):
    settings = {"init_weights": False} if name == "googlenet" else {}
    model = settle(getattr(torchvision.models, name)(weights=None, **settings))
    folded, report = fold(model, torch.randn(1, 3, 64, 64))
    number, total = TORCHVISION[name]
    assert (len(report.folded), len(report.folded) + len(report.left)) == (number, total)
    names = set(dict(model.named_parameters()))
    kept = {n for n in names if n.rpartition(".")[0] not in {row.norm for row in report.folded}}
    assert kept <= set(dict(folded.named_parameters()))


@pytest.mark.parametrize("name", ["efficientnet_b0", "resnetv2_50", "tf_efficientnet_b0"])
def test_timm_where_the_norm_has_an_activation_of_its_own(name):
    model = settle(timm.create_model(name))
    folded, report = fold(model, torch.randn(1, 3, 64, 64))
    assert norms(folded) == len(report.left) == (17 if name == "resnetv2_50" else 0)
    assert all("layer" in row.why for row in report.left)


def test_frozen_batch_norm():
    norm = torchvision.ops.FrozenBatchNorm2d(6)
    norm.running_mean.normal_()
    model = nn.Sequential(nn.Conv2d(4, 6, 3, bias=False), norm, nn.ReLU()).eval()
    _, report = fold(model, torch.randn(IMAGE))
    assert len(report.folded) == 1


# ---- with dropout -------------------------------------------------------------------------------


def test_samples_are_those_of_the_unfolded_model():
    model = settle(ConvNet(1, 3, channels=[4, 8], dropout=0.3))
    x = torch.randn(6, 1, 8, 8)
    before = sl.sample_predictions(model, x, samples=5, seed=1, engine="loop")
    planned = sl.mc_dropout(model, x, samples=5, seed=1)
    report = sl.fold_batch_norm(model, x)
    assert len(report.folded) == 2
    assert report.sampled_difference <= 1e-5
    after = sl.sample_predictions(model, x, samples=5, seed=1, engine="loop")
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)
    again = sl.mc_dropout(model, x, samples=5, seed=1)
    torch.testing.assert_close(again.mean, planned.mean, rtol=1e-4, atol=1e-5)


class FunctionalDropout(nn.Module):
    """A dropout between layer and norm that no module shows."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm = nn.Linear(6, 4), nn.BatchNorm1d(4)
        self.other = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.other(self.norm(F.dropout(self.layer(x), 0.5, self.training)).relu())


def test_a_dropout_between_keeps_the_norm_though_eval_does_not_show_it():
    model = settle(nn.Sequential(nn.Linear(6, 4), nn.Dropout(0.5), nn.BatchNorm1d(4), nn.ReLU()))
    _, report = fold(model, torch.randn(ROW))
    assert "1 lies between, and is random when it is sampled" in report.left[0].why
    model = settle(FunctionalDropout())
    folded, report = fold(model, torch.randn(ROW))
    assert [row.norm for row in report.folded] == ["other.1"]
    assert "differ by" in report.left[0].why
    assert torch.equal(folded.layer.weight, model.layer.weight)
    assert torch.equal(folded.layer.bias, model.layer.bias)
    assert folded.norm.state_dict().keys() == model.norm.state_dict().keys()


# ---- what is left, and why ----------------------------------------------------------------------


class Left(nn.Module):
    """A pair that must not be folded, by what ``way`` does with it."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.layer, self.norm = nn.Linear(6, 6), nn.BatchNorm1d(6)
        self.more = nn.Linear(6, 6)
        if way == "tied":
            self.more.weight = self.layer.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made = self.layer(x)
        if self.way == "number" and float(x.sum()) > 1e9:
            return made
        normed = self.norm(made).relu()
        match self.way:
            case "second reader":
                return normed + made
            case "output":
                return torch.cat([normed, self.more(normed)]), made
            case "weight":
                return normed @ self.layer.weight
            case "statistics":
                return normed + self.norm.running_mean
            case "layer again":
                return self.layer(normed)
            case "norm again":
                return self.norm(self.more(normed))
        return self.more(normed)


@pytest.mark.parametrize(
    ("way", "why"),
    [
        ("second reader", "reads what lies between, too"),
        ("weight", "layer.weight is also read in the model itself"),
        ("tied", "layer.weight is shared with another module"),
        ("statistics", "its running_mean is also read in the model itself"),
        ("layer again", "layer is called once more without it"),
        ("norm again", "beside several layers"),
        ("number", "reads numbers back into Python"),
    ],
)
def test_a_norm_is_left_with_the_reason(way, why):
    model = settle(Left(way))
    folded, report = fold(model, torch.randn(ROW))
    assert report.folded == []
    assert why in report.left[0].why
    before, after = model.state_dict(), folded.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_what_the_model_returns_is_not_changed():
    model = settle(Left("output"))
    report = sl.fold_batch_norm(model, torch.randn(ROW))
    assert "an output of the model" in report.left[0].why


LEFT = {
    "nothing-before": ([nn.ReLU(), nn.BatchNorm1d(6), nn.ReLU()], "reads relu in 0"),
    "no-statistics": ([nn.Linear(6, 3), nn.BatchNorm1d(3, track_running_stats=False)], "no run"),
    "spread": ([nn.Unflatten(1, (2, 3)), nn.Conv1d(2, 2, 1), nn.Flatten(), nn.BatchNorm1d(6)],
               "channels one to one"),
}  # fmt: skip


@pytest.mark.parametrize("case", LEFT)
def test_left(case):
    layers, why = LEFT[case]
    _, report = fold(settle(nn.Sequential(*layers)), torch.randn(ROW))
    assert why in report.left[0].why


class Doubled(nn.Conv2d):
    """A convolution, and more."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * 2


class Biasless(nn.Conv2d):
    """A convolution that takes no notice of its bias."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(x, self.weight)


@pytest.mark.parametrize(
    ("layer", "why"),
    [(Doubled(4, 6, 3), "forward of its own that does more"),
     (Biasless(4, 6, 3, bias=False), "may not take one"),
     (Biasless(4, 6, 3), "differ by")],
)  # fmt: skip
def test_classes_of_ones_own_are_folded_only_where_they_are_convolutions(layer, why):
    model = settle(nn.Sequential(layer, nn.BatchNorm2d(6), nn.ReLU()))
    _, report = fold(model, torch.randn(IMAGE))
    assert why in report.left[0].why


@pytest.mark.parametrize(
    ("layer", "why"),
    [
        (nn.Conv2d(4, 6, 3, padding=1), "pads with zeros"),
        (nn.Conv2d(4, 6, 3, padding="same"), "pads with zeros"),
        (nn.ConvTranspose2d(4, 6, 2, stride=2), "not reach every output"),
    ],
)
def test_a_shift_does_not_pass_a_border(layer, why):
    model = settle(nn.Sequential(nn.ReLU(), nn.BatchNorm2d(4), layer))
    _, report = fold(model, torch.randn(IMAGE))
    assert why in report.left[0].why


def test_hooks_parametrizations_and_pruning_keep_a_norm():
    for prepare, why in (
        (lambda layer: layer.register_forward_hook(lambda *_: None), "hooks"),
        (nn.utils.parametrizations.weight_norm, "parametrized"),
        (lambda layer: prune.l1_unstructured(layer, "weight", 0.5), "hooks"),
    ):
        model = settle(nn.Sequential(nn.Linear(6, 3), nn.BatchNorm1d(3), nn.ReLU()))
        prepare(model[0])
        report = sl.fold_batch_norm(model, torch.randn(ROW))
        assert why in report.left[0].why
        assert isinstance(model[1], nn.BatchNorm1d)


def test_a_hook_on_what_surrounds_a_layer_keeps_the_norm():
    model = settle(nn.Sequential(nn.Sequential(nn.Linear(6, 3)), nn.BatchNorm1d(3), nn.ReLU()))
    model[0].register_forward_hook(lambda *_: None)
    report = sl.fold_batch_norm(model, torch.randn(ROW))
    assert "a hook on 0 sees what lies between" in report.left[0].why


def test_half_precision_is_left_in_words():
    model = settle(nn.Sequential(nn.Linear(6, 3), nn.BatchNorm1d(3), nn.ReLU())).bfloat16()
    report = sl.fold_batch_norm(model, torch.randn(ROW).bfloat16())
    assert "is bfloat16; fold in float32" in report.left[0].why


class Functional(nn.Module):
    """A batch norm without a module."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)
        self.register_buffer("mean", torch.randn(3))
        self.register_buffer("variance", torch.rand(3) + 0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.batch_norm(self.layer(x), self.mean, self.variance)


def test_a_norm_that_is_called_as_a_function_is_told():
    for model in (
        Functional(),
        nn.Sequential(
            OrderedDict(body=Functional()),
        ),
    ):
        _, report = fold(model.eval(), torch.randn(ROW))
        assert len(report.left) == 1
        assert "as a function" in report.left[0].why


class AsksItsNorm(Left):
    """A forward that needs the norm to be one."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.more(self.norm(self.layer(x)).relu()) * self.norm.num_features


def test_a_forward_that_misses_its_norm_has_it_back():
    model = settle(AsksItsNorm(""))
    _, report = fold(model, torch.randn(ROW))
    assert "does not run without it" in report.left[0].why


def test_a_vanishing_variance_is_put_back_where_rounding_shows():
    """The mean is subtracted from numbers ten thousand times as large as what is left."""
    model = nn.Sequential(nn.Linear(6, 3), nn.BatchNorm1d(3), nn.ReLU()).eval()
    nn.init.constant_(model[0].bias, 1e4)
    model[1].running_mean.fill_(1e4)
    model[1].running_var.fill_(1e-6)
    before = copy.deepcopy(model.state_dict())
    report = sl.fold_batch_norm(model, torch.randn(ROW))
    assert "differ by" in report.left[0].why
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


# ---- what is refused ----------------------------------------------------------------------------


def pair() -> nn.Sequential:
    return settle(nn.Sequential(nn.Linear(6, 3), nn.BatchNorm1d(3), nn.ReLU()))


class OnlyWords(nn.Module):
    def forward(self, x: torch.Tensor) -> str:
        return "words"


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (lambda: pair().train(), "training mode"),
        (lambda: pair().to("meta"), "meta device"),
        (lambda: nn.Sequential(nn.LazyLinear(3), nn.BatchNorm1d(3)).eval(), "lazy"),
        (lambda: torch.compile(pair(), backend="eager"), "compiled"),
        (lambda: torch.jit.trace(pair(), torch.randn(ROW)), "scripted"),
        (lambda: torch.nn.functional.relu, "nn.Module"),
        (lambda: nn.Sequential(pair(), OnlyWords()).eval(), "hold no numbers"),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_refused_in_words(model, why):
    with pytest.raises(ModelError, match=why):
        sl.fold_batch_norm(model(), torch.randn(ROW))


def test_an_example_is_needed_and_may_be_the_models_own():
    model = pair()
    with pytest.raises(DataError, match="pass a batch"):
        sl.fold_batch_norm(model)
    model.example_input_array = torch.randn(ROW)
    assert len(sl.fold_batch_norm(model).folded) == 1
    with pytest.raises(DataError, match="must fit the forward"):
        sl.fold_batch_norm(pair(), torch.randn(2, 5))


# ---- what stays as it was -----------------------------------------------------------------------


def test_generators_flags_buffers_and_inputs_stay():
    model = settle(nn.Sequential(nn.ReLU(inplace=True), pair(), nn.Dropout(0.5)))
    model[2].train()
    x = torch.randn(ROW)
    kept, state = x.clone(), torch.get_rng_state()
    sl.fold_batch_norm(model, (x, torch.zeros(5)))
    assert torch.equal(x, kept)
    assert torch.equal(torch.get_rng_state(), state)
    assert model[2].training
    assert not model[1].training


def test_in_inference_mode_weights_stay_trainable():
    model = pair()
    with torch.inference_mode():
        sl.fold_batch_norm(model, torch.randn(ROW))
    model(torch.randn(ROW)).sum().backward()
    assert model[0].bias.grad is not None


def test_frozen_layers_get_a_frozen_bias():
    model = settle(nn.Sequential(nn.Linear(6, 3, bias=False), nn.BatchNorm1d(3)))
    model.requires_grad_(False)
    sl.fold_batch_norm(model, torch.randn(ROW))
    assert not model[0].bias.requires_grad


def test_the_report_is_plain():
    report = sl.fold_batch_norm(pair(), torch.randn(ROW))
    told = report.to_dict()
    assert told["folded"] == [{"norm": "1", "layer": "0", "after": True}]
    assert "1 of 1 batch norm folded" in report.summary()
    empty = sl.fold_batch_norm(nn.Linear(6, 3).eval(), torch.randn(ROW))
    assert "no batch norm" in str(empty)


def test_sampling_mode_sees_a_folded_model():
    model = settle(nn.Sequential(nn.Linear(6, 3), nn.BatchNorm1d(3), nn.Dropout(0.5)))
    sl.fold_batch_norm(model, torch.randn(ROW))
    with sampling_mode(StochasticModules([*model.modules()], [model[2]])):
        assert (model(torch.ones(ROW)) == 0).any()
