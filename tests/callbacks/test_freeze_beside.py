"""Freezing beside everything else that looks at weights, gradients or rates while they train."""

import copy
import math
from collections.abc import Callable
from functools import partial
from itertools import chain
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from torch import nn

from stablelightning.callbacks import (
    ClipGradientNorm,
    FindLearningRate,
    GuardTraining,
    InitializeWeights,
    MonitorSignals,
    PruneGradually,
    RegularizeToStart,
    SwitchOptimizerModes,
)
from stablelightning.callbacks.freeze import UnfreezeGradually
from stablelightning.errors import StableLightningWarning
from stablelightning.model.groups import ParameterGroups
from stablelightning.module import StableModule
from stablelightning.nn import MLP
from tests.callbacks.modules import data, quiet_trainer
from tests.callbacks.test_optimizer_modes import AveragingSGD
from tests.contracts.models import Resumable, Seeded

#: Six batches an epoch; from input to output.
GROUPS = ["net.0", "net.3", "net.6"]
EPOCHS = 3

pytestmark = pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint")


class Deep(Seeded):
    """Three depth groups, with batch norm and dropout; one more is open in each epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            *(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU()),
            *(nn.Dropout(0.2), nn.Linear(8, 3)),
        )


class Watch(L.Callback):
    """After every step: all weights and buffers by name, and how many parameters are trained."""

    def __init__(self) -> None:
        self.states: list[dict[str, torch.Tensor]] = []
        self.trained: list[int] = []

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.states.append({n: v.detach().clone() for n, v in pl_module.state_dict().items()})
        self.trained.append(sum(p.requires_grad for p in pl_module.parameters()))


def fit(*callbacks: L.Callback, make: Callable[[], Any] = Deep, resume=None, **settings: Any):
    torch.manual_seed(0)
    model, watch = make(), Watch()
    trainer = quiet_trainer(*callbacks, watch, **{"max_epochs": EPOCHS, **settings})
    trainer.fit(model, ckpt_path=resume, weights_only=None if resume is None else True)
    return model, watch, trainer


def same(one: nn.Module, other: nn.Module) -> bool:
    values = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in values)


def is_still(watch: Watch, name: str, steps: range) -> bool:
    states = [watch.states[step][name] for step in steps]
    return all(torch.equal(states[0], state) for state in states)


def check_plan(watch: Watch, *, steps: int = 6) -> None:
    """The three groups are still until they are opened, buffers of norms too, and move then."""
    first, second = range(steps), range(2 * steps)
    assert is_still(watch, "net.3.weight", first)
    for name in ("net.0.weight", "net.1.weight", "net.1.running_mean", "net.1.num_batches_tracked"):
        assert is_still(watch, name, second)
        assert not is_still(watch, name, range(2 * steps - 1, 3 * steps))
    assert not is_still(watch, "net.3.weight", range(steps - 1, 2 * steps))
    assert not is_still(watch, "net.6.weight", first)


def test_by_itself():
    _, watch, _ = fit(UnfreezeGradually())
    check_plan(watch)
    assert watch.trained == [2] * 6 + [4] * 6 + [8] * 6


# ---- the average of Lightning -------------------------------------------------------------------


def test_an_average_of_what_is_frozen_is_what_is_frozen():
    averages = []

    class Looks(L.Callback):
        def on_validation_end(self, trainer, pl_module):
            average = trainer.callbacks[1]._average_model
            averages.append(copy.deepcopy(average.module.state_dict()))

    ema = EMAWeightAveraging(decay=0.5)
    _, watch, _ = fit(UnfreezeGradually(), ema, Looks(), num_sanity_val_steps=0)
    check_plan(watch)
    _, alone, _ = fit(UnfreezeGradually())
    for mine, other in zip(watch.states, alone.states, strict=True):
        assert all(map(torch.equal, mine.values(), other.values()))
    start, end = watch.states[0], watch.states[-1]
    assert torch.equal(averages[0]["net.0.weight"], start["net.0.weight"])
    assert torch.equal(averages[1]["net.1.running_mean"], start["net.1.running_mean"])
    between = averages[2]["net.0.weight"]
    assert not torch.equal(between, start["net.0.weight"])
    assert not torch.equal(between, end["net.0.weight"])


# ---- whatever resumes, with a change of what is open behind and ahead of it ----------------------

BESIDE = {
    "EMAWeightAveraging": lambda: EMAWeightAveraging(decay=0.5),
    "GuardTraining": GuardTraining,
    "MonitorSignals": lambda: MonitorSignals(every_n_steps=2),
    "ClipGradientNorm": lambda: ClipGradientNorm(steps=2, bounds=(0.01, 5.0)),
    "PruneGradually": lambda: PruneGradually(0.5, start=0.1, end=0.9),
    "RegularizeToStart": lambda: RegularizeToStart(0.5),
    "FindLearningRate": lambda: FindLearningRate(lowest=1e-4, steps=20, confirm_steps=0),
    "InitializeWeights": InitializeWeights,
}


@pytest.mark.filterwarnings("ignore::stablelightning.errors.StableLightningWarning")
@pytest.mark.parametrize(("step", "order"), [(4, "before"), (8, "after"), (12, "before")])
@pytest.mark.parametrize("name", BESIDE)
def test_a_resumed_run_is_the_unbroken_one(name, step, order, tmp_path):
    def both():
        plan = UnfreezeGradually(layer_decay=0.5)
        return [plan, BESIDE[name]()] if order == "before" else [BESIDE[name](), plan]

    every = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
    whole, unbroken, _ = fit(*both(), every, enable_checkpointing=True)
    other, resumed, _ = fit(*both(), resume=tmp_path / f"step={step}.ckpt")
    assert resumed.trained == unbroken.trained[step:]
    assert same(whole, other)


# ---- the guard ----------------------------------------------------------------------------------


class Diverges(Deep):
    """Its loss is not a number in the steps that are named."""

    def __init__(self, *bad: int) -> None:
        super().__init__()
        self.bad = bad

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        seen = self.trainer.fit_loop.epoch_loop.total_batch_idx
        return loss * math.nan if seen in self.bad else loss


@pytest.mark.filterwarnings("ignore::stablelightning.errors.StableLightningWarning")
@pytest.mark.parametrize("plan", [{}, {"every_n_steps": 7}, {"layer_decay": 0.5}])
def test_a_guard_goes_back_across_an_opening_and_what_is_open_stays_open(plan):
    guard = GuardTraining(max_trips=2, window=99)
    # Everything since the snapshot before the first step is undone, of open groups and closed.
    model, watch, trainer = fit(UnfreezeGradually(**plan), guard, make=partial(Diverges, 8, 9))
    assert guard.rollbacks == 1
    assert watch.trained[9] == watch.trained[8] > watch.trained[0]
    assert is_still(watch, "net.0.weight", range(6))
    # It has gone back to the very weights of the start, and trains on from them.
    torch.manual_seed(0)
    start = Deep().net[3].weight
    assert torch.equal(watch.states[9]["net.3.weight"], start)
    assert not is_still(watch, "net.3.weight", range(9, 12))
    held = list(chain.from_iterable(g["params"] for g in trainer.optimizers[0].param_groups))
    assert {id(p) for p in held} == {id(p) for p in model.parameters()}
    assert len(held) == len(set(map(id, held)))


@pytest.mark.filterwarnings("ignore::stablelightning.errors.StableLightningWarning")
@pytest.mark.parametrize("bad", [5, 6, 11, 12])
def test_a_batch_undone_at_an_opening_leaves_the_plan_as_it_is(bad):
    guard = GuardTraining()
    _, watch, _ = fit(UnfreezeGradually(), guard, make=partial(Diverges, bad))
    assert guard.skipped == 1
    assert watch.trained == [2] * 6 + [4] * 6 + [8] * 6
    names = watch.states[0]
    assert all(torch.equal(watch.states[bad][n], watch.states[bad - 1][n]) for n in names)
    assert is_still(watch, "net.1.running_mean", range(12))


class Louder(Deep):
    """Gradients of the layers before the head are a thousand times those of the head."""

    def training_step(self, batch, batch_idx):
        torch.manual_seed(self.trainer.fit_loop.epoch_loop.total_batch_idx)
        x, y = batch
        features = self.net[:6](x)
        loud = features.detach() + 1e3 * (features - features.detach())
        return nn.functional.cross_entropy(self.net[6](loud), y)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-6)

    def train_dataloader(self):
        return torch.utils.data.DataLoader(data(160), batch_size=4)


def test_gradients_of_layers_that_are_opened_are_no_spike():
    guard = GuardTraining()
    _, watch, _ = fit(UnfreezeGradually(), guard, make=Louder)
    assert watch.trained[0] < watch.trained[41]
    assert guard.skipped == guard.rollbacks == 0


def test_a_spike_long_after_an_opening_is_one():
    class Spikes(Louder):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            return loss * 1e9 if batch_idx == 30 and self.current_epoch == 2 else loss

    guard = GuardTraining()
    with pytest.warns(StableLightningWarning, match="spike"):
        fit(UnfreezeGradually(), guard, make=Spikes)
    assert guard.skipped == 1


# ---- clipping -----------------------------------------------------------------------------------


def test_a_threshold_is_chosen_anew_with_the_layers_that_are_opened():
    thresholds = []

    class Looks(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            thresholds.extend(clip.thresholds)

    clip = ClipGradientNorm(steps=5, bounds=(1e-6, 1e6))
    fit(UnfreezeGradually(), Looks(), clip, make=Louder)
    head, more = thresholds[39], thresholds[79]
    assert thresholds[3] == 1e6 > head
    assert thresholds[43] == 1e6
    assert more > 100 * head
    # Of steps with everything open: twice the mean of the first five.
    assert thresholds[119] == pytest.approx(2 * sum(clip.first_norms[0]) / 5)


# ---- monitors, finders, initialization ----------------------------------------------------------


@pytest.mark.filterwarnings("error::stablelightning.errors.StableLightningWarning")
def test_a_monitor_raises_no_alarm_over_frozen_layers():
    monitor = MonitorSignals(every_n_steps=1)
    _, watch, _ = fit(UnfreezeGradually(), monitor, max_epochs=6)
    check_plan(watch)
    assert monitor.alarms == []
    assert len(monitor.history.steps) == 36


@pytest.mark.filterwarnings("ignore:FindLearningRate found no learning rate")
@pytest.mark.parametrize("order", ["before", "after"])
def test_a_finder_tries_what_is_open_and_leaves_no_trace(order):
    tried = []

    class Tells(Deep):
        def training_step(self, batch, batch_idx):
            if not self.trainer.callbacks:  # a trial
                modes = [m.training for m in self.net if isinstance(m, nn.BatchNorm1d)]
                tried.append((sum(p.requires_grad for p in self.parameters()), *modes))
            return super().training_step(batch, batch_idx)

    find = FindLearningRate(lowest=1e-4, steps=20, confirm_steps=5, apply=False)
    plan = UnfreezeGradually(layer_decay=0.5)
    both = [plan, find] if order == "before" else [find, plan]
    model, watch, _ = fit(*both, make=Tells)
    alone, other, _ = fit(UnfreezeGradually(layer_decay=0.5))
    assert set(tried) == {(2, False)}  # the head, and the frozen norm in eval
    assert watch.trained == other.trained
    assert same(model, alone)


def test_a_found_rate_is_that_of_the_head_and_others_keep_their_ratio():
    find = FindLearningRate(lowest=1e-4, steps=20, confirm_steps=0)
    _, _, trainer = fit(UnfreezeGradually(layer_decay=0.5), find, max_steps=1)
    rates = [group["lr"] for group in trainer.optimizers[0].param_groups]
    assert rates == pytest.approx([find.suggested * 0.25, find.suggested * 0.5, find.suggested])


def test_loaded_layers_are_not_drawn_and_a_fresh_head_is():
    model = Deep()
    with torch.no_grad():
        for module in (model.net[0], model.net[3]):  # no default looks like this
            module.weight.copy_(torch.linspace(-3, 5, module.weight.numel()).view_as(module.weight))
            module.bias.fill_(0.7)
    before = copy.deepcopy(model.state_dict())
    _, watch, _ = fit(InitializeWeights(), UnfreezeGradually(), make=lambda: model)
    for name in ("net.0.weight", "net.0.bias", "net.3.weight", "net.3.bias"):
        assert torch.equal(watch.states[0][name], before[name])
    assert not torch.equal(watch.states[0]["net.6.weight"], before["net.6.weight"])


# ---- pruning, schedule-free, compiled, precision, accumulation, groups ---------------------------


def test_pruning_is_exact_and_nothing_else_moves_what_is_frozen():
    prune = PruneGradually(0.5, start=0, end=1, per_layer=True)
    model, watch, _ = fit(UnfreezeGradually(), prune)
    for layer in (0, 3, 6):
        weight = model.net[layer].weight
        assert int((weight == 0).sum()) == weight.numel() // 2
    first, last = watch.states[0]["net.0.weight"], watch.states[11]["net.0.weight"]
    assert torch.equal(last, torch.where(last == 0, 0.0, first))


class Free(Deep):
    def configure_optimizers(self):
        return AveragingSGD(self.parameters(), lr=0.1)


def test_a_schedule_free_optimizer_leaves_what_is_frozen_alone():
    _, watch, _ = fit(UnfreezeGradually(), SwitchOptimizerModes(), make=Free)
    check_plan(watch)


class Compiled(Deep):
    def __init__(self) -> None:
        super().__init__()
        self.net.compile(backend="eager")


def test_a_compiled_part_trains_like_a_plain_one_and_keeps_its_keys(tmp_path):
    models, keys = [], []
    for compiled in (False, True):
        every = ModelCheckpoint(tmp_path / str(compiled), "last", save_top_k=1)
        plan = UnfreezeGradually(layer_decay=0.5)
        make = Compiled if compiled else Deep
        model, _, _ = fit(plan, every, make=make, enable_checkpointing=True)
        saved = torch.load(tmp_path / str(compiled) / "last.ckpt", weights_only=True)
        keys.append(list(saved["state_dict"]))
        models.append(model)
    assert keys[0] == keys[1] == list(Deep().state_dict())
    for one, other in zip(*(model.state_dict().values() for model in models), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed", "64-true"])
def test_every_precision(precision):
    if precision == "16-mixed":
        from lightning.pytorch.plugins import MixedPrecision

        scaler = torch.amp.GradScaler("cpu", init_scale=128.0)
        settings = {"plugins": [MixedPrecision("16-mixed", "cpu", scaler=scaler)]}
    else:
        settings = {"precision": precision}
    _, watch, _ = fit(UnfreezeGradually(), **settings)
    check_plan(watch)


def test_accumulated_batches_are_one_step():
    _, watch, trainer = fit(UnfreezeGradually(), accumulate_grad_batches=3)
    assert trainer.global_step == 6
    check_plan(watch)


def test_a_step_count_in_the_middle_of_an_accumulation_waits_for_its_end():
    plan = UnfreezeGradually(every_n_steps=1)
    _, watch, _ = fit(plan, accumulate_grad_batches=3, max_epochs=2)
    assert watch.trained == [2] * 3 + [4] * 3 + [8] * 6


@pytest.mark.parametrize(
    "groups",
    [
        ParameterGroups(),
        ParameterGroups(layer_decay=0.5),
        ParameterGroups(decay_weights_only=False),
    ],
    ids=["decay", "layerwise", "plain"],
)
@pytest.mark.parametrize("layer_decay", [None, 0.5])
def test_parameter_groups_of_a_recipe_stay_and_are_split(groups, layer_decay):
    network = MLP(4, 3, hidden=(8, 8))
    model = StableModule(
        network,
        task="classification",
        optimizer=lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.3),
        parameter_groups=groups,
    )
    model.train_dataloader = lambda: Resumable(torch.utils.data.DataLoader(data(24), batch_size=4))
    start = copy.deepcopy(network.state_dict())
    plan = UnfreezeGradually(layer_decay=layer_decay)
    _, watch, trainer = fit(plan, make=lambda: model, max_epochs=1)
    names = {id(p): name for name, p in model.named_parameters()}
    found = {names[id(p)]: g for g in trainer.optimizers[0].param_groups for p in g["params"]}
    assert set(found) == set(names.values())
    layerwise = groups.layer_decay or 1.0
    for depth, group in enumerate(reversed(plan.found)):
        for name in group.parameters:
            rate = 0.01 * layerwise**depth * (layer_decay or 1.0) ** depth
            assert found[name]["lr"] == pytest.approx(rate)
            decays = not groups.decay_weights_only or name.endswith("weight")
            assert found[name]["weight_decay"] == (0.3 if decays else 0.0)
    # Neither momentum nor weight decay moves what is frozen.
    body = [name for group in plan.found[:-1] for name in group.parameters]
    for name in body:
        assert torch.equal(watch.states[-1][name], start[name.removeprefix("network.")])


def test_an_open_model_is_left_as_the_user_had_it():
    model, _, _ = fit(UnfreezeGradually(), MonitorSignals(), GuardTraining(), max_epochs=1)
    assert all(p.requires_grad for p in model.parameters())
    assert model.train().net[1].training
    assert not [name for m in model.modules() for name in vars(m) if name == "train"]
