"""Replay: bit-identical to the plain loop, and the deterministic prefix computed once."""

import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

import stablelightning as sl
from stablelightning.errors import StableLightningWarning
from tests.model import modules as m
from tests.model import traps
from tests.model.cases import CASES, Case, each, plain_loop, tensors

MODES = [torch.enable_grad, torch.no_grad, torch.inference_mode]
SAMPLES = 4


@cache
def by_hand(case: Case) -> tuple[Any, Any]:
    """The samples of a hand-written loop, and where it leaves the generators of the host."""
    return plain_loop(case, SAMPLES, seed=0), host_state()


def host_state() -> Any:
    return random.getstate(), np.random.get_state()[1].tolist(), np.random.get_state()[2:]


class CountsWork(TorchDispatchMode):
    """Counts the operations that really run and cost something: products, convolutions, kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.work = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        self.work += func.overloadpacket in flop_registry or "rnn" in name or "lstm" in name
        return func(*args, **(kwargs or {}))


@contextmanager
def fallbacks() -> Iterator[list[str]]:
    """The warnings of this package, as they are said."""
    said: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield said
    said += [str(w.message) for w in caught if issubclass(w.category, StableLightningWarning)]


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.__name__)
@each()
def test_replay_and_loop_are_the_plain_loop_to_the_bit(case: Case, mode: Any) -> None:
    expected, left = by_hand(case)
    for engine in ("loop", "replay"):
        model, inputs = case.build()
        with mode(), case.context(), fallbacks() as said:
            samples = sl.sample_predictions(model, inputs, samples=SAMPLES, seed=0, engine=engine)
        found, wanted = tensors(samples), tensors(expected)
        assert len(found) == len(wanted)
        for a, b in zip(found, wanted, strict=True):
            assert a.dtype == b.dtype
            assert torch.equal(a, b), engine
        assert host_state() == left, engine
        if engine == "loop" or case.falls_back == "":
            assert said == []
        elif case.falls_back is not None:
            assert len(said) == 1
            assert "fell back to the plain loop" in said[0]
            assert case.falls_back in said[0]


@each([case for case in CASES if case.falls_back == "" and case.prefix])
def test_the_prefix_is_computed_once(case: Case) -> None:
    work = {}
    for engine in ("loop", "replay"):
        model, inputs = case.build()
        # The first call also asks by experiment which modules are random.
        sl.sample_predictions(model, inputs, samples=1, engine=engine)
        for samples in (1, SAMPLES):
            with case.context(), CountsWork() as count:
                sl.sample_predictions(model, inputs, samples=samples, engine=engine)
            work[engine, samples] = count.work
    one_pass = work["loop", 1]
    assert work["loop", SAMPLES] == SAMPLES * one_pass
    live = (work["replay", SAMPLES] - work["replay", 1]) / (SAMPLES - 1)
    assert work["replay", 1] == one_pass
    assert live < one_pass
    assert live == int(live)


@pytest.mark.parametrize(("engine", "passes", "heads"), [("replay", 1, 24), ("auto", 1, 1)])
def test_a_resnet_with_dropout_in_its_head_convolves_once(
    engine: str, passes: int, heads: int
) -> None:
    case = next(case for case in CASES if case.name == "resnet18")
    model, inputs = case.build()
    sl.sample_predictions(model, inputs, samples=24, engine=engine)  # auto plans
    with CountsWork() as one:
        model.eval()
        model(inputs)
    with CountsWork() as all_samples:
        sl.sample_predictions(model, inputs, samples=24, engine=engine)
    assert one.work == 20 + 1
    assert all_samples.work == passes * 20 + heads


def test_modules_of_torch_in_the_prefix_are_not_even_called_again() -> None:
    class Counting(nn.Linear):
        calls = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            Counting.calls += 1
            return super().forward(x)

    plain, own = nn.Linear(8, 8), Counting(8, 8)
    model = nn.Sequential(plain, own, nn.Dropout(0.5))
    calls = 0
    original = nn.Linear.forward

    def counted(self: nn.Linear, x: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += self is plain
        return original(self, x)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.Linear, "forward", counted)
        sl.sample_predictions(model, torch.randn(3, 8), samples=SAMPLES, engine="replay")
    assert calls == 1
    assert Counting.calls == SAMPLES  # what a user wrote may count, and is always run


def test_hooks_of_a_skipped_prefix_are_run_on_every_pass() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Dropout(0.5))
    seen = []
    model[0].register_forward_hook(lambda module, args, output: seen.append(output))
    sl.sample_predictions(model, torch.randn(3, 8), samples=SAMPLES, engine="replay")
    assert len(seen) == SAMPLES
    assert all(torch.equal(output, seen[0]) for output in seen)


def test_fallback_is_said_once_per_model() -> None:
    model, x = traps.ReadsHost(torch.Tensor.tolist), torch.randn(3, 8)
    with fallbacks() as said:
        for _ in range(3):
            sl.sample_predictions(model, x, samples=3, engine="replay")
    assert len(said) == 1


def test_a_prediction_names_the_engine_and_why_it_fell_back() -> None:
    x = torch.randn(3, 8)
    exact = sl.mc_dropout(m.OneDropout(), x, samples=9, engine="replay")
    assert exact.engine == "replay"
    with fallbacks():
        counted = sl.mc_dropout(traps.CountsCalls(), x, samples=9, engine="replay")
    assert counted.engine.startswith("loop (the forward took another path")


def test_outputs_of_the_prefix_are_the_callers_own() -> None:
    """What is returned must not be the tape's memory, nor one sample another's."""
    model, inputs = (
        m.Structured(),
        {"image": {"pixels": torch.randn(3, 8)}, "pair": (torch.ones(3, 8),)},
    )
    samples = sl.sample_predictions(model, inputs, samples=3, seed=0, engine="replay")
    again = sl.sample_predictions(model, inputs, samples=3, seed=0, engine="replay")
    samples["plain"][0].zero_()
    assert torch.equal(samples["plain"][1], again["plain"][1])


def test_weights_that_change_between_calls_are_seen() -> None:
    model, x = m.OneDropout(), torch.randn(3, 8)
    before = sl.sample_predictions(model, x, samples=3, seed=0, engine="replay")
    with torch.no_grad():
        model.body.weight.mul_(2)
        model.body.bias.mul_(2)
    after = sl.sample_predictions(model, x, samples=3, seed=0, engine="replay")
    assert torch.equal(after, before * 2)


def test_memory_that_the_rest_writes_into_is_put_back() -> None:
    """Each pass must find the prefix as the first pass left it, however the rest wrote into it."""

    class Writes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.drop = nn.Linear(8, 8), nn.Dropout(0.5, inplace=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = self.body(x)
            view = h.view(-1)
            y = self.drop(h[:, :4])
            view[5] = y.sum()
            h.t()[0].add_(1)
            return torch.cat([h, view.view_as(h)], 1)

    model, x = Writes(), torch.randn(3, 8)
    loop = sl.sample_predictions(model, x, samples=5, seed=0, engine="loop")
    with fallbacks() as said:
        replay = sl.sample_predictions(model, x, samples=5, seed=0, engine="replay")
    assert said == []
    assert torch.equal(loop, replay)


class KeepsWhatIsWrittenLater(nn.Module):
    """Keeps a tensor of the prefix on call ``keeps``; call 3 begins in another way."""

    def __init__(self, keeps: int) -> None:
        super().__init__()
        self.keeps, self.calls = keeps, 0
        self.dropout = nn.Dropout()
        self.kept: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        total, doubled = x.clone(), x * 2
        if self.calls == 3:
            x + x
        total.add_(doubled)
        between = total * 5
        if self.calls == self.keeps:
            self.kept = total if self.keeps < 3 else between
        return self.dropout(total)


@pytest.mark.parametrize("keeps", [1, 2, 4])
def test_what_a_call_kept_is_not_written_by_a_later_one(keeps: int) -> None:
    x = torch.ones(2, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", StableLightningWarning)
        model = KeepsWhatIsWrittenLater(keeps)
        sl.sample_predictions(model, x, samples=5, engine="replay")
    assert torch.equal(model.kept, x * (3 if keeps < 3 else 15))
