"""Which modules are random: known by class, or asked by experiment."""

import random

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from timm.layers import DropPath, PatchDropout
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from stablelightning.model.stochastic import sampling_mode, stochastic_modules
from tests.model import modules as m
from tests.model import traps


def names(model: nn.Module, x=None, **settings) -> dict[str, str]:
    found = stochastic_modules(model, None if x is None else lambda: model(x), **settings)
    names = {module: name for name, module in model.named_modules()}
    return {names[k]: "flag" for k in found.flagged} | {
        names[k]: "functional" for k in found.functional
    }


@pytest.mark.parametrize(
    "module",
    [
        nn.Dropout(0.1),
        nn.Dropout1d(0.1),
        nn.Dropout2d(0.1),
        nn.Dropout3d(0.1),
        nn.AlphaDropout(0.1),
        nn.FeatureAlphaDropout(0.1),
        nn.LSTM(2, 2, 2, dropout=0.1),
        nn.GRU(2, 2, 2, dropout=0.1),
        nn.RNN(2, 2, 2, dropout=0.1),
        nn.MultiheadAttention(2, 1, dropout=0.1),
    ],
    ids=lambda module: type(module).__name__,
)
def test_random_modules_of_torch_are_known_and_a_rate_of_zero_is_none(module: nn.Module) -> None:
    assert names(nn.Sequential(module)) == {"0": "flag"}
    name = "p" if hasattr(module, "p") else "dropout"
    setattr(module, name, 0.0)
    assert names(nn.Sequential(module)) == {}


def test_norms_rrelu_and_fused_blocks_are_left_alone() -> None:
    steady = nn.Sequential(nn.BatchNorm1d(2), nn.RReLU(), nn.LayerNorm(2), nn.LSTM(2, 2))
    assert names(steady) == {}
    assert names(steady, also=(nn.RReLU,)) == {"1": "flag"}
    layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.1)
    assert set(names(layer)) == {"self_attn", "dropout", "dropout1", "dropout2"}


@pytest.mark.parametrize(
    ("model", "x", "expected"),
    [
        (m.Functional(), torch.randn(3, 8), {"": "flag"}),
        (m.OtherOutputInTraining(), torch.randn(3, 8), {"": "functional"}),
        (m.StatisticsInTraining(), torch.randn(3, 8), {"": "functional"}),
        (m.OwnAttention(), torch.randn(3, 5, 8), {"": "flag"}),
        (nn.Sequential(DropPath(0.3)), torch.randn(3, 8), {"0": "flag"}),
        (nn.Sequential(StochasticDepth(0.3, "row")), torch.randn(3, 8), {"0": "flag"}),
        (nn.Sequential(PatchDropout(0.5)), torch.randn(3, 9, 8), {"0": "flag"}),
        (m.Functional(p=0.0), torch.randn(3, 8), {}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_others_are_asked(model: nn.Module, x: Tensor, expected: dict[str, str]) -> None:
    assert names(model, x) == expected
    assert names(model) == {}  # without a call nobody is asked


def test_auxiliary_heads_are_no_false_alarm() -> None:
    model = torchvision.models.googlenet(num_classes=5, init_weights=False)
    assert set(names(model, torch.randn(1, 3, 64, 64))) == {
        "dropout",
        "aux1.dropout",
        "aux2.dropout",
    }


def test_a_vision_transformer_of_timm() -> None:
    model = timm.models.VisionTransformer(
        img_size=32,
        patch_size=8,
        embed_dim=16,
        depth=2,
        num_heads=2,
        num_classes=5,
        attn_drop_rate=0.1,
        drop_path_rate=0.2,
    )
    found = names(model, torch.randn(1, 3, 32, 32))
    assert "blocks.0.attn" in found
    assert {"blocks.1.drop_path1", "blocks.1.drop_path2"} <= set(found)
    assert not any("norm" in name or "head" in name for name in found)


def test_the_experiment_leaves_no_trace() -> None:
    model, x = traps.RandomInTraining(), torch.randn(3, 8)
    statistics = m.StatisticsInTraining()
    seen = statistics.seen.clone()
    before = torch.get_rng_state(), random.getstate()
    for asked in (model, statistics):
        asked.train()
        names(asked, x)
        assert asked.training
        assert not asked._forward_hooks
        assert not asked._forward_pre_hooks
    assert torch.equal(statistics.seen, seen)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]


def test_the_experiment_is_remembered_until_a_rate_changes() -> None:
    model, calls = m.Functional(), 0

    def call() -> Tensor:
        nonlocal calls
        calls += 1
        return model(torch.randn(3, 8))

    assert stochastic_modules(model, call).flagged == [model]
    assert stochastic_modules(model, call).flagged == [model]
    assert calls == 1
    model.p = 0.0
    assert stochastic_modules(model, call).flagged == []
    assert calls == 2


def test_a_training_branch_that_fails_is_steady() -> None:
    class NeedsTargets(nn.Module):
        def forward(self, x: Tensor, target: Tensor | None = None) -> Tensor:
            if self.training:
                assert target is not None
                return F.dropout(x) + target
            return x

    assert names(NeedsTargets(), torch.randn(3)) == {}


def test_an_input_that_the_forward_writes_into_is_what_it_was() -> None:
    class WritesInput(m.Functional):
        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x)
            x.zero_()
            return y

    model = nn.Sequential(nn.Identity(), WritesInput())
    assert names(model, torch.randn(3, 8)) == {"1": "flag"}


def test_only_random_modules_are_live_inside_the_sampling_mode() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout(0.5)).train()
    model[0].eval()
    found = stochastic_modules(model)
    with pytest.raises(ValueError, match="inside"), sampling_mode(found):  # noqa: PT012
        assert [k.training for k in model.modules()] == [False, False, False, True]
        assert not torch.backends.mha.get_fastpath_enabled()
        assert not torch.is_autocast_cache_enabled()
        raise ValueError("inside")
    assert [k.training for k in model.modules()] == [True, False, True, True]
    assert torch.backends.mha.get_fastpath_enabled()
    assert torch.is_autocast_cache_enabled()


def test_functional_dropout_is_on_in_its_module_and_nowhere_else() -> None:
    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = m.OtherOutputInTraining()

        def forward(self, x: Tensor) -> Tensor:
            steady = F.dropout(x, 0.5, training=False)
            assert torch.equal(steady, x)
            y = self.inner(x)
            assert torch.equal(F.dropout(x, 0.5, training=False), x)
            return y

    model, x = Around(), torch.randn(3, 8)
    found = stochastic_modules(model, lambda: model(x))
    assert found.functional == [model.inner]
    with sampling_mode(found):
        assert not torch.equal(model(x), model(x))
    assert torch.equal(model.eval()(x), model(x))
