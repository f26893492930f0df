"""Methods of a module are replaced for a while, by several at once, and come back."""

from itertools import permutations

import pytest

from stablelightning.callbacks.steps import replace_method
from tests.callbacks.modules import Plain


def own(value):
    return lambda *_: value


@pytest.mark.parametrize("order", permutations(range(3)), ids=str)
@pytest.mark.parametrize("had_its_own", [False, True])
def test_replacements_are_undone_in_any_order(order, had_its_own):
    module = Plain()
    if had_its_own:
        module.loss = own("first")
    before = dict(vars(module))
    undo = [replace_method(module, "loss", own(number)) for number in range(3)]
    there = [0, 1, 2]
    for number in order:
        assert module.loss() == there[-1]
        undo[number]()
        there.remove(number)
    assert vars(module) == before
    assert replace_method(module, "loss", own("again"))() is None


def test_equal_functions_are_replaced_twice():
    module, same = Plain(), own(1)
    first, second = (replace_method(module, "loss", same) for _ in range(2))
    second()
    assert module.loss is same
    first()
    assert "loss" not in vars(module)
