"""The models that every engine must sample right: a factory each, and what is expected of it."""

import copy
import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache, partial
from typing import Any
from unittest import mock

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from timm.layers import Attention as TimmAttention
from timm.layers import DropPath
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map
from torchvision.models.convnext import CNBlockConfig
from torchvision.models.mobilenetv3 import InvertedResidualConfig
from torchvision.ops import StochasticDepth

from tests.model import modules as m
from tests.model import traps

Built = tuple[nn.Module, Any]

#: What a person would switch on by hand.
LIVE = (
    nn.modules.dropout._DropoutNd,
    nn.AlphaDropout,
    nn.FeatureAlphaDropout,
    nn.RNNBase,
    nn.MultiheadAttention,
    StochasticDepth,
    DropPath,
    TimmAttention,
)


@dataclass(frozen=True)
class Case:
    """One model of the table.

    Args:
        name: names the test.
        factory: makes the model and its inputs.
        live: module classes to switch on by hand, beside :data:`LIVE`.
        by_hand: what else it takes to make a plain forward random.
        context: what the model is called in.
        falls_back: part of the reason why replay must give up; empty if it must not, ``None`` where
            either is right.
        mixes_rows: rows influence each other, or share what is drawn.
        own_state: attributes that the forward itself is meant to change.
        host: draws from Python's or NumPy's generator.
        prefix: there is work (a product of matrices, say) before the first draw.
        heavy: slow to make; made once, and each test gets a copy.
    """

    name: str
    factory: Callable[[], Built]
    live: tuple[type, ...] = ()
    by_hand: Callable[[], AbstractContextManager[Any]] = nullcontext
    context: Callable[[], AbstractContextManager[Any]] = nullcontext
    falls_back: str | None = ""
    mixes_rows: bool = False
    own_state: tuple[str, ...] = ()
    host: bool = False
    prefix: bool = True
    heavy: bool = False

    def build(self) -> Built:
        """A fresh copy of the model and its inputs, and fresh generators of Python and NumPy."""
        random.seed(3)
        np.random.seed(3)
        return copy.deepcopy(_built(self)) if self.heavy else _built.__wrapped__(self)

    def __str__(self) -> str:
        return self.name


@cache
def _built(case: Case) -> Built:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        return case.factory()


