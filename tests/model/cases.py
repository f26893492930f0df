"""The models that every engine must sample right: a factory each, and what is expected of it."""

import copy
import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm.layers import Attention as TimmAttention
from timm.layers import DropPath
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map
from torchvision.ops import DropBlock2d, StochasticDepth

from tests.model import modules as m
from tests.model import traps
from tests.model.builders import (
    Built,
    batch_statistics,
    bfloat16,
    depth,
    drop_block,
    googlenet,
    mlp,
    mobilenet,
    parametrized,
    resnet,
    resnet_channels_last,
    rows,
    signals,
    small_images,
    spectral,
    steps,
    structured,
    timm_convnext,
    timm_vit,
    torchvision_convnext,
    torchvision_vit,
    volumes,
    wide,
)

#: What a person would switch on by hand.
LIVE = (
    nn.modules.dropout._DropoutNd,
    nn.AlphaDropout,
    nn.FeatureAlphaDropout,
    nn.RNNBase,
    nn.MultiheadAttention,
    StochasticDepth,
    DropBlock2d,
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


def _bf16_autocast() -> AbstractContextManager[Any]:
    return torch.autocast("cpu", torch.bfloat16)


_ANOTHER = "took another path on a later call"
_HOST = "Python reads or shares"
_LIVES_ON = "lives on after the pass"

CASES = [
    Case("dropout", mlp),
    Case("dropout1d", signals),
    Case("dropout2d", lambda: small_images(nn.Dropout2d(0.3))),
    Case("dropout3d", volumes),
    Case("alpha_dropout", lambda: small_images(nn.AlphaDropout(0.3))),
    Case("feature_alpha_dropout", lambda: small_images(nn.FeatureAlphaDropout(0.3))),
    Case("in_place_dropout", lambda: small_images(nn.Dropout(0.3, inplace=True))),
    Case(
        "dropout_first",
        lambda: rows(nn.Sequential(nn.Dropout(0.3), nn.Linear(8, 4))),
        prefix=False,
    ),
    Case("wide", wide),
    Case("functional", lambda: rows(m.Functional()), live=(m.Functional,)),
    Case(
        "functional_other_output",
        lambda: rows(m.OtherOutputInTraining()),
        by_hand=_functional_dropout_on,
    ),
    Case(
        "functional_statistics",
        lambda: rows(m.StatisticsInTraining()),
        by_hand=_functional_dropout_on,
    ),
    Case("attention", lambda: steps(m.Attention(need_weights=False))),
    Case("attention_weights", lambda: steps(m.Attention(need_weights=True))),
    Case("own_attention", lambda: steps(m.OwnAttention()), live=(m.OwnAttention,)),
    Case("causal_attention", lambda: steps(m.OwnAttention(is_causal=True)), (m.OwnAttention,)),
    Case("long_attention", lambda: (m.OwnAttention(), torch.randn(3, 32, 8)), (m.OwnAttention,)),
    Case("transformer_encoder", lambda: steps(m.Encoder(), 4)),
    Case("lstm", lambda: steps(m.Recurrent(nn.LSTM), 4)),
    Case("gru", lambda: steps(m.Recurrent(nn.GRU), 4)),
    Case("stochastic_depth_row", lambda: depth("row")),
    Case("stochastic_depth_batch", lambda: depth("batch"), mixes_rows=True),
    Case("drop_path", lambda: rows(nn.Sequential(nn.Linear(8, 8), DropPath(0.4)))),
    Case("in_place_residual", lambda: rows(traps.Residual())),
    Case("python_loop", lambda: rows(m.PythonLoop())),
    Case("resnet18", resnet, heavy=True),
    Case("resnet18_channels_last", resnet_channels_last, heavy=True),
    Case("timm_vit", lambda: timm_vit(drop_rate=0.1, attn_drop_rate=0.1, drop_path_rate=0.2)),
    Case("timm_vit_head", lambda: timm_vit(drop_rate=0.1)),
    Case("torchvision_vit", torchvision_vit),
    Case("torchvision_mobilenet", mobilenet),
    Case("timm_convnext", timm_convnext),
    Case("torchvision_convnext", torchvision_convnext),
    Case("googlenet", googlenet, heavy=True),
    Case("bfloat16", bfloat16),
    Case("autocast", mlp, context=_bf16_autocast),
    Case("compiled", lambda: rows(torch.compile(mlp()[0], backend="eager"))),
    Case("compiled_inside", lambda: rows(m.Compiled())),
    Case("spectral_norm", spectral, own_state=("weight",)),
    Case("parametrized", parametrized),
    Case("structured", structured),
    Case("latent", lambda: rows(m.Latent())),
    Case("masked", lambda: rows(m.Masked()), mixes_rows=True),
    Case("branches", lambda: rows(m.Branches()), mixes_rows=True),
    Case("hyper_network", lambda: rows(m.HyperNetwork()), mixes_rows=True),
    Case("writes_prefix", lambda: rows(traps.WritesPrefix())),
    Case("subtracts_mean", lambda: rows(m.SubtractsMean()), mixes_rows=True),
    Case("keeps_norm", lambda: rows(m.KeepsNorm()), mixes_rows=True),
    Case("shared_mask", lambda: rows(m.SharedMask()), mixes_rows=True),
    Case("across_rows", lambda: rows(m.AcrossRows()), mixes_rows=True),
    Case(
        "keeps_activations",
        lambda: rows(traps.KeepsActivations()),
        own_state=("features", "dropped"),
    ),
    Case("keeps_in_list", lambda: rows(traps.KeepsInList()), own_state=("history",)),
    Case("masks_padding", lambda: steps(m.MasksPadding(), 4), mixes_rows=True),
    Case("looks_back", lambda: steps(m.LooksBack(), 4)),
    Case("ragged", lambda: (m.Ragged(), (torch.randn(3, 5, 4), torch.tensor([5, 3, 2])))),
    Case("drop_block", drop_block, mixes_rows=True),
    Case("locked_dropout", lambda: rows(m.LockedDropout()), mixes_rows=True),
    Case("distributions", lambda: rows(m.Distributions())),
    Case("gumbel", lambda: rows(m.Gumbel())),
    Case("time_first", lambda: steps(m.TimeFirst()), mixes_rows=True),
    Case("batch_statistics", batch_statistics, mixes_rows=True),
    Case("adds_onto_prefix", lambda: rows(traps.AddsOntoPrefix())),
    Case("fills_halves", lambda: rows(traps.FillsHalves())),
    Case("assigns_masked", lambda: rows(traps.AssignsMasked())),
    Case("makes_constants", lambda: rows(traps.MakesConstants())),
    Case("own_function", lambda: rows(traps.OwnFunction())),
    Case("returns_its_input", lambda: rows(traps.ReturnsItsInput())),
    Case("reads_dropped", lambda: rows(traps.ReadsDropped())),
    Case("asserts", lambda: rows(traps.Asserts())),
    Case("item", lambda: rows(traps.ReadsHost(lambda x: x.sum().item()))),
    # ---- what a replay must notice
    Case("numpy", lambda: rows(traps.ReadsHost(Tensor.numpy)), falls_back=_HOST),
    Case("tolist", lambda: rows(traps.ReadsHost(Tensor.tolist)), falls_back=_HOST),
    Case("prints", lambda: rows(traps.Prints()), falls_back=_HOST, own_state=("text",)),
    Case(
        "counts_calls",
        lambda: rows(traps.CountsCalls()),
        falls_back=_ANOTHER,
        own_state=("calls",),
    ),
    Case("python_random", lambda: rows(traps.PythonRandom()), falls_back=_ANOTHER, host=True),
    Case("numpy_random", lambda: rows(traps.NumpyRandom()), falls_back=_ANOTHER, host=True),
    Case(
        "random_in_training",
        lambda: rows(traps.RandomInTraining()),
        (m.Functional,),
        falls_back=_ANOTHER,
        host=True,
    ),
    Case(
        "builds_cache",
        lambda: rows(traps.BuildsCache()),
        falls_back=_ANOTHER,
        own_state=("cache",),
    ),
    Case(
        "keeps_late",
        lambda: rows(traps.KeepsLate()),
        falls_back="kept another tensor",
        own_state=("calls", "kept"),
    ),
    Case("swaps_weights", lambda: rows(traps.SwapsWeights()), own_state=("weight",)),
    Case(
        "turns_knob",
        lambda: rows(traps.TurnsKnob()),
        falls_back=_ANOTHER,
        own_state=("calls", "negative_slope"),
    ),
    Case(
        "alternates_weights",
        lambda: rows(traps.AlternatesWeights()),
        falls_back=_ANOTHER,
        own_state=("calls", "weight"),
    ),
    Case(
        "swaps_child",
        lambda: rows(traps.SwapsChild()),
        falls_back=_ANOTHER,
        own_state=("calls", "1"),
    ),
    Case(
        "carries_state",
        lambda: rows(traps.CarriesState(through_data=False)),
        falls_back="memory that its beginning reads",
        own_state=("state",),
    ),
    Case(
        "carries_state_through_data",
        lambda: rows(traps.CarriesState(through_data=True)),
        falls_back="memory that its beginning reads",
        own_state=("state",),
    ),
    Case("shares_numpy", lambda: rows(traps.SharesNumpy()), falls_back=None, own_state=("array",)),
    Case("copies", lambda: rows(traps.Copies()), falls_back=None),
    Case("forces", lambda: rows(m.Forces()), falls_back=None),
    Case("graph", lambda: rows(m.Graph()), falls_back="layout", mixes_rows=True),
    Case(
        "writes_buffer",
        lambda: rows(traps.WritesBuffer()),
        falls_back=_LIVES_ON,
        own_state=("seen",),
    ),
    Case("private_generator", lambda: rows(traps.PrivateGenerator())),
]


def each(cases: list[Case] = CASES) -> pytest.MarkDecorator:
    """Run a test once per case."""
    return pytest.mark.parametrize("case", cases, ids=str)
