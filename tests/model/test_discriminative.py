"""Parts at rates of their own against the same schedule of unsplit groups: every one of torch."""

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch.optim import lr_scheduler as schedules

from stablelightning.errors import ModelError, RecipeError
from stablelightning.model.discriminative import factors_for, split_groups_
from stablelightning.model.learning_rate import scale_learning_rates
from stablelightning.model.plateau import ReduceOnPlateau
from stablelightning.model.schedules import OneCycle, WarmupCosine
from tests.model.test_learning_rate import SCHEDULERS, STEPS, advance

#: Powers of two: products are exact, and so is what is asked for.
FACTORS = [0.125, 0.5, 1.0]

MORE = {
    **SCHEDULERS,
    "OneCycle": lambda o: OneCycle(o, total_steps=STEPS + 1),
    "WarmupCosine": lambda o: WarmupCosine(o, total_steps=STEPS + 1),
    "ReduceOnPlateau": lambda o: ReduceOnPlateau(o, patience=1, min_lr=0.003),
}
every_schedule = pytest.mark.parametrize("name", MORE)

pytestmark = pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")


def weights(count: int = 6) -> list[torch.Tensor]:
    return [torch.zeros(2, requires_grad=True) for _ in range(count)]


def trained(*, split: bool, name: str = "StepLR", factors=FACTORS, tensor: bool = False, at=0):
    """Two groups of three parts each, rates 1 to 10; the parts alternate within the groups."""
    held = weights()
    rates = [torch.tensor(0.5), torch.tensor(0.05)] if tensor else [0.5, 0.05]
    groups = [
        {"params": held[:3], "lr": rates[0]},
        {"params": held[3:], "lr": rates[1], "weight_decay": 0.1},
    ]
    optimizer = torch.optim.SGD(groups, lr=0.5, momentum=0.9)
    schedule = MORE[name](optimizer)
    advance(optimizer, schedule, at)
    if split:
        split_(optimizer, [schedule], held, factors)
    return optimizer, schedule, held


def split_(optimizer, schedulers, held, factors=FACTORS, **settings):
    parts = [[held[n], held[n + 3]] for n in range(3)]
    split_groups_(optimizer, schedulers, parts, factors=factors, **settings)


def expected(rates: list[list[float]], factors=FACTORS) -> list[list[float]]:
    return [[rate * factor for rate in row for factor in factors] for row in rates]


def rates_of(optimizer) -> list[float]:
    return [float(group["lr"]) for group in optimizer.param_groups]


# ---- the rates ----------------------------------------------------------------------------------


@pytest.mark.parametrize("when", [0, 1, 5, 13, 29])
@every_schedule
def test_a_part_goes_on_at_factor_times_the_rate_of_its_group(name, when):
    plain, usual, _ = trained(split=False, name=name, at=when)
    optimizer, schedule, _ = trained(split=True, name=name, at=when)
    assert [rates_of(optimizer)] == expected([rates_of(plain)])
    assert advance(optimizer, schedule, STEPS - when) == expected(
        advance(plain, usual, STEPS - when)
    )


@every_schedule
def test_the_last_rates_that_a_schedule_tells_are_those_of_the_groups(name):
    optimizer, schedule, _ = trained(split=True, name=name, at=4)
    assert [float(rate) for rate in schedule.get_last_lr()] == rates_of(optimizer)
    advance(optimizer, schedule, 3)
    assert [float(rate) for rate in schedule.get_last_lr()] == rates_of(optimizer)


@given(factors=st.lists(st.floats(1e-4, 10.0), min_size=3, max_size=3))
@pytest.mark.parametrize("name", ["CosineAnnealingLR", "SequentialLR", "CyclicLR"])
def test_any_factors(name, factors):
    plain, usual, _ = trained(split=False, name=name)
    optimizer, schedule, _ = trained(split=True, name=name, factors=factors)
    rates = torch.tensor(advance(optimizer, schedule, STEPS), dtype=torch.float64)
    wanted = torch.tensor(expected(advance(plain, usual, STEPS), factors), dtype=torch.float64)
    torch.testing.assert_close(rates, wanted, rtol=1e-9, atol=0.0)


