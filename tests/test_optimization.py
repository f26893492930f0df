"""What StableMixin gives Lightning: groups, lengths filled in, intervals, settings refused."""

import math
from functools import partial
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler, ModelCheckpoint
from torch import nn
from torch.optim import lr_scheduler as theirs
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from stablelightning.errors import ModelError, RecipeError, StableLightningWarning
from stablelightning.model import schedules as ours
from stablelightning.model.groups import ParameterGroups
from stablelightning.model.muon import MuonAdamW
from stablelightning.module import StableModule
from stablelightning.nn import MLP
from stablelightning.optimization import examined

SGD = partial(torch.optim.SGD, lr=0.1)
CURVES = [getattr(ours, name) for name in ours.__all__ if name != "ReduceOnPlateau"]


def module(**settings: Any) -> StableModule:
    torch.manual_seed(0)
    settings.setdefault("optimizer", SGD)
    return StableModule(MLP(4, 3, hidden=[5], dropout=0.0), task="classification", **settings)


def loader(rows: int = 50) -> DataLoader:
    x = torch.randn(rows, 4, generator=torch.Generator().manual_seed(1))
    return DataLoader(TensorDataset(x, (x[:, 0] > 0).long()), batch_size=10)


class Endless(IterableDataset):
    def __iter__(self):
        while True:
            yield torch.zeros(4), torch.tensor(0)


