"""Engines that batch samples: other draws than the loop's, and the same law."""

import math
import warnings
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import stablelightning as sl
from stablelightning.errors import EngineError, StableLightningWarning
from tests.model import modules as m
from tests.model import traps
from tests.model.cases import CASES, Case, each, tensors

#: Seeds are fixed, so a bound decides once and for all; the largest of some hundred standardised
#: differences of a right law stays below 5, and a wrong one is beyond 10.
BOUND = 6.0
SAMPLES = 400

#: Each pass differs from the one before by more than its draws.
CHANGING = {
    "alternates_weights",
    "counts_calls",
    "turns_knob",
    "swaps_child",
    "carries_state",
    "carries_state_through_data",
    "shares_numpy",
    "keeps_late",
}
STEADY = [case for case in CASES if case.name not in CHANGING]


def sampled(case: Case, engine: str, samples: int, seed: int) -> Tensor:
    """Samples of everything that the model returns, ``(T, D)``."""
    model, inputs = case.build()
    with case.context(), warnings.catch_warnings():
        warnings.simplefilter("ignore", StableLightningWarning)
        output = sl.sample_predictions(model, inputs, samples=samples, seed=seed, engine=engine)
    return flat(output)


def flat(output: Any) -> Tensor:
    return torch.cat([x.double().flatten(1) for x in tensors(output)], 1)


@cache
def reference(case: Case) -> Tensor:
    return sampled(case, "replay" if case.heavy else "loop", number(case), seed=5)


def number(case: Case) -> int:
    return 150 if case.heavy else SAMPLES


def assert_same_law(a: Tensor, b: Tensor) -> None:
    """Means, variances and covariances of two sets of samples agree."""
    varies = (a.std(0) > 1e-9) | (b.std(0) > 1e-9)
    torch.testing.assert_close(a[0, ~varies], b[0, ~varies], rtol=1e-4, atol=1e-5)
    a, b = a[:, varies][:, :16], b[:, varies][:, :16]
    centre, scale = a.mean(0), a.std(0) + b.std(0)
    a, b = (a - centre) / scale, (b - centre) / scale
    upper = torch.triu_indices(a.shape[1], a.shape[1])
    for power in (lambda x: x, lambda x: (x[:, :, None] * x[:, None])[:, upper[0], upper[1]]):
        u, v = power(a), power(b)
        error = (u.var(0) / len(u) + v.var(0) / len(v)).sqrt()
        z = (u.mean(0) - v.mean(0)).abs() / error.clamp(min=1e-9)
        assert z.max() < BOUND


def assert_independent(samples: Tensor) -> None:
    """No sample says anything about another, however far apart (chunks hold up to 64)."""
    direction = torch.randn(samples.shape[1], generator=torch.Generator().manual_seed(1)).double()
    scale = samples.std(0)
    path = ((samples - samples.mean(0)) / scale.clamp(min=1e-9) * (scale > 1e-9)) @ direction
    for lag in range(1, 70):
        both = (path[lag:] * path[:-lag]).sum() / path.square().sum()
        assert both.abs() < BOUND / math.sqrt(len(path)), lag


@each(STEADY)
def test_auto_has_the_law_of_the_loop(case: Case) -> None:
    samples = sampled(case, "auto", number(case), seed=6)
    assert_same_law(reference(case), samples)
    assert_independent(samples)


@pytest.mark.parametrize("engine", ["vmap", "repeat"])
@each(STEADY)
def test_batched_engines_have_the_law_of_the_loop_or_refuse(case: Case, engine: str) -> None:
    if case.name in REFUSED[engine] or (engine == "repeat" and case.mixes_rows):
        with pytest.raises(EngineError, match="use engine='auto'"):
            sampled(case, engine, number(case), seed=6)
        return
    samples = sampled(case, engine, number(case), seed=6)
    assert_same_law(reference(case), samples)
    assert_independent(samples)


#: Where an engine that is asked for by name says no: vmap cannot see inside fused kernels, behind
#: host generators or in-place writes; repeated rows need rows.
REFUSED = {
    "vmap": {
        "adds_onto_prefix",
        "asserts",
        "autocast",
        "branches",
        "builds_cache",
        "fills_halves",
        "forces",
        "gru",
        "gumbel",
        "in_place_residual",
        "keeps_activations",
        "keeps_in_list",
        "locked_dropout",
        "lstm",
        "numpy_random",
        "own_function",
        "prints",
        "python_random",
        "random_in_training",
        "reads_dropped",
        "writes_buffer",
        "writes_prefix",
    },
    "repeat": {
        "distributions",
        "functional_other_output",
        "functional_statistics",
        "gumbel",
        "item",
        "latent",
        "numpy_random",
        "private_generator",
        "python_random",
        "ragged",
        "random_in_training",
        "returns_its_input",
        "structured",
    },
}