@every_schedule
def test_momenta_are_cycled_as_before(name):
    plain, usual, _ = trained(split=False, name=name)
    optimizer, schedule, _ = trained(split=True, name=name)
    for _ in range(20):
        advance(plain, usual, 1), advance(optimizer, schedule, 1)
        wanted = [group["momentum"] for group in plain.param_groups for _ in FACTORS]
        assert [group["momentum"] for group in optimizer.param_groups] == wanted


@pytest.mark.parametrize("name", sorted(set(MORE) - {"SWALR"}))  # it takes no tensors itself
def test_rates_that_are_tensors_are_no_longer_shared(name):
    plain, usual, _ = trained(split=False, name=name, tensor=True)
    optimizer, schedule, _ = trained(split=True, name=name, tensor=True)
    held = [group["lr"] for group in optimizer.param_groups]
    assert len({tensor.data_ptr() for tensor in held}) == len(held)
    rates, wanted = advance(optimizer, schedule, 20), expected(advance(plain, usual, 20))
    torch.testing.assert_close(torch.tensor(rates), torch.tensor(wanted), rtol=1e-5, atol=1e-9)
    now = [group["lr"] for group in optimizer.param_groups]
    assert all(a is b for a, b in zip(held, now, strict=True))


@every_schedule
def test_a_checkpoint_fits_what_was_split_the_same_way(name):
    optimizer, schedule, _ = trained(split=True, name=name)
    advance(optimizer, schedule, 6)
    states = copy.deepcopy((optimizer.state_dict(), schedule.state_dict()))
    fresh, other, _ = trained(split=True, name=name)
    fresh.load_state_dict(states[0])
    other.load_state_dict(states[1])
    assert advance(fresh, other, 25) == advance(optimizer, schedule, 25)


@every_schedule
def test_states_can_be_loaded_weights_only(name, tmp_path):
    _, schedule, _ = trained(split=True, name=name, at=2)
    torch.save(schedule.state_dict(), tmp_path / "state.pt")
    torch.load(tmp_path / "state.pt", weights_only=True)


@pytest.mark.parametrize("first", ["split", "scale"])
@every_schedule
def test_splitting_and_scaling_can_come_in_any_order(name, first):
    plain, usual, _ = trained(split=False, name=name)
    scale_learning_rates(plain, [usual], 0.25)
    optimizer, schedule, held = trained(split=first == "split", name=name)
    scale_learning_rates(optimizer, [schedule], 0.25)
    if first == "scale":
        split_(optimizer, [schedule], held)
    assert advance(optimizer, schedule, 30) == expected(advance(plain, usual, 30))


@every_schedule
def test_parts_can_be_split_again(name):
    plain, usual, _ = trained(split=False, name=name)
    optimizer, schedule, held = trained(split=True, name=name)
    advance(plain, usual, 3), advance(optimizer, schedule, 3)
    split_groups_(optimizer, [schedule], [[held[0]], held[1:]], factors=[2.0, 1.0])
    rates, wanted = advance(optimizer, schedule, 20), expected(advance(plain, usual, 20))
    assert rates == [[2 * row[0], *row[1:]] for row in wanted]


def test_one_factor_for_all_is_that_factor():
    plain, usual, _ = trained(split=False, name="CosineAnnealingLR")
    optimizer, schedule, held = trained(split=False, name="CosineAnnealingLR")
    split_groups_(optimizer, [schedule], [held], factors=[0.5])
    assert len(optimizer.param_groups) == 2
    assert advance(optimizer, schedule, 20) == expected(advance(plain, usual, 20), [0.5])


