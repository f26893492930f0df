"""Sampling on a GPU: the same promises, with CUDA's generators and under AMP."""

import warnings
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_map

import stablelightning as sl
from stablelightning.errors import EngineError, StableLightningWarning
from stablelightning.nn import MLP
from tests.model.cases import CASES, Case, each, tensors
from tests.model.test_laws import assert_independent, assert_same_law, flat

pytestmark = pytest.mark.gpu

#: Models that make tensors on the CPU by themselves, or whose weights have no place but there.
ON_CPU_ONLY = {
    "autocast",
    "fills_halves",
    "graph",
    "numpy",
    "numpy_random",
    "makes_constants",
    "private_generator",
    "shares_numpy",
    "tolist",
}
ON_GPU = [case for case in CASES if case.name not in ON_CPU_ONLY]

AMP: dict[str, Callable[[], Any]] = {
    "single": nullcontext,
    "float16": lambda: torch.autocast("cuda", torch.float16),
    "bfloat16": lambda: torch.autocast("cuda", torch.bfloat16),
}


def on_gpu(case: Case) -> tuple[nn.Module, Any]:
    model, inputs = case.build()
    return model.cuda(), tree_map(lambda x: x.cuda() if isinstance(x, torch.Tensor) else x, inputs)


def named(name: str) -> Case:
    return next(case for case in CASES if case.name == name)


@pytest.fixture(autouse=True)
def exact() -> Any:
    """The same kernels on every pass."""
    before = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    yield
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = before


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
@each(ON_GPU)
def test_replay_is_the_loop_to_the_bit(case: Case, mode: Callable[[], Any]) -> None:
    found = []
    for engine in ("loop", "replay"):
        model, inputs = on_gpu(case)
        with mode(), warnings.catch_warnings():
            warnings.simplefilter("ignore", StableLightningWarning)
            found.append(
                tensors(sl.sample_predictions(model, inputs, samples=4, seed=0, engine=engine))
            )
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("amp", AMP)
@pytest.mark.parametrize(
    "name", ["dropout", "attention", "transformer_encoder", "lstm", "resnet18", "timm_vit"]
)
def test_replay_is_the_loop_to_the_bit_under_amp(name: str, amp: str) -> None:
    model, inputs = on_gpu(named(name))
    found = []
    for engine in ("loop", "replay"):
        with AMP[amp](), warnings.catch_warnings():
            warnings.simplefilter("error", StableLightningWarning)
            found.append(sl.sample_predictions(model, inputs, samples=4, seed=0, engine=engine))
    assert torch.equal(*found)


@pytest.mark.parametrize("engine", ["auto", "vmap", "repeat"])
@pytest.mark.parametrize("amp", AMP)
@pytest.mark.parametrize(
    "name",
    ["dropout", "dropout2d", "attention", "own_attention", "lstm", "timm_vit", "subtracts_mean"],
)
def test_batched_engines_have_the_law_of_the_loop(name: str, amp: str, engine: str) -> None:
    model, inputs = on_gpu(named(name))
    with AMP[amp]():
        loop = sl.sample_predictions(model, inputs, samples=300, seed=1, engine="loop")
        try:
            other = sl.sample_predictions(model, inputs, samples=300, seed=2, engine=engine)
        except EngineError:
            assert engine != "auto"
            return
    assert other.dtype == loop.dtype
    assert other.device == loop.device
    assert_same_law(flat(loop).cpu(), flat(other).cpu())
    assert_independent(flat(other).cpu())


@pytest.mark.parametrize("engine", ["auto", "loop", "replay", "vmap", "repeat"])
def test_the_generators_of_the_gpu_are_left_as_they_were(engine: str) -> None:
    model, inputs = on_gpu(named("dropout"))
    before = torch.cuda.get_rng_state(), torch.get_rng_state()
    first = sl.sample_predictions(model, inputs, samples=20, seed=0, engine=engine)
    assert torch.equal(torch.cuda.get_rng_state(), before[0])
    assert torch.equal(torch.get_rng_state(), before[1])
    again = sl.sample_predictions(model, inputs, samples=20, seed=0, engine=engine)
    assert torch.equal(first, again)
    sl.sample_predictions(model, inputs, samples=20, engine=engine)
    assert not torch.equal(torch.cuda.get_rng_state(), before[0])


def test_a_prediction_moves_to_the_cpu() -> None:
    model, x = MLP(8, hidden=(16,), dropout=0.5, variance=True).cuda(), torch.randn(5, 8).cuda()
    prediction = sl.mc_dropout(model, x, samples=20, seed=0, keep_samples=True)
    assert prediction.mean.is_cuda
    moved = prediction.to("cpu")
    assert not moved.mean.is_cuda
    torch.testing.assert_close(moved.total, prediction.total.cpu())


@pytest.mark.parametrize("engine", ["auto", "loop", "replay"])
def test_peak_memory_does_not_grow_with_the_samples(engine: str) -> None:
    model, x = on_gpu(named("resnet18"))
    x = torch.randn(16, 3, 96, 96, device="cuda")
    peaks = []
    for samples in (64, 64, 512):
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        sl.mc_dropout(model, x, samples=samples, seed=0, engine=engine)
        peaks.append(torch.cuda.max_memory_allocated())
    assert peaks[2] < 1.05 * peaks[1]


def test_a_model_trained_with_the_fp16_scaler_can_be_sampled_in_between() -> None:
    model = nn.Sequential(nn.Linear(8, 32), nn.BatchNorm1d(32), nn.Dropout(0.5), nn.Linear(32, 2))
    model.cuda().train()
    optimizer, scaler = torch.optim.SGD(model.parameters(), 0.1), torch.amp.GradScaler("cuda")
    x = torch.randn(64, 8, device="cuda")
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        with torch.autocast("cuda", torch.float16):
            loss = nn.functional.cross_entropy(model(x), (x[:, 0] > 0).long())
            assert sl.sample_predictions(model, x, samples=4).dtype == torch.float16
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
