"""Sampling leaves everything as it was: flags, buffers, weights, hooks, attributes, generators."""

import random
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import stablelightning as sl
from stablelightning.errors import EngineError, StableLightningWarning
from tests.model import modules as m
from tests.model import traps
from tests.model.cases import Case, each, tensors

ENGINES = ["auto", "loop", "replay", "vmap", "repeat"]

#: Tables of a module that hold other things than plain attributes.
TABLES = ("_parameters", "_buffers", "_modules", "_forward_hooks", "_forward_pre_hooks")


class Snapshot:
    """Everything about a model, its inputs and the process that a call could disturb."""

    def __init__(self, model: nn.Module, inputs: Any, *, except_for: tuple[str, ...] = ()) -> None:
        self.model, self.inputs, self.except_for = model, inputs, except_for
        self.modules, self.parameters = list(model.modules()), list(model.parameters())
        self.before = self.look()

    def look(self) -> dict[str, Any]:
        return {
            "flags": [module.training for module in self.modules],
            "attributes": [self.attributes(module) for module in self.modules],
            "values": [x.clone() for x in self.state()],
            "gradients": [x.grad for x in self.parameters],
            "needs": [x.requires_grad for x in self.parameters],
            "inputs": [x.clone() for x in tensors(self.inputs)],
            "process": (
                torch.backends.mha.get_fastpath_enabled(),
                torch.is_autocast_cache_enabled(),
                torch.is_autocast_enabled("cpu"),
                torch.is_grad_enabled(),
                torch.is_inference_mode_enabled(),
                torch.get_default_dtype(),
                len(torch.utils._python_dispatch._get_current_dispatch_mode_stack()),
                torch._C._len_torch_function_stack(),
            ),
        }

    def state(self) -> list[Tensor]:
        every = {"remove_duplicate": False}
        named = [*self.model.named_parameters(**every), *self.model.named_buffers(**every)]
        kept = [x for name, x in named if name.rpartition(".")[2] not in self.except_for]
        return [x.to_dense() if x.is_sparse else x for x in kept]

    def attributes(self, module: nn.Module) -> dict[str, Any]:
        plain = {
            name: value
            for name, value in vars(module).items()
            if name not in (*TABLES, *self.except_for)
        }
        tables = {
            (table, name): value
            for table in TABLES
            for name, value in vars(module)[table].items()
            if name not in self.except_for
        }
        return plain | tables

    def assert_unchanged(self) -> None:
        after = self.look()
        for name in ("values", "inputs"):
            for a, b in zip(self.before[name], after[name], strict=True):
                assert torch.equal(a, b), name
        for a, b in zip(self.before["attributes"], after["attributes"], strict=True):
            assert a.keys() == b.keys()
            assert all(a[name] is b[name] for name in a)
        for name in ("flags", "needs", "process"):
            assert self.before[name] == after[name], name
        assert all(
            a is b for a, b in zip(self.before["gradients"], after["gradients"], strict=True)
        )


def generators() -> Any:
    return (
        torch.get_rng_state().tolist(),
        random.getstate(),
        np.random.get_state()[1].tolist(),
        np.random.get_state()[2:],
    )


@contextmanager
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", StableLightningWarning)
        yield


@pytest.mark.parametrize("engine", ENGINES)
@each()
def test_nothing_is_left_behind(case: Case, engine: str) -> None:
    model, inputs = case.build()
    flags = [number % 3 > 0 for number, _ in enumerate(model.modules())]
    for module, flag in zip(model.modules(), flags, strict=True):
        module.training = flag
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    snapshot = Snapshot(model, inputs, except_for=case.own_state)
    before = generators()
    with case.context(), quiet(), suppress(EngineError):
        for _ in range(2):  # auto plans on the first call
            samples = sl.sample_predictions(model, inputs, samples=10, seed=0, engine=engine)
            assert not any(x.requires_grad or x.is_inference() for x in tensors(samples))
    snapshot.assert_unchanged()
    after = generators()
    assert after[0] == before[0]
    if not case.host:
        assert after == before


class Failure(Exception):
    """Raised by a forward."""