def test_a_single_group_and_many_schedulers():
    def both(split):
        held = weights(3)
        sgd = torch.optim.SGD(held, lr=0.5)
        chained = schedules.ChainedScheduler(
            [
                schedules.MultiStepLR(sgd, milestones=[3]),
                schedules.LambdaLR(sgd, [lambda n: 1 - n / 50]),
            ]
        )
        if split:
            parts = [[p] for p in held]
            split_groups_(sgd, [chained, chained._schedulers[0]], parts, factors=FACTORS)
        return sgd, chained

    assert advance(*both(True), 9) == expected(advance(*both(False), 9))


def test_schedulers_of_other_optimizers_are_left():
    optimizer, _, held = trained(split=False)
    other, schedule, _ = trained(split=False)
    split_(optimizer, [schedule], held)
    assert schedule.base_lrs == [0.5, 0.05]
    assert len(other.param_groups) == 2


def test_a_scheduler_of_ones_own_goes_on_from_base_lrs():
    class Root(schedules.LRScheduler):
        def get_lr(self):
            return [base / math.sqrt(1 + self.last_epoch) for base in self.base_lrs]

    class Peaks(schedules.LRScheduler):
        """One whose list has a name of its own, and whose milestones are as many as groups."""

        def __init__(self, optimizer):
            self.heights = [float(group["lr"]) for group in optimizer.param_groups]
            self.milestones = [1, 2]
            super().__init__(optimizer)

        def get_lr(self):
            late = self.last_epoch > self.milestones[1]
            return [height * (0.5 if late else 1.0) for height in self.heights]

    for kind in (Root, Peaks):
        plain, _, _ = trained(split=False)
        optimizer, _, held = trained(split=False)
        usual, schedule = kind(plain), kind(optimizer)
        split_(optimizer, [schedule], held)
        assert advance(optimizer, schedule, 9) == expected(advance(plain, usual, 9))
    assert schedule.milestones == [1, 2]


@pytest.mark.parametrize("name", ["CosineAnnealingLR", "ReduceLROnPlateau"])
def test_a_scheduler_stays_of_its_kind(name):
    kind = type(trained(split=False, name=name)[1])
    _, schedule, _ = trained(split=True, name=name)
    assert isinstance(schedule, kind)
    assert type(schedule).__name__ == kind.__name__
    assert type(copy.deepcopy(schedule)) is type(schedule)


def test_factors_that_give_rates_as_they_are_written():
    optimizer, schedule, held = trained(split=False, name="CyclicLR")  # peaks of 0.5 and 0.05
    factors = factors_for(optimizer, [schedule], [0.005, 0.05, 0.25])
    split_(optimizer, [schedule], held, factors)
    highest = [max(rates) for rates in zip(*advance(optimizer, schedule, STEPS), strict=True)]
    assert highest == pytest.approx([0.005, 0.05, 0.25, 0.0005, 0.005, 0.025])


def test_no_factor_gives_a_rate_where_the_rate_is_zero():
    with pytest.raises(ModelError, match="learns at a rate > 0"):
        factors_for(torch.optim.SGD(weights(1), lr=0.0), [], [0.1])


# ---- the groups ---------------------------------------------------------------------------------


def test_settings_states_and_whoever_holds_a_group_stay():
    optimizer, schedule, held = trained(split=False)
    for parameter in held:
        parameter.grad = torch.ones(2)
    optimizer.step()
    list_of_groups, first = optimizer.param_groups, optimizer.param_groups[1]
    states = [optimizer.state[p]["momentum_buffer"] for p in held]
    split_(optimizer, [schedule], held)
    assert optimizer.param_groups is list_of_groups
    assert optimizer.param_groups[3] is first  # the last group's first part
    assert [g["weight_decay"] for g in optimizer.param_groups] == [0, 0, 0, 0.1, 0.1, 0.1]
    assert all(g["params"][0] is p for g, p in zip(list_of_groups, held, strict=True))
    assert all(
        optimizer.state[p]["momentum_buffer"] is b for p, b in zip(held, states, strict=True)
    )


