"""A heat is repeatable, reads what it says, and survives what it is given."""

import math

import pytest
import torch
from torch import nn

from stablelightning.model.race import Heat, PlainContestant, run_heat


def batches(count=3):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, 16, 4, generator=generator)
    return [(rows, (rows[:, 0] > 0).long()) for rows in x]


def contestant(rate=0.1, dropout=0.0):
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 2))
    return PlainContestant(net, nn.CrossEntropyLoss(), torch.optim.SGD(net.parameters(), lr=rate))


def test_the_curve_starts_before_training_and_ends_after_it():
    racer = contestant()
    heat = run_heat(racer, batches(), batches(1), steps=25, readings=5)
    assert [step for step, _ in heat.curve] == [0, 5, 10, 15, 20, 25]
    assert heat.curve[-1][1] == racer.loss(batches(1)[0])
    assert heat.final == pytest.approx(sum(loss for _, loss in heat.curve[-3:]) / 3)
    assert heat.final < heat.curve[0][1]
    assert heat.milliseconds > 0


def test_equal_seeds_give_equal_heats_however_often_the_loss_is_read():
    ends = []
    for readings in (1, 7):
        torch.manual_seed(3)
        racer = contestant(dropout=0.5)
        ends.append(run_heat(racer, batches(), batches(1), steps=14, readings=readings).curve[-1])
    assert ends[0] == ends[1]


def test_batches_come_in_order_over_and_over():
    seen = []

    class Notes:
        def learn(self, batch, index):
            seen.append((batch, index))

        def loss(self, batch):
            return 0.0

    run_heat(Notes(), ["a", "b"], ["c"], steps=5)
    assert seen == [("a", 0), ("b", 1), ("a", 2), ("b", 3), ("a", 4)]


def test_a_loss_that_is_no_number_is_infinite():
    heat = run_heat(contestant(rate=1e38), batches(), batches(1), steps=5)
    assert math.isinf(heat.final)
    assert not heat.failure


def test_what_a_step_raises_is_told_and_ends_the_heat():
    class Breaks:
        def learn(self, batch, index):
            if index == 2:
                raise ValueError("no third step\nand more")

        def loss(self, batch):
            return 1.0

    heat = run_heat(Breaks(), [1], [1], steps=5)
    assert heat.failure == "ValueError: no third step"
    assert math.isinf(heat.final)


def test_an_empty_heat_has_no_final_loss():
    assert math.isinf(Heat().final)


@pytest.mark.parametrize("training", [True, False])
def test_reading_the_loss_is_in_eval_and_records_nothing(training):
    racer = contestant(dropout=0.9)
    racer.module.train(training)
    assert racer.loss(batches(1)[0]) == racer.loss(batches(1)[0])
    assert all(p.grad is None for p in racer.module.parameters())
