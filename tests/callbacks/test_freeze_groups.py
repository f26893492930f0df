"""Which parts of a module are opened, and which are left as they are."""

import pytest
import torch
from torch import nn

from stablelightning.callbacks.freeze_groups import Groups, complete_optimizers, tell_of_idle
from stablelightning.errors import RecipeError
from stablelightning.model.depth import depth_groups
from stablelightning.words import some
from tests.callbacks.frozen import GROUPS, Deep, made


class Counts(Deep):
    """With a table of whole numbers among its parameters, as quantized layers have."""

    def __init__(self) -> None:
        super().__init__()
        table = torch.zeros(3, dtype=torch.int8)
        self.net[3].register_parameter("table", nn.Parameter(table, requires_grad=False))


def names(groups: Groups, model: Deep) -> set[str]:
    managed = {id(p) for p in groups.managed}
    return {name for name, p in model.named_parameters() if id(p) in managed}


def test_everything_is_managed():
    model = made()
    groups = Groups(model, named=None, exclude=[])
    assert names(groups, model) == set(dict(model.named_parameters()))
    assert [group.name for group in groups.cut(model)] == GROUPS
    assert groups.frozen_by_hand == []


def test_a_whole_group_was_frozen_by_hand_and_a_part_by_its_author():
    model = made()
    model.net[:2].requires_grad_(False)
    model.net[4].weight.requires_grad_(False)
    groups = Groups(model, named=None, exclude=[])
    assert groups.frozen_by_hand == ["net.0.weight", "net.0.bias", "net.1.weight", "net.1.bias"]
    assert set(dict(model.named_parameters())) - names(groups, model) == {"net.4.weight"}


def test_whole_numbers_are_left():
    model = made(Counts)
    groups = Groups(model, named=None, exclude=[])
    assert "net.3.table" not in names(groups, model)
    assert "net.3.weight" in names(groups, model)


def test_what_is_excluded_needs_no_group():
    model = made()
    groups = Groups(
        model, named=[["net.3", "net.4", "net.7"], "net.10"], exclude=["net.0", "net.1", "net.8"]
    )
    assert [group.name for group in groups.cut(model)] == ["net.3, net.4, net.7", "net.10"]


def test_an_excluded_name_that_is_in_no_place():
    with pytest.raises(RecipeError, match=r"got 'nett\.10'; did you mean 'net\.10'"):
        Groups(made(), named=None, exclude=["nett.10"])


def test_an_optimizer_that_has_shared_out_its_parameters_is_refused():
    class ZeroRedundancyOptimizer(torch.optim.SGD):
        """By its name, since torch's own needs processes."""

    model = made()
    found = depth_groups(model)
    shared = ZeroRedundancyOptimizer(model.net[10].parameters(), lr=0.1)
    with pytest.raises(RecipeError, match="give it all parameters"):
        complete_optimizers([shared], model, found, name="Plan")
    whole = ZeroRedundancyOptimizer(model.parameters(), lr=0.1)
    assert complete_optimizers([whole], model, found, name="Plan") == []


def test_nothing_is_missing_where_there_is_no_optimizer():
    model = made()
    assert complete_optimizers([], model, depth_groups(model), name="Plan") == []


def test_a_few_names():
    assert some(["a"]) == "a"
    assert some(list("abcdef")) == "a, b, c, d and 2 more"


def test_one_of_two_optimizers_that_has_nothing_to_train_is_named(caplog):
    generator, critic = nn.Linear(2, 2), nn.Linear(2, 1)
    optimizers = [torch.optim.SGD(part.parameters(), lr=0.1) for part in (generator, critic)]
    with caplog.at_level("INFO", logger="lightning.pytorch.utilities.rank_zero"):
        tell_of_idle(optimizers, name="Plan")
        assert not caplog.messages
        generator.requires_grad_(False)
        tell_of_idle(optimizers[:1], name="Plan")
        assert not caplog.messages
        tell_of_idle(optimizers, name="Plan")
    (said,) = caplog.messages
    assert said.startswith("Plan: optimizer 0 of 2 has nothing to train yet")
