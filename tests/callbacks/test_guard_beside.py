"""The guard beside other callbacks: a step that is undone is none for them either."""

import math

import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint

from stablelightning.callbacks import (
    ClipGradientNorm,
    FindLearningRate,
    MonitorSignals,
    PruneGradually,
    RegularizeL1,
)
from stablelightning.callbacks.guard import GuardTraining
from tests.callbacks.guarded import Guarded, batches, different, fit, outcome, poisoned
from tests.callbacks.test_guard import undone

NAN, INF = math.nan, math.inf
GOOD = batches(8)
BAD = poisoned(GOOD, {0: NAN, 3: INF, 5: NAN})

OTHERS = {
    "clip": lambda: ClipGradientNorm(0.1),
    "clip by measured norms": lambda: ClipGradientNorm(steps=3, bounds=(0.01, 0.5)),
    "monitor": lambda: MonitorSignals(every_n_steps=2),
    "L1": lambda: RegularizeL1(0.01),
    "average": lambda: EMAWeightAveraging(decay=0.5),
}


@pytest.mark.parametrize("accumulated", [1, 2])
@pytest.mark.parametrize("name", OTHERS)
def test_a_run_with_bad_batches_is_the_run_without_them(name, accumulated):
    if accumulated == 2:  # pairs of good ones stay pairs
        data = [*GOOD[:2], torch.full_like(GOOD[0], NAN), torch.full_like(GOOD[0], NAN), *GOOD[2:]]
    else:
        data = BAD
    settings = {"accumulate_grad_batches": accumulated}
    clean = fit(Guarded(GOOD), OTHERS[name](), **settings)
    guard = GuardTraining(max_trips=9)
    with undone:
        guarded = fit(Guarded(data), OTHERS[name](), guard, **settings)
    assert guard.skipped == 2 * (len(data) - len(GOOD))
    assert different(outcome(clean), outcome(guarded)) == []


@pytest.mark.filterwarnings("ignore:GuardTraining went back")
def test_pruned_weights_stay_pruned_and_finite():
    prune = PruneGradually(0.5, start=0.0, end=0.5, every_n_steps=1)
    with undone:
        trainer = fit(Guarded(BAD), prune, GuardTraining(max_trips=2, window=4))
    weight = trainer.lightning_module.net[0].weight
    assert weight.isfinite().all()
    assert (weight == 0).any()


@pytest.mark.filterwarnings("ignore::stablelightning.errors.StableLightningWarning")
def test_a_finder_of_rates_sees_no_guard():
    outcomes = [
        outcome(fit(Guarded(GOOD), FindLearningRate(), *guards))
        for guards in ([], [GuardTraining(window=2)])
    ]
    assert different(*outcomes) == []


def test_checkpoints_hold_what_was_undone(tmp_path):
    every = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
    with undone:
        fit(Guarded(BAD), every, GuardTraining(), max_epochs=1, enable_checkpointing=True)
    kept = sorted(path.name for path in tmp_path.glob("*.ckpt"))
    assert kept == [f"step={number}.ckpt" for number in range(1, 9)]
    for path in tmp_path.glob("*.ckpt"):
        weights = torch.load(path, weights_only=True)["state_dict"]
        assert all(value.isfinite().all() for value in weights.values())
