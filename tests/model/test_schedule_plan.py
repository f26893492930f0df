"""A plan is what the schedule then does, and making it moves nothing."""

import copy

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler as theirs

from stablelightning.model import schedules as ours
from stablelightning.model.muon import MuonAdamW
from stablelightning.model.schedule_plan import MOST_STEPS, plan_schedule

STEPS = 30


def sgd(**settings) -> torch.optim.SGD:
    first, second = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    groups = [{"params": [first], "name": "first"}, {"params": [second], "lr": 0.01}]
    return torch.optim.SGD(groups, lr=0.1, **settings)


def sequence(optimizer):
    parts = [theirs.LinearLR(optimizer, total_iters=5), theirs.CosineAnnealingLR(optimizer, 25)]
    return theirs.SequentialLR(optimizer, parts, [5])


SCHEDULES = [
    *[
        lambda o, name=name: getattr(ours, name)(o, total_steps=STEPS)
        for name in ours.__all__
        if name != "ReduceOnPlateau"
    ],
    lambda o: theirs.StepLR(o, 7),
    lambda o: theirs.CyclicLR(o, 0.01, 0.1, step_size_up=6),
    lambda o: theirs.LambdaLR(o, [lambda t: 0.9**t, lambda t: 1.0]),
    sequence,
]


@pytest.mark.parametrize("make", SCHEDULES)
@pytest.mark.parametrize("every", [1, 4])
def test_the_plan_comes_true(make, every):
    optimizer = sgd(momentum=0.9)
    schedule = make(optimizer)
    plan = plan_schedule(optimizer, schedule, STEPS, steps_per_tick=every)
    rates, momenta = [], []
    for step in range(STEPS):
        rates.append(tuple(group["lr"] for group in optimizer.param_groups))
        momenta.append(tuple(group["momentum"] for group in optimizer.param_groups))
        optimizer.step()
        if (step + 1) % every == 0:
            schedule.step()
    assert list(zip(*plan.rates, strict=True)) == rates
    assert list(zip(*plan.momenta, strict=True)) == momenta
    assert plan.complete


@pytest.mark.parametrize("make", SCHEDULES)
def test_nothing_moves(make):
    optimizer = sgd(momentum=0.9)
    schedule = make(optimizer)
    before = copy.deepcopy((optimizer.state_dict(), schedule.state_dict()))
    weights = [p.clone() for group in optimizer.param_groups for p in group["params"]]
    plan_schedule(optimizer, schedule, STEPS)
    assert repr((optimizer.state_dict(), schedule.state_dict())) == repr(before)
    after = [p for group in optimizer.param_groups for p in group["params"]]
    assert all(torch.equal(a, b) for a, b in zip(weights, after, strict=True))


@pytest.mark.parametrize("curve", [ours.WarmupCosine, ours.OneCycle])
def test_a_long_training_is_looked_at_in_places(curve):
    optimizer, training = sgd(), 10**8
    plan = plan_schedule(optimizer, curve(optimizer, total_steps=training), training)
    assert plan.complete
    assert len(plan.steps) < 3000
    assert max(plan.rates[0]) == pytest.approx(0.1, rel=1e-3)
    assert plan.rates[0][-1] < 1e-6


def test_what_must_be_walked_is_cut_short_and_says_so():
    optimizer = sgd()
    plan = plan_schedule(optimizer, theirs.StepLR(optimizer, 1000), 10 * MOST_STEPS)
    assert not plan.complete
    assert plan.steps[-1] < MOST_STEPS


def test_a_schedule_shorter_than_training_is_planned_all_the_same():
    optimizer = sgd()
    plan = plan_schedule(optimizer, ours.OneCycle(optimizer, total_steps=10), STEPS)
    assert len(plan.steps) == STEPS


def test_a_plateau_is_level_until_somebody_knows():
    optimizer = sgd()
    plan = plan_schedule(optimizer, ours.ReduceOnPlateau(optimizer), STEPS, waits="val/loss")
    assert set(plan.rates[0]) == {0.1}
    assert plan.waits == "val/loss"


def test_groups_keep_their_names_and_need_not_have_momentum():
    optimizer = sgd()
    assert plan_schedule(optimizer, theirs.StepLR(optimizer, 1), 3).groups == ("first", "1")
    adagrad = torch.optim.Adagrad([nn.Parameter(torch.ones(1))])
    assert plan_schedule(adagrad, theirs.StepLR(adagrad, 1), 3).momenta == ()
    both = MuonAdamW(nn.Linear(2, 2).parameters())
    plan = plan_schedule(both, ours.WarmupCosine(both, total_steps=3), 3)
    assert plan.momenta[0] == (0.95, 0.95, 0.95)
    assert not plan.moves_momentum
