"""The rule keeps what can be read, and opens what the labels can train."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stablelightning.errors import DataError
from stablelightning.functional.probe import ProbeScore
from stablelightning.model.probe import ProbeProfile
from stablelightning.model.transfer_choice import (
    TransferChoice,
    choose_transfer,
    labels_for_each,
)


def profile(*values, error=0.02, chance=0.1, classes=10):
    scores = tuple(None if v is None else ProbeScore(v, chance, error) for v in values)
    names = tuple(f"group{n}" for n in range(len(values)))
    kind = "accuracy" if classes else "r2"
    return ProbeProfile(kind, names, scores, 100, classes, 10)


RISING = profile(0.3, 0.5, 0.7, 0.8, 0.9)


@pytest.mark.parametrize(("labels", "opened"), [(1, 1), (3, 2), (10, 3), (50, 5), (99, 5)])
def test_a_near_task_opens_the_more_the_more_labels_there_are(labels, opened):
    choice = choose_transfer(RISING, labels)
    assert (choice.keep_layers, choice.open_groups) == (4, opened)
    assert choice.layer_decay is None
    assert choice.rate_below == 0.1
    assert not choice.redraws


def test_upper_layers_move_at_the_full_rate_where_the_task_is_read_as_well_below():
    choice = choose_transfer(profile(0.3, 0.5, 0.9, 0.92, 0.9), 10)
    assert (choice.keep_layers, choice.open_groups, choice.rate_below) == (4, 3, 1.0)
    assert "not lower further down" in choice.reason


def test_rates_are_those_of_the_choice():
    assert TransferChoice(3, 2, 3, True, None, "").factors() is None
    assert TransferChoice(3, 2, 3, True, 0.5, "").factors() == [0.25, 0.5, 1.0]
    assert TransferChoice(3, 2, 3, True, None, "", 0.1).factors() == [0.1, 0.1, 1.0]


def test_plenty_of_labels_open_everything_at_a_rate_for_each_layer():
    choice = choose_transfer(RISING, 100)
    assert (choice.keep_layers, choice.open_groups, choice.layer_decay) == (4, 5, 0.8)
    assert choice.at_once


def test_a_far_task_keeps_few_layers_and_opens_all():
    choice = choose_transfer(profile(0.5, 0.8, 0.6, 0.4, 0.2), 10)
    assert (choice.keep_layers, choice.open_groups, choice.at_once) == (1, 5, True)
    assert "what lies above group0 has lost what this task needs" in choice.reason
    assert choice.redraws


def test_the_lowest_group_is_kept_also_where_the_inputs_say_more():
    choice = choose_transfer(profile(0.9, 0.6, 0.5), 10)
    assert choice.keep_layers == 1
    assert "0.90 +- 0.02 in the inputs themselves" in choice.reason


def test_a_small_loss_towards_the_head_is_no_reason_to_forget():
    assert not choose_transfer(profile(0.8, 0.9, 0.80, error=0.001), 1000).redraws
    assert choose_transfer(profile(0.8, 0.9, 0.70, error=0.001), 1000).redraws


def test_a_loss_within_the_noise_is_no_reason_to_forget():
    assert not choose_transfer(profile(0.8, 0.9, 0.70, error=0.15), 10).redraws


def test_what_says_nothing_at_any_depth_opens_everything():
    choice = choose_transfer(profile(0.11, 0.12, 0.13, error=0.05), 10)
    assert (choice.keep_layers, choice.open_groups) == (2, 3)
    assert "nothing can be read" in choice.reason


def test_depths_that_were_not_probed_are_passed_over():
    assert choose_transfer(profile(None, 0.8, None, 0.9), 10).keep_layers == 3


def test_a_network_of_a_head_alone_has_one_choice():
    choice = choose_transfer(profile(0.9), 10)
    assert (choice.keep_layers, choice.open_groups) == (0, 1)


@given(
    st.lists(st.floats(-0.5, 1), min_size=1, max_size=12),
    st.floats(0.01, 1e6),
    st.floats(0.001, 0.3),
    st.booleans(),
)
def test_every_choice_is_one_that_can_be_made(values, labels, error, classes):
    seen = profile(*values, error=error, classes=10 if classes else 0)
    choice = choose_transfer(seen, labels)
    groups = len(values)
    assert 0 <= choice.keep_layers <= groups - 1
    assert 1 <= choice.open_groups <= groups
    opened = [choice.open_at(share / 20) for share in range(21)]
    assert opened == sorted(opened)
    assert opened[-1] == opened[6] == choice.open_groups
    assert opened[0] == (choice.open_groups if choice.at_once else 1)
    assert TransferChoice(**choice.to_dict()) == choice
    assert not (choice.redraws and choice.open_groups < groups)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=8), st.floats(1, 1e4), st.floats(1, 10))
def test_more_labels_never_open_less(values, labels, times):
    seen = profile(*values)
    assert (
        choose_transfer(seen, labels).open_groups
        <= choose_transfer(seen, labels * times).open_groups
    )


def test_the_reason_is_told_in_words():
    assert str(choose_transfer(RISING, 10)) == (
        "keep 4 groups of 4 below the head; open 3 of 5 groups, the head first, below the head at "
        "0.1 of its rate: 10 labels for each of 10 classes; the accuracy of a linear probe where "
        "the head reads is 0.90 +- 0.02, nowhere better, so that it is moved little; so few labels "
        "train the upper 50% of what is below the head"
    )
    numbers = choose_transfer(profile(0.2, 0.4, classes=0, chance=0.0), 12.0)
    assert "120 rows with numbers to predict; the explained variance" in str(numbers)


def test_labels_are_counted_for_each_class():
    assert labels_for_each(RISING, 50) == 5
    assert labels_for_each(profile(0.5, classes=0), 50) == 5


def test_no_labels_are_refused():
    with pytest.raises(DataError, match="labels_per_class must be > 0"):
        choose_transfer(RISING, 0)