def test_membership_is_decided_by_identity():
    equal = [torch.zeros(2, requires_grad=True) for _ in range(3)]
    sgd = torch.optim.SGD(equal, lr=1.0)
    split_groups_(sgd, [], [[equal[2]], [equal[0]]], factors=[0.25, 0.5])
    assert [[id(p) for p in group["params"]] for group in sgd.param_groups] == [
        [id(equal[1])],
        [id(equal[2])],
        [id(equal[0])],
    ]
    assert rates_of(sgd) == [1.0, 0.25, 0.5]


def test_what_is_in_several_parts_belongs_to_the_first_and_strangers_to_none():
    a, b, stranger = weights(3)
    sgd = torch.optim.SGD([a, b], lr=1.0)
    split_groups_(sgd, [], [[a, stranger], [a, b], [stranger]], factors=[0.5, 0.25, 0.125])
    assert [(len(g["params"]), g["lr"]) for g in sgd.param_groups] == [(1, 0.5), (1, 0.25)]


def test_names_are_those_of_group_and_part():
    held = weights(4)
    groups = [{"params": held[:2], "name": "decay"}, {"params": held[2:], "name": "no_decay"}]
    sgd = torch.optim.SGD(groups, lr=0.1)
    parts = [[held[0], held[2]], [held[1]]]
    split_groups_(sgd, [], parts, factors=[0.5, 1.0], names=["stem", "head"])
    names = [group["name"] for group in sgd.param_groups]
    assert names == ["decay/stem", "decay/head", "no_decay", "no_decay/stem"]


def test_names_of_groups_without_one():
    alone = torch.optim.SGD(weights(2), lr=0.1)
    parts = [[p] for p in alone.param_groups[0]["params"]]
    split_groups_(alone, [], parts, factors=[0.5, 1.0], names=["stem", "head"])
    assert [group["name"] for group in alone.param_groups] == ["stem", "head"]
    optimizer, _, held = trained(split=False)
    split_(optimizer, [], held, names=["stem", "body", "head"])
    assert len({group["name"] for group in optimizer.param_groups}) == 6


def test_parameters_keep_the_names_that_an_optimizer_knows():
    net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1))
    sgd = torch.optim.SGD(net.named_parameters(), lr=0.1)
    split_groups_(sgd, [], [net[1].parameters(), net[0].parameters()], factors=[1.0, 0.5])
    assert [g["param_names"] for g in sgd.param_groups] == [
        ["1.weight", "1.bias"],
        ["0.weight", "0.bias"],
    ]


def test_through_the_wrapper_of_lightning():
    optimizer, schedule, held = trained(split=False)
    split_(LightningOptimizer(optimizer), [schedule], held)
    assert len(optimizer.param_groups) == len(schedule.base_lrs) == 6


@pytest.mark.parametrize("factor", [0, -1.0, math.nan, math.inf, "0.5", None, True])
def test_a_factor_must_be_positive_and_finite(factor):
    optimizer, _, held = trained(split=False)
    with pytest.raises(RecipeError, match="factors of rates must be finite numbers > 0"):
        split_(optimizer, [], held, [1.0, factor, 1.0])
    assert len(optimizer.param_groups) == 2


@pytest.mark.parametrize("settings", [{"factors": [1.0]}, {"factors": FACTORS, "names": ["a"]}])
def test_each_part_has_one_factor_and_one_name(settings):
    optimizer, _, held = trained(split=False)
    with pytest.raises(RecipeError, match="each of the 3 parts must have one factor"):
        split_(optimizer, [], held, **settings)


def test_an_optimizer_of_one_group_is_refused():
    held = weights(2)
    with pytest.raises(ModelError, match="LBFGS takes one"):
        split_groups_(torch.optim.LBFGS(held), [], [held[:1], held[1:]], factors=[0.5, 1.0])
