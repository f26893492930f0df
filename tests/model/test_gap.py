"""What a gap advises: each case by its numbers."""

import pytest
from torch import nn, optim

from stablelightning.model.gap import Gap, advise_on_gap, dropout_rates, is_adaptive

ADAM = optim.Adam(nn.Linear(1, 1).parameters())
SGD = optim.SGD(nn.Linear(1, 1).parameters(), lr=0.1)


def gaps(train, validation, number=3):
    return [Gap(step, train, validation) for step in range(number)]


def advice(train, validation, *, rates=(), optimizers=(SGD,), start=2.3, number=3):
    found = gaps(train, validation, number)
    return advise_on_gap(found, start=start, rates=list(rates), optimizers=optimizers)


@pytest.mark.parametrize(
    ("rates", "words"),
    [
        ([], "add_dropout"),
        ([0.1, 0.2], "from 0.2 to 0.3"),
        ([0.45], "from 0.45 to 0.5"),
        ([0.5], "add a penalty"),
        ([0.8], "add a penalty"),
    ],
)
def test_a_large_gap_asks_for_dropout_as_far_as_it_goes(rates, words):
    (said,) = advice(0.1, 0.8, rates=rates)
    assert words in said
    assert "8.0 times" in said


def test_a_large_gap_under_an_adaptive_optimizer_asks_for_nesterov():
    said = advice(0.1, 0.8, optimizers=[SGD, ADAM])
    assert len(said) == 2
    assert "Nesterov" in said[1]
    assert "1705.08292" in said[1]


def test_a_validation_loss_that_grows_again_asks_to_stop_early():
    measured = [Gap(1, 0.5, 0.4), Gap(2, 0.3, 0.5), Gap(3, 0.1, 0.7), Gap(4, 0.05, 0.9)]
    said = advise_on_gap(measured, start=2.3, rates=[0.2], optimizers=[SGD])
    assert any("0.4 at step 1" in sentence and "StopEarly" in sentence for sentence in said)


@pytest.mark.parametrize(("rate", "words"), [(0.5, "from 0.5 to 0.4"), (0.1, "Remove dropout")])
def test_an_underfit_asks_for_less_dropout(rate, words):
    (said,) = advice(1.0, 1.05, rates=[rate])
    assert words in said


@pytest.mark.parametrize(
    "case",
    [
        {"train": 0.1, "validation": 0.8, "number": 2},  # too few to judge
        {"train": 0.001, "validation": 0.05, "rates": [0.2]},  # both good
        {"train": 0.1, "validation": 0.11, "rates": [0.5]},  # learned, and no gap
        {"train": 1.0, "validation": 1.05},  # no dropout to take away
        {"train": 0.5, "validation": 0.7, "rates": [0.2]},  # an ordinary gap
        {"train": 0.8, "validation": 0.5, "rates": [0.2]},  # an easier validation set
    ],
    ids=str,
)
def test_nothing_is_advised_where_nothing_is_to_be_changed(case):
    assert advice(**case, optimizers=[ADAM]) == []


def test_losses_at_and_below_zero_are_no_error():
    assert advice(0.0, 0.0, rates=[0.2]) == []
    assert advice(-2.0, -1.95, rates=[0.2], start=-2.1) == []
    assert "far above" in advice(-1.0, 1.0)[0]


def test_rates_are_those_of_modules_that_drop():
    net = nn.Sequential(nn.Dropout(0.3), nn.LSTM(2, 2, num_layers=2, dropout=0.2), nn.Dropout(0.0))
    assert dropout_rates(net) == [0.3, 0.2]


@pytest.mark.parametrize(
    ("kind", "adaptive"),
    [
        (optim.SGD, False),
        (optim.Adam, True),
        (optim.RMSprop, True),
        (optim.Adagrad, True),
        (optim.Adadelta, True),
        (optim.LBFGS, False),
    ],
)
def test_which_optimizers_are_adaptive(kind, adaptive):
    assert is_adaptive(kind(nn.Linear(1, 1).parameters(), lr=0.1)) is adaptive
