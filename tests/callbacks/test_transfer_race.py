"""Plans race on copies, as if the race were the whole training."""

import lightning as L
import pytest
import torch

from stablelightning.callbacks.transfer_race import RacedPlan, race_plans, rivals
from stablelightning.errors import DataError
from stablelightning.model.depth import depth_groups
from stablelightning.model.transfer_choice import TransferChoice
from tests.callbacks.modules import quiet_trainer
from tests.callbacks.transfer import Numbers, Pretrained, rows

RULE = TransferChoice(4, 3, 3, False, None, "few labels")


class Races(L.Callback):
    def __init__(self, choice=RULE, steps=4):
        self.choice, self.steps = choice, steps

    def on_fit_start(self, trainer, pl_module):
        groups = depth_groups(pl_module)
        before = {n: v.clone() for n, v in pl_module.state_dict().items()}
        rng, loop = torch.get_rng_state(), trainer.fit_loop._combined_loader
        self.won, self.raced = race_plans(
            trainer, pl_module, groups, self.choice, steps=self.steps, example=rows()[0]
        )
        after = pl_module.state_dict()
        self.left_alone = (
            all(torch.equal(before[n], after[n]) for n in before)
            and all(p.requires_grad and p.grad is None for p in pl_module.parameters())
            and torch.equal(rng, torch.get_rng_state())
            and trainer.fit_loop._combined_loader is loop
            and not trainer.optimizers[0].state
        )


def raced(model=None, **settings):
    races = Races(**settings)
    quiet_trainer(races, max_steps=1).fit(Pretrained(count=30) if model is None else model)
    return races


def test_model_generators_and_loaders_are_left_alone():
    assert raced().left_alone


def test_every_plan_is_told_with_a_loss_of_each_seed():
    race = raced()
    assert {plan.name for plan in race.raced} == set(rivals(RULE))
    assert all(len(plan.losses) == 2 and plan.loss < 10 for plan in race.raced)
    assert race.won.reason.startswith("few labels; 'rule' won the race") or (
        "that of the rule's plan (keep 3 groups of 3" in race.won.reason
    )


def test_a_race_repeats():
    one, two = (raced().raced for _ in range(2))
    assert [plan.to_dict() for plan in one] == [plan.to_dict() for plan in two]


def test_plans_follow_their_schedule_within_the_race():
    opened = {}

    class Counting(Pretrained):
        def training_step(self, batch, batch_idx):
            if self.training and self is not model:
                count = sum(p.requires_grad for p in self.parameters())
                opened.setdefault(count, 0)
                opened[count] += 1
            return super().training_step(batch, batch_idx)

    model = Counting(count=30)
    raced(model, steps=10)
    # Of ten steps and two seeds: two of the head alone in each plan that begins with it, and so on.
    assert set(opened) == {2, 4, 6, 10}
    assert opened[2] == 2 * (10 + 1 + 1 + 1)
    assert opened[10] == 2 * (10 + 10 + 7 + 7)


def test_a_plan_that_fails_is_told_and_loses():
    class Fails(Pretrained):
        def training_step(self, batch, batch_idx):
            if self.training and not self.body[0].weight.requires_grad:
                raise RuntimeError("a layer that must be trained")
            return super().training_step(batch, batch_idx)

    race = raced(Fails(count=30))
    failed = {plan.name for plan in race.raced if plan.failure}
    assert failed == {"rule", "head", "gradual", "all slowly"}
    assert race.won.open_groups == 4
    assert race.raced[-1].to_dict()["losses"] == [None, None]


def test_without_validation_data_there_is_no_race():
    with pytest.raises(DataError, match="plans race on validation data, and there is none"):
        raced(Numbers())


def test_rivals_are_other_plans():
    for groups in range(2, 7):
        for keep in range(groups):
            for at_once in (False, True):
                choice = TransferChoice(groups, keep, groups, at_once, None, "")
                plans = [plan.plan for plan in rivals(choice).values()]
                assert len(set(plans)) == len(plans)


def test_a_plan_without_runs_has_no_loss():
    assert RacedPlan("rule", "keep all").loss == float("inf")