class Fails(nn.Module):
    """Raises on the n-th call."""

    def __init__(self, on: int) -> None:
        super().__init__()
        self.on = on
        self.calls = [0]

    def forward(self, x: Tensor) -> Tensor:
        self.calls[0] += 1
        if self.calls[0] == self.on:
            raise Failure
        return x


@pytest.mark.parametrize("position", [0, 1, 3])
@pytest.mark.parametrize("on", [1, 2, 3, 5])
@pytest.mark.parametrize("engine", ENGINES)
def test_nothing_is_left_behind_when_the_forward_fails(engine: str, on: int, position: int) -> None:
    fails = Fails(on)
    layers: list[nn.Module] = [nn.Linear(8, 8), m.OtherOutputInTraining(), nn.Dropout(0.5)]
    layers.insert(position, fails)
    model, x = nn.Sequential(*layers), torch.randn(3, 8)
    model[0].eval()
    snapshot, before = Snapshot(model, x, except_for=("calls",)), generators()
    with suppress(Failure, EngineError):
        sl.sample_predictions(model, x, samples=10, seed=0, engine=engine)
    snapshot.assert_unchanged()
    assert generators() == before


def test_the_error_of_a_forward_is_the_callers_to_see() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), Fails(3))
    for engine in ("loop", "replay"):
        model[2].calls[0] = 0
        with pytest.raises(Failure):
            sl.sample_predictions(model, torch.randn(3, 8), samples=10, engine=engine)
    with pytest.raises(RuntimeError, match="mat1 and mat2 shapes cannot be multiplied"):
        sl.sample_predictions(model, torch.randn(3, 7), samples=10)


@pytest.mark.parametrize("engine", ENGINES)
def test_without_a_seed_the_generator_moves_on(engine: str) -> None:
    model, x = m.PythonLoop(), torch.randn(3, 8)
    first = sl.sample_predictions(model, x, samples=4, engine=engine)
    second = sl.sample_predictions(model, x, samples=4, engine=engine)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("engine", ["loop", "replay"])
def test_without_a_seed_the_samples_are_those_of_the_generator(engine: str) -> None:
    model, x = m.Functional(), torch.randn(3, 8)
    torch.manual_seed(5)
    free = sl.sample_predictions(model, x, samples=4, engine=engine)
    assert torch.equal(free, sl.sample_predictions(model, x, samples=4, seed=5, engine=engine))


@pytest.mark.parametrize("engine", ENGINES)
def test_a_seed_repeats_on_the_first_call_and_on_later_ones(engine: str) -> None:
    x = torch.randn(3, 8)
    torch.manual_seed(1)
    model = m.PythonLoop()
    first = sl.sample_predictions(model, x, samples=12, seed=4, engine=engine)
    torch.randn(7)
    for _ in range(2):
        again = sl.sample_predictions(model, x, samples=12, seed=4, engine=engine)
        assert torch.equal(first, again)
    torch.manual_seed(1)
    copy = m.PythonLoop()
    sl.sample_predictions(copy, x, samples=3, engine=engine)  # another history
    assert torch.equal(first, sl.sample_predictions(copy, x, samples=12, seed=4, engine=engine))
    other = sl.sample_predictions(model, x, samples=12, seed=5, engine=engine)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("engine", ENGINES)
def test_a_cache_that_sampling_built_can_be_trained_through(
    engine: str, mode: Callable[[], Any]
) -> None:
    model, x = traps.BuildsCache(), torch.randn(3, 8)
    with mode(), quiet(), suppress(EngineError):
        sl.sample_predictions(model, x, samples=6, engine=engine)
    assert model.cache is None or not torch._C._functorch.is_batchedtensor(model.cache)
    model(x).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("kind", [traps.KeepsActivations, traps.KeepsInList])
@pytest.mark.parametrize("engine", ENGINES)
def test_what_a_model_keeps_is_plain_tensors(kind: type[nn.Module], engine: str) -> None:
    model, x = kind(), torch.randn(3, 8)
    with quiet(), suppress(EngineError):
        sl.sample_predictions(model, x, samples=6, engine=engine)
    kept = [v for v in vars(model).values() if isinstance(v, Tensor)] + vars(model).get(
        "history", []
    )
    assert all(not torch._C._functorch.is_functorch_wrapped_tensor(x) for x in kept)
    assert all(x.isfinite().all() for x in kept)
    if kind is traps.KeepsActivations and hasattr(model, "features") and engine == "replay":
        torch.testing.assert_close(model.features, model.body(x))


