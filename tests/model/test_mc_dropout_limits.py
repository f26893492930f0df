"""mc_dropout at its limits: when it stops, what is not a number, memory and precision."""

import math
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

import stablelightning as sl
from stablelightning.errors import DataError, RecipeError, StableLightningWarning
from stablelightning.model.summarize import select_output
from tests.model import modules as m
from tests.model.test_mc_dropout import ENGINES, Makes, assert_classes_by_hand, net

# ---- tolerance ---------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("task", ["classification", "regression"])
def test_sampling_stops_once_every_row_is_known_well_enough(engine: str, task: str) -> None:
    model, x = net(p=0.2), torch.randn(5, 8)
    used = []
    for tolerance in (0.05, 0.01):
        prediction = sl.mc_dropout(
            model, x, samples=3000, seed=0, engine=engine, task=task, tolerance=tolerance
        )
        assert prediction.standard_error.max() < tolerance
        used.append(prediction.samples_used)
    assert 8 <= used[0] < used[1] < 3000
    # A hundred more would not have been needed: the standard error shrinks as 1 / sqrt(T).
    everything = sl.mc_dropout(model, x, samples=3000, seed=0, engine="loop", task=task)
    spread = everything.standard_error.max() * math.sqrt(3000)
    needed = float(spread / 0.01) ** 2
    assert 0.6 * needed < used[1] < 1.6 * needed + 16


def test_the_samples_of_a_run_that_stopped_are_those_that_were_used() -> None:
    prediction = sl.mc_dropout(
        net(), torch.randn(5, 8), samples=3000, seed=0, tolerance=0.05, keep_samples=True
    )
    assert len(prediction.samples) == prediction.samples_used
    assert_classes_by_hand(prediction, prediction.samples.softmax(2))


def test_a_tolerance_out_of_reach_takes_every_sample() -> None:
    prediction = sl.mc_dropout(net(), torch.randn(5, 8), samples=37, seed=0, tolerance=1e-9)
    assert prediction.samples_used == 37


def test_few_samples_never_stop_early() -> None:
    prediction = sl.mc_dropout(net(p=0.001), torch.randn(5, 8), samples=7, seed=0, tolerance=10.0)
    assert prediction.samples_used == 7


@pytest.mark.parametrize("tolerance", [0, -0.1, math.nan])
def test_tolerance_must_be_positive(tolerance: float) -> None:
    with pytest.raises(RecipeError, match="tolerance must be > 0"):
        sl.mc_dropout(net(), torch.randn(5, 8), tolerance=tolerance)


# ---- numbers that are none -----------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
def test_nan_in_the_inputs_names_the_row(engine: str) -> None:
    x = torch.randn(5, 8)
    x[3, 2] = x[4, 1] = math.nan
    with pytest.raises(DataError, match=r"free of NaN, got 2 \(the first in row 3\)"):
        sl.mc_dropout(net(), x, samples=5, seed=0, engine=engine)


def test_nan_that_the_model_made_is_returned() -> None:
    model = Makes(lambda y: torch.where(torch.tensor([[True], [False]]), y, math.nan))
    prediction = sl.mc_dropout(model, torch.randn(2, 8), samples=5, task="regression")
    assert prediction.mean.isnan().any(1).tolist() == [False, True]


def test_an_output_that_does_not_depend_on_its_dropout_is_a_warning() -> None:
    class Chooses(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop = nn.Dropout(0.5)

        def forward(self, x: Tensor) -> Tensor:
            return self.drop(x).argmax(1).clamp(max=0).float()

    model, x = Chooses(), torch.rand(5, 8)
    with pytest.warns(StableLightningWarning, match="drew random numbers, and all 20 samples are"):
        prediction = sl.mc_dropout(model, x, samples=20, task="regression")
    assert prediction.variance.max() == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error", StableLightningWarning)
        sl.mc_dropout(model, x, samples=20, task="regression")  # said once
        sl.mc_dropout(Chooses(), x, samples=1, task="regression")  # one sample says nothing


# ---- memory and precision ------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
def test_memory_does_not_grow_with_the_samples(
    engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chunks are let go of: counted while they come, those that are still in memory."""
    model, x = net(), torch.randn(20, 8)
    chunks: list[tuple[StorageWeakRef, int]] = []
    peak = 0

    def looked(output: Any) -> Any:
        nonlocal peak
        chunks.append((StorageWeakRef(output.untyped_storage()), len(output)))
        peak = max(peak, sum(samples for chunk, samples in chunks if not chunk.expired()))
        return select_output(output)

    monkeypatch.setattr("stablelightning.model.sample.select_output", looked)

    def peak_of(samples: int, **settings: Any) -> int:
        nonlocal peak
        chunks.clear()
        peak = 0
        sl.mc_dropout(model, x, samples=samples, engine=engine, seed=0, **settings)
        return peak

    few = peak_of(256)
    assert peak_of(640) <= few < 256
    assert peak_of(640, keep_samples=True) == 640


@pytest.mark.parametrize("task", ["classification", "regression", "multilabel"])
def test_double_precision_is_kept_and_half_is_widened(task: str) -> None:
    for dtype, expected in (
        (torch.float64, torch.float64),
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
    ):
        model = Makes(lambda y, dtype=dtype: y.to(dtype))
        prediction = sl.mc_dropout(model, torch.randn(5, 8), samples=9, task=task)
        for name in ("mean", "total", "aleatoric", "epistemic", "standard_error"):
            assert getattr(prediction, name).dtype == expected, (name, dtype)


def test_a_prediction_needs_no_gradient_and_is_no_inference_tensor() -> None:
    with torch.inference_mode():
        prediction = sl.mc_dropout(m.Functional(), torch.randn(5, 8), samples=5)
    assert not prediction.mean.requires_grad
    assert not prediction.mean.is_inference()
