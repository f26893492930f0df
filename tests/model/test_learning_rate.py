"""Scaled schedules against the schedules that they were: every scheduler of torch."""

import copy
import math

import pytest
import torch
from torch.optim import lr_scheduler as schedules
from torch.optim.swa_utils import SWALR

from stablelightning.errors import ModelError, RecipeError
from stablelightning.model.learning_rate import base_learning_rates, scale_learning_rates

STEPS = 40

#: A SequentialLR inside another steps its first one before there was a step.
pytestmark = pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")


def optimizer_of(*, tensor: bool = False) -> torch.optim.Optimizer:
    """Two groups whose rates are 1 to 10."""
    rates = [0.5, 0.05]
    groups = [
        {"params": [torch.zeros(2, requires_grad=True)], "lr": torch.tensor(r) if tensor else r}
        for r in rates
    ]
    return torch.optim.SGD(groups, lr=0.5, momentum=0.9)


def sequential(o):
    warm = schedules.LinearLR(o, start_factor=0.1, total_iters=5)
    flat = schedules.ConstantLR(o, factor=0.5, total_iters=4)
    cosine = schedules.CosineAnnealingLR(o, T_max=20, eta_min=0.001)
    inner = schedules.SequentialLR(o, [warm, flat], milestones=[5])
    return schedules.SequentialLR(o, [inner, cosine], milestones=[12])


def chained(o):
    return schedules.ChainedScheduler(
        [schedules.LinearLR(o, total_iters=6), schedules.ExponentialLR(o, gamma=0.95)]
    )


SCHEDULERS = {
    "LambdaLR": lambda o: schedules.LambdaLR(o, lambda n: 1 / (1 + n)),
    "MultiplicativeLR": lambda o: schedules.MultiplicativeLR(o, lambda n: 0.9),
    "StepLR": lambda o: schedules.StepLR(o, step_size=7),
    "MultiStepLR": lambda o: schedules.MultiStepLR(o, milestones=[5, 6, 20]),
    "ConstantLR": lambda o: schedules.ConstantLR(o, total_iters=15),
    "LinearLR": lambda o: schedules.LinearLR(o, total_iters=15),
    "ExponentialLR": lambda o: schedules.ExponentialLR(o, gamma=0.9),
    "SequentialLR": sequential,
    "CosineAnnealingLR": lambda o: schedules.CosineAnnealingLR(o, T_max=9, eta_min=0.02),
    "ChainedScheduler": chained,
    "ReduceLROnPlateau": lambda o: schedules.ReduceLROnPlateau(
        o, patience=1, factor=0.4, min_lr=[0.01, 0.002], eps=1e-3
    ),
    "CyclicLR": lambda o: schedules.CyclicLR(
        o, base_lr=[0.1, 0.01], max_lr=[0.5, 0.05], step_size_up=5, mode="triangular2"
    ),
    "CosineAnnealingWarmRestarts": lambda o: schedules.CosineAnnealingWarmRestarts(
        o, T_0=4, T_mult=2, eta_min=0.01
    ),
    "OneCycleLR": lambda o: schedules.OneCycleLR(
        o, max_lr=[0.5, 0.05], total_steps=STEPS + 1, three_phase=True
    ),
    "PolynomialLR": lambda o: schedules.PolynomialLR(o, total_iters=30, power=2.0),
    "SWALR": lambda o: SWALR(o, swa_lr=[0.05, 0.5], anneal_epochs=9),
}


def advance(optimizer, schedule, steps: int) -> list[list[float]]:
    """The rates, group by group, after each of so many steps."""
    rates = []
    for _ in range(steps):
        optimizer.step()
        if isinstance(schedule, schedules.ReduceLROnPlateau):
            schedule.step(1.0)  # never better: it reduces whenever it may
        else:
            schedule.step()
        rates.append([float(group["lr"]) for group in optimizer.param_groups])
    return rates


def pair(name: str, **settings):
    optimizer = optimizer_of(**settings)
    return optimizer, SCHEDULERS[name](optimizer)


def test_every_scheduler_of_torch_is_here():
    assert set(schedules.__all__) - {"LRScheduler"} <= set(SCHEDULERS)


@pytest.mark.parametrize("when", [0, 1, 5, 13, 29])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_schedule_goes_on_at_factor_times_its_rate(name, when):
    factor = 0.125  # a power of two: products are exact, and so is what is asked for
    plain, scaled = pair(name), pair(name)
    assert advance(*plain, when) == advance(*scaled, when)
    scale_learning_rates(scaled[0], [scaled[1]], factor)
    now = [[group["lr"] for group in o.param_groups] for o, _ in (plain, scaled)]
    assert now[1] == [factor * rate for rate in now[0]]
    expected = [[factor * rate for rate in rates] for rates in advance(*plain, STEPS - when)]
    assert advance(*scaled, STEPS - when) == expected


@pytest.mark.parametrize("name", SCHEDULERS)
def test_any_factor_keeps_the_ratios_between_groups(name):
    plain, scaled = pair(name), pair(name)
    advance(*plain, 3), advance(*scaled, 3)
    scale_learning_rates(scaled[0], [scaled[1]], 0.3)
    ratios = [[a / b if b else 1 for a, b in [r]] for r in advance(*plain, 20)]
    got = [[a / b if b else 1 for a, b in [r]] for r in advance(*scaled, 20)]
    assert torch.allclose(torch.tensor(got), torch.tensor(ratios), rtol=1e-5)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_saved_scaled_schedule_goes_on_in_a_fresh_one(name):
    scaled = pair(name)
    advance(*scaled, 6)
    scale_learning_rates(scaled[0], [scaled[1]], 0.25)
    advance(*scaled, 3)
    states = [copy.deepcopy(each.state_dict()) for each in scaled]
    fresh = pair(name)
    for each, state in zip(fresh, states, strict=True):
        each.load_state_dict(state)
    assert advance(*fresh, 25) == advance(*scaled, 25)


