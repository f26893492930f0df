import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stablelightning.callbacks.dealing import deal


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 60), st.integers(1, 5), st.integers(0, 9), st.integers(0, 10_000))
def test_parts_are_disjoint_hold_every_row_and_are_stratified(rows, parts, seed, drawn):
    generator = torch.Generator().manual_seed(drawn)
    target = torch.randint(0, 3, (rows,), generator=generator)
    dealt = deal(target, torch.randperm(rows, generator=generator), parts=parts, seed=seed)
    assert torch.cat(dealt).sort().values.tolist() == list(range(rows))
    for number in range(3):
        counts = [int((target[part] == number).sum()) for part in dealt]
        assert max(counts) - min(counts) <= 1


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 40), st.integers(2, 4), st.integers(0, 10_000))
def test_parts_do_not_depend_on_the_order_of_the_rows(rows, parts, drawn):
    generator = torch.Generator().manual_seed(drawn)
    target = torch.randn(rows, generator=generator)
    keys = torch.randint(0, 2**40, (rows,), generator=generator)
    order = torch.randperm(rows, generator=generator)
    here = [set(keys[part].tolist()) for part in deal(target, keys, parts=parts, seed=1)]
    there = deal(target[order], keys[order], parts=parts, seed=1)
    assert here == [set(keys[order][part].tolist()) for part in there]


def test_no_part_has_the_smaller_of_neighbouring_values():
    generator = torch.Generator().manual_seed(0)
    smaller = 0
    for seed in range(60):
        target = torch.randn(20, generator=generator)
        keys = torch.randint(2**60, (20,), generator=generator)
        first, second = deal(target, keys, parts=2, seed=seed)
        smaller += int(target[first].mean() < target[second].mean())
        order = target.argsort()
        assert bool((torch.isin(order, first).view(10, 2).sum(1) == 1).all())
    assert 15 < smaller < 45


def test_copies_of_a_row_stay_together():
    keys = torch.tensor([5, 9, 5, 7, 5, 9])
    dealt = deal(torch.tensor([0, 0, 1, 0, 0, 0]), keys, parts=3, seed=0)
    held = [set(keys[part].tolist()) for part in dealt]
    assert sum(map(len, held)) == 3


def test_another_seed_deals_otherwise():
    target, keys = torch.zeros(40), torch.arange(40)
    parts = [deal(target, keys, parts=2, seed=seed)[0].tolist() for seed in (0, 0, 1)]
    assert parts[0] == parts[1] != parts[2]


def test_rows_without_keys_go_by_their_order():
    first, second = deal(torch.tensor([0, 1] * 5), None, parts=2, seed=0)
    assert len(first) == len(second) == 5
