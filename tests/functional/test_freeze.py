"""How many groups are open at a place of the training."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stablelightning.errors import RecipeError
from stablelightning.functional.freeze import check_open, gradually_open, open_after_probe


@given(st.integers(0, 10_000), st.integers(1, 500), st.integers(1, 60))
def test_one_more_after_each_stretch(done, every, groups):
    count = gradually_open(done, every=every, groups=groups)
    assert 1 <= count <= groups
    later = gradually_open(done + every, every=every, groups=groups)
    assert later == min(count + 1, groups)


@given(st.integers(1, 500), st.integers(1, 60))
def test_all_are_open_in_the_end_and_not_before(every, groups):
    last = every * (groups - 1)
    assert gradually_open(last, every=every, groups=groups) == groups
    if last:
        assert gradually_open(last - 1, every=every, groups=groups) == groups - 1


def test_probe_is_the_head_and_then_everything():
    assert open_after_probe(False, groups=7) == 1
    assert open_after_probe(True, groups=7) == 7


@pytest.mark.parametrize(("count", "words"), [(6, "at most 5, .* got 6"), (0, ">= 1, got 0")])
def test_open_groups_there_are(count, words):
    check_open(5, groups=5)
    with pytest.raises(RecipeError, match=words):
        check_open(count, groups=5)


@pytest.mark.parametrize(
    "settings",
    [
        {"done": -1, "every": 1, "groups": 1},
        {"done": 0, "every": 0, "groups": 1},
        {"done": 0, "every": 1, "groups": 0},
        {"done": 0, "every": 1.5, "groups": 2},
    ],
)
def test_nonsense_is_refused(settings):
    with pytest.raises(RecipeError, match="must be a whole number"):
        gradually_open(settings.pop("done"), **settings)