def trainer(**settings: Any) -> L.Trainer:
    quiet = {
        "accelerator": "cpu",
        "max_epochs": 2,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return L.Trainer(**{**quiet, **settings})


class Rates(L.Callback):
    """The rate of each step that was taken."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
        self.seen.append(optimizer.param_groups[0]["lr"])


# ---- the length of training ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({}, 10),
        ({"max_epochs": 3}, 15),
        ({"accumulate_grad_batches": 2}, 6),  # the last batch of an epoch steps alone
        ({"max_steps": 7}, 7),
        ({"max_steps": 70}, 10),
        ({"max_epochs": -1, "max_steps": 8}, 8),
        ({"limit_train_batches": 3}, 6),
        ({"limit_train_batches": 0.4}, 4),
        ({"overfit_batches": 2}, 4),
        ({"callbacks": [GradientAccumulationScheduler({0: 2, 1: 3})]}, 5),
    ],
)
def test_the_schedule_is_as_long_as_training(settings, steps):
    rates, settings = Rates(), dict(settings)
    run = trainer(callbacks=[rates, *settings.pop("callbacks", [])], **settings)
    model = module(scheduler=partial(ours.ExponentialDecay, final=0.01))
    run.fit(model, loader())
    config = run.lr_scheduler_configs[0]
    assert config.interval == "step"
    assert config.scheduler.total_steps == len(rates.seen) == run.global_step == steps
    assert rates.seen == pytest.approx([0.1 * 0.01 ** (t / steps) for t in range(steps)])


@pytest.mark.parametrize("curve", CURVES)
def test_every_curve_is_walked_to_its_end(curve):
    run = trainer()
    run.fit(module(scheduler=curve), loader())
    assert run.lr_scheduler_configs[0].scheduler.last_epoch == 10


@pytest.mark.parametrize("curve", CURVES)
def test_a_dry_run_does_not_mind_a_schedule(curve):
    trainer(fast_dev_run=True).fit(module(scheduler=partial(curve, total_steps=500)), loader())
    warm = partial(ours.WarmupCosine, warmup=500)
    trainer(fast_dev_run=2).fit(module(scheduler=warm), loader())


def test_data_without_an_end_needs_a_number_of_steps():
    endless = DataLoader(Endless(), batch_size=5)
    with pytest.raises(RecipeError, match="its data has no length; set max_steps"):
        trainer().fit(module(scheduler=ours.WarmupCosine), endless)
    run = trainer(max_steps=6)
    run.fit(module(scheduler=ours.WarmupCosine), endless)
    assert run.lr_scheduler_configs[0].scheduler.total_steps == 6
    # A length of its own cannot be compared with what nobody knows.
    run = trainer(limit_train_batches=4, max_epochs=1)
    run.fit(module(scheduler=partial(ours.WarmupCosine, total_steps=4)), endless)


def test_time_alone_is_no_length():
    run = trainer(max_time={"hours": 1}, max_epochs=-1)
    with pytest.raises(RecipeError, match="nothing but time bounds it"):
        run.fit(module(scheduler=ours.OneCycle), loader())


def test_without_a_trainer_a_length_is_asked_for():
    with pytest.raises(RecipeError, match="no Trainer to fill it in"):
        module(scheduler=ours.OneCycle).configure_optimizers()
    module(scheduler=partial(ours.OneCycle, total_steps=9)).configure_optimizers()


def test_a_schedule_that_is_to_count_epochs_gets_epochs():
    run = trainer(max_epochs=3)
    model = module(scheduler=ours.ExponentialDecay, scheduler_interval="epoch")
    run.fit(model, loader())
    config = run.lr_scheduler_configs[0]
    assert (config.interval, config.scheduler.total_steps) == ("epoch", 3)
    with pytest.raises(RecipeError, match="by epochs needs max_epochs"):
        trainer(max_epochs=-1, max_steps=3).fit(model, loader())


def test_a_schedule_shorter_than_training_is_refused_before_a_step():
    model = module(scheduler=partial(ours.OneCycle, total_steps=9))
    run = trainer()
    with pytest.raises(RecipeError, match="must be the 10 steps of training, got 9"):
        run.fit(model, loader())
    assert run.global_step == 0


@pytest.mark.parametrize(
    ("scheduler", "words"),
    [
        (partial(ours.WarmupCosine, total_steps=20), "ends at 50% of the schedule"),
        (partial(theirs.CosineAnnealingLR, T_max=1), "the rate rises again"),
        (partial(theirs.MultiStepLR, milestones=[30]), "never reached"),
    ],
)
def test_a_schedule_of_another_length_is_told(scheduler, words):
    with pytest.warns(StableLightningWarning, match=words):
        trainer().fit(module(scheduler=scheduler), loader())


def test_torchs_schedules_keep_their_interval():
    run = trainer()
    run.fit(module(scheduler=partial(theirs.OneCycleLR, max_lr=0.1, total_steps=10)), loader())
    assert run.lr_scheduler_configs[0].interval == "step"
    run = trainer()
    run.fit(module(scheduler=partial(theirs.StepLR, step_size=1)), loader())
    assert run.lr_scheduler_configs[0].interval == "epoch"


@pytest.mark.parametrize("curve", CURVES)
def test_a_resumed_training_goes_on_to_the_bit(curve, tmp_path):
    def fit(rates, path=None, *own):
        optimizer = partial(torch.optim.SGD, lr=0.1, momentum=0.9)
        model = module(optimizer=optimizer, scheduler=curve)
        run = trainer(callbacks=[rates, *own], enable_checkpointing=bool(own))
        run.fit(model, loader(), ckpt_path=path)
        return model

    whole, rest = Rates(), Rates()
    keep = ModelCheckpoint(tmp_path, "{step}", save_on_train_epoch_end=True, save_top_k=-1)
    unbroken = fit(whole, None, keep)
    resumed = fit(rest, tmp_path / "step=5.ckpt")
    assert rest.seen == whole.seen[5:]
    pairs = zip(unbroken.parameters(), resumed.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


# ---- a plateau ----------------------------------------------------------------------------------


def test_a_plateau_without_a_validation_is_refused_before_a_step():
    run = trainer()
    with pytest.raises(RecipeError, match="watches 'val/loss', and there is no validation"):
        run.fit(module(scheduler=ours.ReduceOnPlateau), loader())
    assert run.global_step == 0
    with pytest.raises(RecipeError, match="no validation"):
        trainer(limit_val_batches=0).fit(module(scheduler=ours.ReduceOnPlateau), loader(), loader())


def test_a_plateau_watches_what_it_is_told():
    plateau = partial(ours.ReduceOnPlateau, monitor="train/loss_epoch", patience=0, factor=0.1)
    still = module(optimizer=partial(torch.optim.SGD, lr=0.0), scheduler=plateau)
    run = trainer(max_epochs=4)
    run.fit(still, loader())
    assert run.lr_scheduler_configs[0].monitor == "train/loss_epoch"
    assert run.lr_scheduler_configs[0].scheduler.last_epoch == 4
    run = trainer()
    run.fit(module(scheduler=ours.ReduceOnPlateau), loader(), loader())
    assert run.lr_scheduler_configs[0].monitor == "val/loss"


# ---- groups -------------------------------------------------------------------------------------


def test_groups_get_the_rate_and_the_decay_of_the_optimizer():
    adamw = partial(torch.optim.AdamW, lr=0.1, weight_decay=0.3)
    model = module(optimizer=adamw, parameter_groups=ParameterGroups(layer_decay=0.5))
    groups = model.configure_optimizers().param_groups
    assert {(g["name"], g["lr"], g["weight_decay"]) for g in groups} == {
        ("layer_0/decay", 0.05, 0.3),
        ("layer_0/no_decay", 0.05, 0.0),
        ("layer_1/decay", 0.1, 0.3),
        ("layer_1/no_decay", 0.1, 0.0),
    }


def test_a_schedule_keeps_the_proportion_of_groups():
    rates = []

    class Both(L.Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
            rates.append({group["lr"] for group in optimizer.param_groups})

    groups = ParameterGroups(layer_decay=0.5)
    model = module(scheduler=ours.OneCycle, parameter_groups=groups)
    trainer(callbacks=[Both()]).fit(model, loader())
    assert all(max(pair) == pytest.approx(2 * min(pair)) for pair in rates)
    assert len(rates) == 10


def test_muon_is_told_the_roles_of_the_layers():
    groups = module(optimizer=partial(MuonAdamW, lr=0.01)).configure_optimizers().param_groups
    assert [(g["muon"], len(g["params"])) for g in groups] == [(True, 1), (False, 3)]
    model = module(
        optimizer=partial(MuonAdamW, lr=0.01, weight_decay=0.2), parameter_groups=ParameterGroups()
    )
    found = [(g["name"], g["weight_decay"]) for g in model.configure_optimizers().param_groups]
    assert found == [("decay/muon", 0.2), ("decay/adamw", 0.2), ("no_decay/adamw", 0.0)]


@pytest.mark.parametrize("change", ["lost", "twice", "foreign"])
def test_groups_that_are_not_the_modules_parameters_are_refused(change):
    def groups(model: nn.Module, _: Any) -> list[dict[str, Any]]:
        params = list(model.parameters())
        more = {"lost": [], "twice": [*params, params[0]], "foreign": [*params, nn.Parameter()]}
        return [{"params": more.get(change) or params[1:]}]

    with pytest.raises(ModelError, match="must hold each parameter of the module once"):
        module(parameter_groups=groups).configure_optimizers()


# ---- settings known to hurt ---------------------------------------------------------------------


def test_what_nothing_good_can_come_of_is_refused_before_a_step():
    model = module(optimizer=partial(torch.optim.SGD, lr=0.1, momentum=0.99999))
    with pytest.raises(RecipeError, match="averages over the last 100,000 steps") as error:
        trainer().fit(model, loader())
    assert "\n" not in str(error.value)
    with examined():  # the doctor tells it as a finding, and needs the optimizer for that
        assert math.isclose(model.configure_optimizers().param_groups[0]["momentum"], 0.99999)


def refusing(optimizer: Any) -> Any:
    raise ValueError("Expected positive integer total_steps, but got -1")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"optimizer": partial(torch.optim.SGD, lr=0.1, nesterov=True)},
            "the settings of the optimizer must suit it, and it refuses them: Nesterov momentum "
            "requires a momentum and zero dampening; mend",
        ),
        ({"scheduler": refusing}, "scheduler .* refuses them: Expected positive .* -1; mend"),
    ],
)
def test_what_torch_refuses_is_a_setting_to_mend(settings, words):
    with pytest.raises(RecipeError, match=words):
        module(**settings).configure_optimizers()


def test_what_is_seldom_meant_is_warned_of():
    model = module(optimizer=partial(torch.optim.Adam, betas=(0.95, 0.9)))
    with pytest.warns(StableLightningWarning, match="adam|Adam: betas"):
        trainer(max_steps=1).fit(model, loader())