def test_a_tensor_that_is_kept_late_can_be_read_afterwards() -> None:
    class KeepsWithoutReading(traps.KeepsLate):
        def forward(self, x: Tensor) -> Tensor:
            hidden = self.body(x)
            twice = hidden.exp()
            self.calls += 1
            if self.calls == 3:
                self.kept = hidden
            del hidden
            return self.drop(twice)

    model, x = KeepsWithoutReading(), torch.randn(3, 8)
    with quiet():
        sl.sample_predictions(model, x, samples=6, engine="replay")
    assert model.kept.untyped_storage().nbytes() >= 3 * 4 * 4
    torch.testing.assert_close(model.kept, model.body(x))


@pytest.mark.parametrize("engine", ENGINES)
def test_hooks_of_the_user_stay_and_run(engine: str) -> None:
    model, x = m.PythonLoop(), torch.randn(3, 8)
    seen: list[bool] = []
    model.drop.register_forward_hook(lambda module, args, output: seen.append(module.training))
    with suppress(EngineError):
        sl.sample_predictions(model, x, samples=4, engine=engine)
    assert any(seen)  # and not all: engines may try the model in eval before they choose
    number = len(seen)
    model.eval()(x)
    assert seen[number:] == [False] * 3


def test_sampling_inside_a_callers_context_leaves_it() -> None:
    model, x = m.Functional(), torch.randn(3, 8)
    with torch.inference_mode():
        samples = sl.sample_predictions(model, x.clone(), samples=3)
        assert torch.is_inference_mode_enabled()
    samples.requires_grad_()  # an inference tensor could not
    (samples.sum() * 2).backward()
    with torch.autocast("cpu", torch.bfloat16):
        assert sl.sample_predictions(model, x, samples=3).dtype == torch.bfloat16
        assert torch.is_autocast_cache_enabled()


def test_an_early_stop_leaves_nothing_behind() -> None:
    model, x = m.OtherOutputInTraining(), torch.randn(3, 8)
    snapshot, before = Snapshot(model, x), generators()
    prediction = sl.mc_dropout(model, x, samples=500, tolerance=10.0, seed=0)
    assert prediction.samples_used < 500
    snapshot.assert_unchanged()
    assert generators() == before


def test_training_goes_on_after_sampling() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2))
    x = torch.randn(16, 8)
    for engine in ENGINES:
        model.train()
        before = model[1].num_batches_tracked.item()
        sl.sample_predictions(model, x, samples=3, engine=engine)
        assert model[1].num_batches_tracked.item() == before
        model(x).sum().backward()
        assert model[1].num_batches_tracked.item() == before + 1
    assert model[0].weight.grad.abs().sum() > 0


@pytest.mark.parametrize("engine", ["auto", "vmap", "repeat"])
def test_planning_leaves_no_trace_of_its_trials(engine: str) -> None:
    counts, keeps = traps.CountsCalls(), traps.KeepsInList()
    for model in (counts, keeps):
        with quiet(), suppress(EngineError):
            sl.sample_predictions(model, torch.randn(3, 8), samples=5, engine=engine)
    assert counts.calls == (5 if engine == "auto" else 0)
    assert len(keeps.history) == {"auto": 5, "vmap": 0, "repeat": 1}[engine]


@pytest.mark.parametrize("engine", ENGINES)
def test_the_flags_of_scripted_modules_are_reached_and_put_back(engine: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8)))
    model = nn.Sequential(scripted, nn.Dropout(0.5)).train()
    snapshot = Snapshot(model, torch.randn(16, 8))
    with quiet(), suppress(EngineError):
        sl.sample_predictions(model, snapshot.inputs, samples=4, engine=engine)
    snapshot.assert_unchanged()
    model.eval()
    assert not scripted.training
