"""Watching, preserving and restoring the generators of torch, Python and NumPy."""

import random

import numpy as np
import pytest
import torch

from stablelightning.model.generators import (
    GeneratorState,
    GeneratorWatch,
    HostGeneratorWatch,
    preserved_generators,
    undisturbed_generators,
)


@pytest.mark.parametrize(
    "draw",
    [
        lambda: torch.rand(1),
        lambda: torch.randperm(3),
        lambda: torch.nn.functional.dropout(torch.ones(2)),
        lambda: torch.manual_seed(99),
    ],
)
def test_a_watch_sees_every_draw_of_torch(draw) -> None:
    watch = GeneratorWatch()
    assert not watch.moved()
    draw()
    assert watch.moved()


@pytest.mark.parametrize(
    "steady",
    [
        lambda: torch.ones(3).sum(),
        lambda: torch.rand(3, generator=torch.Generator()),
        lambda: torch.nn.functional.dropout(torch.ones(2), training=False),
        lambda: random.random(),
    ],
)
def test_a_watch_sees_nothing_else(steady) -> None:
    watch = GeneratorWatch()
    steady()
    assert not watch.moved()


def test_the_hosts_generators_are_watched_apart() -> None:
    for draw, moves in (
        (random.random, True),
        (np.random.rand, True),
        (lambda: torch.rand(1), False),
        (lambda: random.Random(1).random(), False),
        (lambda: np.random.default_rng(1).random(), False),
    ):
        watch = HostGeneratorWatch()
        draw()
        assert watch.moved() == moves


def draws() -> tuple[float, float, float]:
    return torch.rand(1).item(), random.random(), float(np.random.rand())


def test_preserved_generators_start_from_a_seed_and_come_back() -> None:
    with preserved_generators(7):
        first = torch.rand(3)
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    with pytest.raises(ValueError, match="inside"), preserved_generators(7):  # noqa: PT012
        assert torch.equal(torch.rand(3), first)
        raise ValueError("inside")
    assert torch.equal(torch.rand(3), expected)


def test_undisturbed_generators_are_all_as_they_were() -> None:
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = draws()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    with pytest.raises(ValueError, match="inside"), undisturbed_generators():  # noqa: PT012
        draws()
        raise ValueError("inside")
    assert draws() == expected


def test_a_state_can_be_restored_more_than_once() -> None:
    state = GeneratorState()
    first = torch.rand(3)
    for _ in range(2):
        state.restore()
        assert torch.equal(torch.rand(3), first)