def plain_loop(case: Case, samples: int, seed: int) -> Any:
    """The samples as a person would draw them: flags by hand, one pass after the other."""
    model, inputs = case.build()
    model.eval()
    for module in model.modules():
        if isinstance(module, LIVE + case.live):
            module.training = True
    args = inputs if isinstance(inputs, tuple) else () if isinstance(inputs, dict) else (inputs,)
    kwargs = inputs if isinstance(inputs, dict) else {}
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), case.context(), case.by_hand(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            outputs = [tree_map(_copy, model(*args, **kwargs)) for _ in range(samples)]
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    return tree_map(lambda *x: torch.stack(x) if isinstance(x[0], Tensor) else x[0], *outputs)


def _copy(leaf: Any) -> Any:
    return leaf.clone() if isinstance(leaf, Tensor) else leaf


def tensors(tree: Any) -> list[Tensor]:
    """The tensors among the leaves."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


@contextmanager
def _functional_dropout_on() -> Iterator[None]:
    dropout = F.dropout
    with mock.patch.object(F, "dropout", lambda x, p, training: dropout(x, p, True)):
        yield


# ---- the table ---------------------------------------------------------------------------------


def _rows(model: nn.Module) -> Built:
    return model, torch.randn(3, 8)


def _steps(model: nn.Module, features: int = 8) -> Built:
    return model, torch.randn(3, 5, features)


def _pixels(model: nn.Module, size: int = 32, rows: int = 2) -> Built:
    return model, torch.randn(rows, 3, size, size)


def _small_images(drop: nn.Module) -> Built:
    layers = nn.Conv2d(3, 6, 3), nn.ReLU(), drop, nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(6, 4)), torch.randn(3, 3, 6, 6)


def _resnet() -> Built:
    model = torchvision.models.resnet18(num_classes=5)
    model.fc = nn.Sequential(nn.Dropout(0.2), model.fc)
    return _pixels(model)


def _resnet_channels_last() -> Built:
    model, x = _resnet()
    last = torch.channels_last
    return model.to(memory_format=last), x.contiguous(memory_format=last)


def _timm_vit(**rates: float) -> Built:
    size = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}
    return _pixels(timm.models.VisionTransformer(num_classes=5, **size, **rates))


def _torchvision_vit() -> Built:
    rates = {"dropout": 0.1, "attention_dropout": 0.1}
    model = torchvision.models.VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=5, **rates)
    nn.init.normal_(model.heads.head.weight)  # zero otherwise, and so would be the output
    return _pixels(model)


def _mobilenet() -> Built:
    """In-place activations, and an in-place dropout in the head."""
    row = partial(InvertedResidualConfig, dilation=1, width_mult=1.0)
    rows = [row(8, 3, 16, 8, True, "HS", 2), row(8, 3, 16, 8, False, "RE", 1)]
    return _pixels(torchvision.models.MobileNetV3(rows, 16, num_classes=5))


def _timm_convnext() -> Built:
    return _pixels(
        timm.models.ConvNeXt(
            num_classes=5,
            depths=(1, 1, 2, 1),
            dims=(4, 8, 8, 16),
            ls_init_value=1.0,
            drop_path_rate=0.4,
        )
    )


def _torchvision_convnext() -> Built:
    stages = [CNBlockConfig(8, 16, 1), CNBlockConfig(16, None, 2)]
    return _pixels(
        torchvision.models.ConvNeXt(
            stages, stochastic_depth_prob=0.4, layer_scale=1.0, num_classes=5
        )
    )


def _googlenet() -> Built:
    return _pixels(torchvision.models.googlenet(num_classes=5, init_weights=False), 64, 1)


def _bfloat16() -> Built:
    model, x = _small_images(nn.Dropout(0.3))
    return model.bfloat16(), x.bfloat16()


def _parametrized() -> Built:
    body = nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))
    head = nn.utils.parametrizations.orthogonal(nn.Linear(8, 4))
    return _rows(nn.Sequential(body, nn.ReLU(), nn.Dropout(0.3), head))


def _spectral() -> Built:
    body = nn.utils.parametrizations.spectral_norm(nn.Linear(8, 8))
    older = nn.utils.spectral_norm(nn.Linear(8, 4))
    return _rows(nn.Sequential(body, nn.ReLU(), nn.Dropout(0.3), older))


def _structured() -> Built:
    pair = torch.randn(3, 8), torch.randn(3, 8)
    return m.Structured(), {"image": {"pixels": torch.randn(3, 8)}, "pair": pair}


def _volumes() -> Built:
    layers = nn.Conv3d(3, 6, 3), nn.Dropout3d(0.3), nn.Flatten(), nn.Linear(48, 4)
    return nn.Sequential(*layers), torch.randn(3, 3, 4, 4, 4)


def _signals() -> Built:
    layers = nn.Conv1d(3, 6, 3), nn.Dropout1d(0.3), nn.Flatten(), nn.Linear(36, 4)
    return nn.Sequential(*layers), torch.randn(3, 3, 8)


def _depth(mode: str) -> Built:
    return _rows(nn.Sequential(nn.Linear(8, 8), StochasticDepth(0.4, mode), nn.Linear(8, 4)))


def _mlp() -> Built:
    layers = nn.Linear(8, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 16), nn.BatchNorm1d(16)
    return _rows(nn.Sequential(*layers, nn.Dropout(0.2), nn.Linear(16, 4)))


def _wide() -> Built:
    """Wide enough for the masks that are drawn from integers."""
    return _rows(nn.Sequential(nn.Linear(8, 1024), nn.ReLU(), nn.Dropout(0.3), nn.Linear(1024, 4)))


def _batch_statistics() -> Built:
    norm = nn.BatchNorm1d(8, track_running_stats=False)
    return _rows(nn.Sequential(nn.Linear(8, 8), norm, nn.Dropout(0.3), nn.Linear(8, 4)))


def _bf16_autocast() -> AbstractContextManager[Any]:
    return torch.autocast("cpu", torch.bfloat16)


_ANOTHER = "took another path on a later call"
_HOST = "Python reads or shares"
_LIVES_ON = "lives on after the pass"

CASES = [
    Case("dropout", _mlp),
    Case("dropout1d", _signals),
    Case("dropout2d", lambda: _small_images(nn.Dropout2d(0.3))),
    Case("dropout3d", _volumes),
    Case("alpha_dropout", lambda: _small_images(nn.AlphaDropout(0.3))),
    Case("feature_alpha_dropout", lambda: _small_images(nn.FeatureAlphaDropout(0.3))),
    Case("in_place_dropout", lambda: _small_images(nn.Dropout(0.3, inplace=True))),
    Case(
        "dropout_first",
        lambda: _rows(nn.Sequential(nn.Dropout(0.3), nn.Linear(8, 4))),
        prefix=False,
    ),
    Case("wide", _wide),
    Case("functional", lambda: _rows(m.Functional()), live=(m.Functional,)),
    Case(
        "functional_other_output",
        lambda: _rows(m.OtherOutputInTraining()),
        by_hand=_functional_dropout_on,
    ),
    Case(
        "functional_statistics",
        lambda: _rows(m.StatisticsInTraining()),
        by_hand=_functional_dropout_on,
    ),
    Case("attention", lambda: _steps(m.Attention(need_weights=False))),
    Case("attention_weights", lambda: _steps(m.Attention(need_weights=True))),
    Case("own_attention", lambda: _steps(m.OwnAttention()), live=(m.OwnAttention,)),
    Case("causal_attention", lambda: _steps(m.OwnAttention(is_causal=True)), (m.OwnAttention,)),
    Case("long_attention", lambda: (m.OwnAttention(), torch.randn(3, 32, 8)), (m.OwnAttention,)),
    Case("transformer_encoder", lambda: _steps(m.Encoder(), 4)),
    Case("lstm", lambda: _steps(m.Recurrent(nn.LSTM), 4)),
    Case("gru", lambda: _steps(m.Recurrent(nn.GRU), 4)),
    Case("stochastic_depth_row", lambda: _depth("row")),
    Case("stochastic_depth_batch", lambda: _depth("batch"), mixes_rows=True),
    Case("drop_path", lambda: _rows(nn.Sequential(nn.Linear(8, 8), DropPath(0.4)))),
    Case("in_place_residual", lambda: _rows(traps.Residual())),
    Case("python_loop", lambda: _rows(m.PythonLoop())),
    Case("resnet18", _resnet, heavy=True),
    Case("resnet18_channels_last", _resnet_channels_last, heavy=True),
    Case("timm_vit", lambda: _timm_vit(drop_rate=0.1, attn_drop_rate=0.1, drop_path_rate=0.2)),
    Case("timm_vit_head", lambda: _timm_vit(drop_rate=0.1)),
    Case("torchvision_vit", _torchvision_vit),
    Case("torchvision_mobilenet", _mobilenet),
    Case("timm_convnext", _timm_convnext),
    Case("torchvision_convnext", _torchvision_convnext),
    Case("googlenet", _googlenet, heavy=True),
    Case("bfloat16", _bfloat16),
    Case("autocast", _mlp, context=_bf16_autocast),
    Case("compiled", lambda: _rows(torch.compile(_mlp()[0], backend="eager"))),
    Case("compiled_inside", lambda: _rows(m.Compiled())),
    Case("spectral_norm", _spectral, own_state=("weight",)),
    Case("parametrized", _parametrized),
    Case("structured", _structured),
    Case("latent", lambda: _rows(m.Latent())),
    Case("masked", lambda: _rows(m.Masked()), mixes_rows=True),
    Case("branches", lambda: _rows(m.Branches()), mixes_rows=True),
    Case("hyper_network", lambda: _rows(m.HyperNetwork()), mixes_rows=True),
    Case("writes_prefix", lambda: _rows(traps.WritesPrefix())),
    Case("subtracts_mean", lambda: _rows(m.SubtractsMean()), mixes_rows=True),
    Case("keeps_norm", lambda: _rows(m.KeepsNorm()), mixes_rows=True),
    Case("shared_mask", lambda: _rows(m.SharedMask()), mixes_rows=True),
    Case("across_rows", lambda: _rows(m.AcrossRows()), mixes_rows=True),
    Case(
        "keeps_activations",
        lambda: _rows(traps.KeepsActivations()),
        own_state=("features", "dropped"),
    ),
    Case("keeps_in_list", lambda: _rows(traps.KeepsInList()), own_state=("history",)),
    Case("masks_padding", lambda: _steps(m.MasksPadding(), 4), mixes_rows=True),
    Case("looks_back", lambda: _steps(m.LooksBack(), 4)),
    Case("locked_dropout", lambda: _rows(m.LockedDropout()), mixes_rows=True),
    Case("distributions", lambda: _rows(m.Distributions())),
    Case("gumbel", lambda: _rows(m.Gumbel())),
    Case("time_first", lambda: _steps(m.TimeFirst()), mixes_rows=True),
    Case("batch_statistics", _batch_statistics, mixes_rows=True),
    Case("adds_onto_prefix", lambda: _rows(traps.AddsOntoPrefix())),
    Case("fills_halves", lambda: _rows(traps.FillsHalves())),
    Case("assigns_masked", lambda: _rows(traps.AssignsMasked())),
    Case("makes_constants", lambda: _rows(traps.MakesConstants())),
    Case("own_function", lambda: _rows(traps.OwnFunction())),
    Case("returns_its_input", lambda: _rows(traps.ReturnsItsInput())),
    Case("item", lambda: _rows(traps.ReadsHost(lambda x: x.sum().item()))),
    # ---- what a replay must notice
    Case("numpy", lambda: _rows(traps.ReadsHost(Tensor.numpy)), falls_back=_HOST),
    Case("tolist", lambda: _rows(traps.ReadsHost(Tensor.tolist)), falls_back=_HOST),
    Case(
        "counts_calls",
        lambda: _rows(traps.CountsCalls()),
        falls_back=_ANOTHER,
        own_state=("calls",),
    ),
    Case("python_random", lambda: _rows(traps.PythonRandom()), falls_back=_ANOTHER, host=True),
    Case("numpy_random", lambda: _rows(traps.NumpyRandom()), falls_back=_ANOTHER, host=True),
    Case(
        "random_in_training",
        lambda: _rows(traps.RandomInTraining()),
        (m.Functional,),
        falls_back=_ANOTHER,
        host=True,
    ),
    Case(
        "builds_cache",
        lambda: _rows(traps.BuildsCache()),
        falls_back=_ANOTHER,
        own_state=("cache",),
    ),
    Case(
        "keeps_late",
        lambda: _rows(traps.KeepsLate()),
        falls_back="kept another tensor",
        own_state=("calls", "kept"),
    ),
    Case("swaps_weights", lambda: _rows(traps.SwapsWeights()), own_state=("weight",)),
    Case(
        "turns_knob",
        lambda: _rows(traps.TurnsKnob()),
        falls_back=_ANOTHER,
        own_state=("calls", "negative_slope"),
    ),
    Case(
        "swaps_child",
        lambda: _rows(traps.SwapsChild()),
        falls_back=_ANOTHER,
        own_state=("calls", "1"),
    ),
    Case(
        "carries_state",
        lambda: _rows(traps.CarriesState(through_data=False)),
        falls_back="memory that its beginning reads",
        own_state=("state",),
    ),
    Case(
        "carries_state_through_data",
        lambda: _rows(traps.CarriesState(through_data=True)),
        falls_back="memory that its beginning reads",
        own_state=("state",),
    ),
    Case("shares_numpy", lambda: _rows(traps.SharesNumpy()), falls_back=None, own_state=("array",)),
    Case("copies", lambda: _rows(traps.Copies()), falls_back=None),
    Case("forces", lambda: _rows(m.Forces()), falls_back=None),
    Case("graph", lambda: _rows(m.Graph()), falls_back="layout", mixes_rows=True),
    Case(
        "writes_buffer",
        lambda: _rows(traps.WritesBuffer()),
        falls_back=_LIVES_ON,
        own_state=("seen",),
    ),
    Case("private_generator", lambda: _rows(traps.PrivateGenerator())),
]


def each(cases: list[Case] = CASES) -> pytest.MarkDecorator:
    """Run a test once per case."""
    return pytest.mark.parametrize("case", cases, ids=str)
