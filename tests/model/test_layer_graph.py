"""Ways around layers, against paths counted by hand."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from stablelightning.model.layer_graph import gates_only, unavoidable


def paths(reads, end):
    if not reads[end]:
        return [[end]] if end == 0 else []
    return [[*path, end] for earlier in reads[end] for path in paths(reads, earlier)]


@st.composite
def networks(draw):
    count = draw(st.integers(2, 9))
    later = {i: set(draw(st.lists(st.integers(0, i - 1), min_size=1))) for i in range(1, count)}
    return {0: set(), **later}


@given(networks())
def test_unavoidable_are_the_layers_on_every_path(reads):
    end = max(reads)
    expected = set.intersection(*(set(path) for path in paths(reads, end)))
    assert unavoidable(reads, ends=[end], starts=[0]) == expected


def test_a_chain_is_unavoidable_and_a_residual_branch_is_not():
    assert unavoidable({0: [], 1: [0], 2: [1]}, ends=[2], starts=[0]) == {0, 1, 2}
    skip = {0: [], 1: [0], 2: [1], 3: [0, 2], 4: [3]}
    assert unavoidable(skip, ends=[4], starts=[0]) == {0, 3, 4}


def test_a_learned_constant_is_no_way_around():
    token = {0: [], 1: [], 2: [0, 1]}
    assert unavoidable(token, ends=[2], starts=[0]) == {0, 2}


def test_two_heads_share_what_comes_before_both():
    assert unavoidable({0: [], 1: [0], 2: [1], 3: [1]}, ends=[2, 3], starts=[0]) == {0, 1}


@given(networks(), st.data())
def test_gates_reach_the_end_through_gates_only(reads, data):
    gated = data.draw(st.sets(st.sampled_from(sorted(reads))))
    end = max(reads)
    found = gates_only(reads, ends=[end], gated=gated)
    assert end not in found
    for layer in found - gated:
        open_ways = [p for p in paths(reads, end) if layer in p]
        assert all(set(p[p.index(layer) :]) & gated for p in open_ways)
    assert all(a < b for path in paths(reads, end) for a, b in pairwise(path))
