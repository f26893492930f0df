"""Balanced masks: each one fair, stratified over the samples, units independent."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stablelightning.errors import RecipeError
from stablelightning.functional.masks import (
    balanced_masks,
    draw_counts,
    fair_mask,
    next_balanced_,
    uniform_integers,
)

UNITS = 20_000

#: Standard errors that a frequency may be away: by chance once in ten million.
FAR = 5.4

rates = st.floats(0.02, 0.98)
seeds = st.integers(0, 2**32 - 1)
counts = st.integers(1, 40)


def drawn(samples: int, keep: float, seed: int, shape: tuple[int, ...] = (UNITS,)) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return balanced_masks(shape, samples=samples, keep=keep, generator=generator)


def near(frequency: float, expected: float, number: int) -> bool:
    error = math.sqrt(max(expected * (1 - expected), 1 / number) / number)
    return abs(frequency - expected) < FAR * error + 2 / 65536


@given(counts, rates, seeds)
@settings(max_examples=30, deadline=None)
def test_each_unit_is_kept_equally_often(samples: int, keep: float, seed: int) -> None:
    kept = drawn(samples, keep, seed, (500,)).sum(0)
    assert kept.min() >= math.floor(samples * keep + 1e-9)
    assert kept.max() <= math.ceil(samples * keep - 1e-9)


@given(counts, rates, seeds)
@settings(max_examples=15, deadline=None)
def test_every_sample_is_a_fair_mask(samples: int, keep: float, seed: int) -> None:
    for mask in drawn(samples, keep, seed):
        assert near(float(mask.float().mean()), keep, UNITS)


@given(st.integers(2, 24), seeds)
@settings(max_examples=15, deadline=None)
def test_two_samples_share_a_unit_as_often_as_strata_say(samples: int, seed: int) -> None:
    """Of ``k`` kept in T samples: k (k - 1) / (T (T - 1)), for every two samples."""
    kept = samples // 2
    masks = drawn(samples, kept / samples, seed)
    together = kept * (kept - 1) / (samples * (samples - 1))
    for first, second in ((0, 1), (0, samples - 1), (samples // 2, samples // 2 - 1)):
        if first != second:
            both = float((masks[first] & masks[second]).float().mean())
            assert near(both, together, UNITS)


@given(st.integers(1, 20), rates, seeds)
@settings(max_examples=15, deadline=None)
def test_units_are_independent_within_and_between_samples(
    samples: int, keep: float, seed: int
) -> None:
    masks = drawn(samples, keep, seed)
    for first, second in ((0, 0), (0, samples - 1)):
        both = float((masks[first, :-1] & masks[second, 1:]).float().mean())
        assert near(both, keep * keep, UNITS)


@given(rates, seeds)
@settings(max_examples=15, deadline=None)
def test_one_sample_is_an_ordinary_mask(keep: float, seed: int) -> None:
    masks = drawn(1, keep, seed)
    assert masks.shape == (1, UNITS)
    assert near(float(masks.float().mean()), keep, UNITS)


@pytest.mark.parametrize(
    ("order", "factor"), [(1, 0.0), (2, 8 / 7), (3, 1 - 1 / 49)], ids=["alone", "pairs", "triples"]
)
def test_the_variance_of_a_mean_follows_the_formula(order: int, factor: float) -> None:
    """A product of centred units is one part of the ANOVA; replicas are rows."""
    masks = drawn(8, 0.5, seed=7, shape=(60_000, order))
    means = (2.0 * masks - 1).prod(-1).mean(0)
    assert float(means.var()) * 8 == pytest.approx(factor, abs=0.03)


@pytest.mark.parametrize("keep", [0.0, 1.0])
def test_certainties_are_exact(keep: float) -> None:
    assert (drawn(5, keep, 0) == bool(keep)).all()


def test_more_samples_than_sixteen_bits_count() -> None:
    masks = drawn(32_800, 0.5, 0, (3,))
    assert (masks.sum(0) == 16_400).all()


def test_each_integer_is_as_likely_as_its_share() -> None:
    every = torch.arange(-32768, 32768).to(torch.int16)
    for keep in (0.0, 0.25, 0.3, 0.999, 1.0):
        assert int(fair_mask(every, keep).sum()) == math.ceil(keep * 65536)
    assert int(draw_counts(every, keep=0.25, samples=2).sum()) == 32768
    remaining = torch.full((65536,), 3, dtype=torch.int16)
    assert int(next_balanced_(remaining, every, left=4).sum()) == 49152
    assert int(remaining.sum()) == 3 * 65536 - 49152


@given(st.integers(1, 9), st.integers(1, 70), seeds)
@settings(max_examples=25, deadline=None)
def test_integers_drawn_together_are_those_drawn_apart(number: int, size: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    together = uniform_integers((size,), generator=generator, number=number)
    generator.manual_seed(seed)
    apart = [uniform_integers((size,), generator=generator) for _ in range(number)]
    assert torch.equal(together, torch.stack(apart))


@pytest.mark.parametrize("keep", [-0.1, 1.5, float("nan")])
def test_a_probability_out_of_range_is_refused(keep: float) -> None:
    with pytest.raises(RecipeError, match=r"keep must be in \[0, 1\], got"):
        drawn(4, keep, 0)


def test_no_samples_are_refused() -> None:
    with pytest.raises(RecipeError, match="samples must be a whole number >= 1, got 0"):
        drawn(0, 0.5, 0)
