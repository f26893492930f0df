"""Every optimizer and every schedule trains on every start, whatever was stacked before it."""

import warnings
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from stablelightning.cli.recipes import ADD, START, shipped
from stablelightning.errors import StableLightningWarning
from tests.contracts.test_recipes import session

STARTS, OVERLAYS = shipped(START), shipped(ADD)


def speaking_of(setting: str) -> list[str]:
    """The overlays that say something of one of the module's settings."""
    read = {name: yaml.safe_load(path.read_text()) for name, path in OVERLAYS.items()}
    return [n for n, said in read.items() if setting in said.get("model", {}).get("init_args", {})]


OPTIMIZERS, SCHEDULES = speaking_of("optimizer"), speaking_of("scheduler")
GROUPS = speaking_of("parameter_groups")

#: Each optimizer once, and with it each schedule and each grouping in turn.
STACKS = list(zip(OPTIMIZERS, cycle(SCHEDULES), cycle([*GROUPS, None]), strict=False))

FEW_STEPS = (
    "--trainer.max_epochs=2",
    "--trainer.limit_train_batches=2",
    "--trainer.limit_val_batches=1",
    "--trainer.num_sanity_val_steps=0",
    "--trainer.log_every_n_steps=1",
    "--trainer.logger=false",
    "--trainer.enable_checkpointing=false",
    "--stable.doctor=null",
    "--stable.uncertainty=null",
)

#: What a start trains first, in a training of its own, is as short.
SHORTER = {"digits_transfer": ("--stable.pretrain.max_epochs=1",)}


def test_there_are_ten_optimizers_and_seven_kinds_of_schedule():
    assert len(OPTIMIZERS) == 10
    assert len(SCHEDULES) == 8  # 1cycle in two ways
    assert len(GROUPS) == 2


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("names", STACKS, ids=["+".join(filter(None, names)) for names in STACKS])
def test_a_stack_trains(tmp_path, start, names):
    overlays = [OVERLAYS[name] for name in names if name is not None]
    cli = session(tmp_path, start, *overlays, settings=(*FEW_STEPS, *SHORTER.get(start, ())))
    before = [p.detach().clone() for p in cli.model.parameters()]
    with warnings.catch_warnings():
        # Convolutions have no matrices for Muon; fifty layers are many for AdaGrad.
        warnings.simplefilter("ignore", StableLightningWarning)
        cli.trainer.fit(cli.model, datamodule=cli.datamodule)
    assert cli.trainer.global_step == 4
    after = list(cli.model.parameters())
    assert all(torch.isfinite(p).all() for p in after)
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    (config,) = cli.trainer.lr_scheduler_configs
    assert config.interval == ("epoch" if "plateau" in names else "step")


def optimizer_of(tmp_path: Path, start: str, *overlays: Path) -> Any:
    model = session(tmp_path, start, *overlays).model
    return model._stable_settings.optimizer(model.parameters())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_nothing_is_left_of_an_optimizer_that_was_there_before(tmp_path, name):
    bare = tmp_path / "bare.yaml"
    bare.write_text("model: {init_args: {optimizer: null}}")
    alone = optimizer_of(tmp_path, "digits", bare, OVERLAYS[name])
    # Settings merge where both classes have them: diabetes decays weights by 0.1.
    others = [OVERLAYS[other] for other in OPTIMIZERS if other != name]
    stacked = optimizer_of(tmp_path, "diabetes", *others, OVERLAYS[name])
    backwards = optimizer_of(tmp_path, "diabetes", *reversed(others), OVERLAYS[name])
    assert type(stacked) is type(backwards) is type(alone)
    assert stacked.defaults == backwards.defaults == alone.defaults
    for group in (*stacked.param_groups, *backwards.param_groups):
        reference = next(g for g in alone.param_groups if g.get("muon") == group.get("muon"))
        assert {k: v for k, v in group.items() if k != "params"} == {
            k: v for k, v in reference.items() if k != "params"
        }


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_forgets_the_one_before_it(tmp_path, name):
    def curve(*overlays: Path) -> list[float]:
        model = session(tmp_path, "digits", *overlays).model
        optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
        scheduler = model._stable_settings.scheduler
        if name == "plateau":
            made = scheduler(optimizer)
            return [made.factor, made.patience, made.mode == "min", made.monitor == "val/loss"]
        made = scheduler(optimizer, total_steps=20)
        rates = []
        for _ in range(20):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            made.step()
        return rates

    others = [OVERLAYS[other] for other in SCHEDULES if other != name]
    alone = curve(OVERLAYS[name])
    assert curve(*others, OVERLAYS[name]) == alone
    assert curve(*reversed(others), OVERLAYS[name]) == alone


@pytest.mark.parametrize("order", [1, -1])
def test_both_groupings_stack(tmp_path, order):
    model = session(tmp_path, "digits", *[OVERLAYS[name] for name in GROUPS[::order]]).model
    groups = model._stable_settings.parameter_groups
    assert (groups.decay_weights_only, groups.layer_decay) == (True, 0.8)