@pytest.mark.parametrize("name", sorted(set(SCHEDULERS) - {"SWALR"}))  # it cannot itself
def test_rates_that_are_tensors_are_written_in_place(name):
    plain, scaled = pair(name, tensor=True), pair(name, tensor=True)
    advance(*plain, 4), advance(*scaled, 4)
    tensors = [group["lr"] for group in scaled[0].param_groups]
    scale_learning_rates(scaled[0], [scaled[1]], 0.5)
    assert [g["lr"] for g in scaled[0].param_groups] == tensors
    assert all(g["lr"] is t for g, t in zip(scaled[0].param_groups, tensors, strict=True))
    for rates, halved in zip(advance(*plain, 20), advance(*scaled, 20), strict=True):
        assert halved == pytest.approx([0.5 * rate for rate in rates], rel=1e-5)


def test_a_tensor_that_groups_share_is_scaled_once():
    rate = torch.tensor(0.5)
    groups = [{"params": [torch.zeros(1)], "lr": rate}, {"params": [torch.zeros(1)], "lr": rate}]
    sgd = torch.optim.SGD(groups)
    scale_learning_rates(sgd, [], 0.5)
    assert float(rate) == 0.25


def test_what_is_cycled_beside_the_rate_is_cycled_as_before():
    plain, scaled = pair("OneCycleLR"), pair("OneCycleLR")
    scale_learning_rates(scaled[0], [scaled[1]], 3.0)
    for _ in range(20):
        advance(*plain, 1), advance(*scaled, 1)
        assert [g["momentum"] for g in scaled[0].param_groups] == [
            g["momentum"] for g in plain[0].param_groups
        ]


def test_a_rate_cut_below_a_floor_does_not_rise_to_it():
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.1)
    cosine = schedules.CosineAnnealingLR(optimizer, T_max=30, eta_min=0.05)
    advance(optimizer, cosine, 5)
    scale_learning_rates(optimizer, [cosine], 0.01)
    cut = optimizer.param_groups[0]["lr"]
    assert max(rate for (rate,) in advance(optimizer, cosine, 20)) <= cut


def test_a_scheduler_that_is_given_twice_is_scaled_once():
    optimizer, schedule = pair("SequentialLR")
    before = schedule._schedulers[1].base_lrs
    scale_learning_rates(optimizer, [schedule, schedule._schedulers[1]], 2.0)
    assert schedule._schedulers[1].base_lrs == [2.0 * rate for rate in before]


def test_schedulers_of_other_optimizers_are_left():
    optimizer, _ = pair("StepLR")
    other, schedule = pair("StepLR")
    scale_learning_rates(optimizer, [schedule], 0.5)
    assert schedule.base_lrs == [0.5, 0.05]
    assert [group["lr"] for group in other.param_groups] == [0.5, 0.05]


def test_a_scheduler_of_ones_own_goes_on_from_base_lrs():
    class Root(schedules.LRScheduler):
        def get_lr(self):
            return [base / math.sqrt(1 + self.last_epoch) for base in self.base_lrs]

    plain, scaled = optimizer_of(), optimizer_of()
    roots = Root(plain), Root(scaled)
    scale_learning_rates(scaled, [roots[1]], 0.5)
    doubled = [[2 * rate for rate in rates] for rates in advance(scaled, roots[1], 9)]
    assert doubled == advance(plain, roots[0], 9)


@pytest.mark.parametrize("factor", [0, -1.0, math.nan, math.inf, "0.5", None])
def test_a_factor_must_be_positive_and_finite(factor):
    with pytest.raises(RecipeError, match="factor must be a finite number > 0"):
        scale_learning_rates(optimizer_of(), [], factor)


# ---- the rate that a schedule is written around -------------------------------------------------


@pytest.mark.parametrize("name", sorted(set(SCHEDULERS) - {"SWALR"}))
def test_the_base_is_the_largest_rate_of_the_whole_schedule(name):
    optimizer, schedule = pair(name)
    base = base_learning_rates(optimizer, [schedule])
    assert base == pytest.approx([0.5, 0.05])
    start = [group["lr"] for group in optimizer.param_groups]
    rates = [start, *advance(optimizer, schedule, STEPS)]
    assert all(most <= b + 1e-12 for most, b in zip(map(max, *rates), base, strict=True))


@pytest.mark.parametrize("name", SCHEDULERS)
def test_scaling_scales_the_base(name):
    optimizer, schedule = pair(name)
    base = base_learning_rates(optimizer, [schedule])
    scale_learning_rates(optimizer, [schedule], 0.25)
    assert base_learning_rates(optimizer, [schedule]) == [0.25 * rate for rate in base]


def test_without_a_schedule_the_base_is_the_rate():
    assert base_learning_rates(optimizer_of(tensor=True), []) == pytest.approx([0.5, 0.05])


def test_peaks_of_other_optimizers_do_not_count():
    _, other = pair("CyclicLR")
    plain = torch.optim.SGD([torch.zeros(1)], lr=0.3)
    assert base_learning_rates(plain, [other]) == [0.3]


def test_an_optimizer_that_finds_its_own_rate_has_no_base():
    plain = torch.optim.SGD([torch.zeros(1)], lr=0.3)
    plain.param_groups[0]["lr"] = None
    with pytest.raises(ModelError, match="must be a number to be scaled"):
        base_learning_rates(plain, [])