@each([case for case in CASES if case.mixes_rows])
def test_rows_that_influence_each_other_are_never_repeated(case: Case) -> None:
    model, inputs = case.build()
    with case.context():
        prediction = sl.mc_dropout(
            model, inputs, samples=20, seed=0, task="regression", call=first_tensor(model)
        )
    assert not prediction.engine.startswith("repeat")


def first_tensor(model: nn.Module) -> Any:
    return lambda *args, **kwargs: tensors(model(*args, **kwargs))[0]


@pytest.mark.parametrize("engine", ["auto", "vmap", "repeat"])
@pytest.mark.parametrize(
    "name", ["dropout", "wide", "long_attention", "stochastic_depth_row", "alpha_dropout"]
)
def test_equal_rows_get_masks_of_their_own(name: str, engine: str) -> None:
    case = next(case for case in CASES if case.name == name)
    model, inputs = case.build()
    equal = inputs[:1].expand_as(inputs).contiguous()
    samples = sl.sample_predictions(model, equal, samples=SAMPLES, seed=0, engine=engine)
    samples = samples - samples.mean(0)
    first, second = samples[:, 0].flatten(), samples[:, 1].flatten()
    correlation = (first @ second) / (first.norm() * second.norm())
    # Outputs of one row go together: count samples, not numbers.
    assert correlation.abs() < BOUND / math.sqrt(SAMPLES)


def test_masks_of_every_element_are_independent() -> None:
    """The cheap masks are cut from wide integers: no element may follow its neighbour."""
    model = nn.Sequential(nn.Dropout(0.25))
    samples = sl.sample_predictions(model, torch.ones(2, 1500), samples=64, seed=0, engine="repeat")
    kept = (samples > 0).double().flatten(1) - 0.75
    assert samples.unique().tolist() == pytest.approx([0, 4 / 3], rel=1e-4)
    elements = kept.numel()
    assert abs(kept.sum()) < 5 * math.sqrt(elements * 0.25 * 0.75)
    for lag in (1, 2, 3, 4, 5, 8, 64, 1500):
        both = (kept[:, lag:] * kept[:, :-lag]).mean() / (0.25 * 0.75)
        assert both.abs() < 5 / math.sqrt(elements)


@each(
    [
        case
        for case in CASES
        if case.name in ("turns_knob", "alternates_weights", "counts_calls", "swaps_child")
    ]
)
def test_auto_falls_back_to_the_loop_to_the_bit(case: Case) -> None:
    expected = sampled(case, "loop", 12, seed=3)
    assert torch.equal(sampled(case, "auto", 12, seed=3), expected)


def switch(model: nn.Module) -> None:
    model.mixes = True


def open_gate(model: nn.Module) -> None:
    with torch.no_grad():
        model.gate.fill_(1.0)


@pytest.mark.parametrize(
    ("model", "change", "args"),
    [
        (traps.Switched(), switch, ()),
        (traps.Switched(), lambda model: None, (True,)),
        (traps.Gated(), open_gate, ()),
    ],
    ids=["attribute", "argument", "weight"],
)
def test_rows_that_begin_to_influence_each_other_are_noticed(
    model: nn.Module, change: Any, args: tuple[bool, ...]
) -> None:
    x = torch.randn(3, 8)
    before = (x,) if not args else (x, False)
    sl.sample_predictions(model, before, samples=20)
    change(model)
    prediction = sl.mc_dropout(model, (x, *args), samples=20)
    assert not prediction.engine.startswith("repeat")


@pytest.mark.parametrize("engine", ["auto", "loop", "replay", "vmap", "repeat"])
def test_a_rate_that_changes_is_followed(engine: str) -> None:
    model = nn.Sequential(nn.Linear(8, 64), nn.Dropout(0.5))
    x = torch.randn(3, 8)

    def dropped() -> float:
        samples = sl.sample_predictions(model, x, samples=50, seed=0, engine=engine)
        return float((samples == 0).double().mean())

    assert dropped() == pytest.approx(0.5, abs=0.03)
    model[1].p = 0.1
    assert dropped() == pytest.approx(0.1, abs=0.03)
    model[1] = m.SharedMask()
    model[1].body = nn.Linear(64, 16)
    alike = (sl.sample_predictions(model, x, samples=50, seed=0) == 0).double().std(1)
    if engine == "auto":
        assert alike.max() == 0  # the plan of the old module would have repeated rows


def test_rrelu_is_sampled_only_if_asked() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.RReLU(0.1, 0.9), nn.Dropout(0.5), nn.Linear(8, 3))
    x = torch.randn(4, 8)
    model[2].p = 1e-9  # draws, and drops nothing
    plain = sl.sample_predictions(model, x, samples=20, seed=0)
    assert plain.std(0).max() < 1e-5
    asked = {
        engine: flat(
            sl.sample_predictions(
                model, x, samples=SAMPLES, seed=seed, engine=engine, also=(nn.RReLU,)
            )
        )
        for seed, engine in enumerate(("loop", "auto"))
    }
    assert asked["loop"].std(0).min() > 1e-3
    assert_same_law(asked["loop"], asked["auto"])
