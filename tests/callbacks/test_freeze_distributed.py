"""Two processes hold the same weights to the bit, whatever is opened in between."""

import pytest
import torch

from tests.callbacks.freeze_processes import run_on_two_processes, single_process
from tests.callbacks.frozen import groups_of, moved

ALL = [["net.10"], ["net.7"], ["net.3"], ["net.0"]]
PLANS = [
    "epochs",
    "head only",
    "steps",
    "accumulated",
    "steps accumulated",
    "finding unused",
    "views",
    "manual",
    "rates",
]


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    return run_on_two_processes(tmp_path_factory.mktemp("freeze"))


@pytest.mark.parametrize("name", PLANS)
def test_processes_never_differ(name, reports):
    for report in reports:
        assert max(report[name]["differences"]) == 0.0
    first, second = (report[name] for report in reports)
    assert first["opened"] == second["opened"] == ALL


@pytest.mark.parametrize("name", PLANS)
def test_all_that_was_opened_has_learned(name, reports):
    outcome = reports[0][name]
    assert groups_of(moved(outcome["before"], outcome["after"])) == sorted(
        (group for opened in ALL for group in opened), key=lambda name: int(name[4:])
    )
    assert outcome["trained"][0] < outcome["trained"][-1]


def test_the_comparison_sees_what_ddp_is_not_told(reports):
    assert max(reports[0]["not told"]["differences"]) > 1e-3


@pytest.mark.parametrize("rank", [0, 1])
def test_gradients_are_those_of_all_rows(rank, reports):
    """One process with the rows of both: neither half of the gradient is lost, nor one doubled."""
    expected = single_process()
    got = reports[rank]["plain"]["after"]
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("rank", [0, 1])
def test_one_wrapper_is_alive_at_a_time(rank, reports):
    assert reports[rank]["plain"]["wrappers"] == 4 * [1]


@pytest.mark.parametrize("rank", [0, 1])
def test_statistics_of_frozen_norms_stand_still_on_every_process(rank, reports):
    statistics = reports[rank]["statistics"]
    assert len(statistics["frozen"]) == 2
    assert moved(statistics["before"], statistics["after"]) == set()


def test_a_resumed_run_equals_the_unbroken_one(reports):
    resumed = reports[0]["resumed"]
    assert moved(resumed["whole"], resumed["part"]) == set()
    assert max(resumed["differences"]) == 0.0


def test_flags_are_as_before(reports):
    assert all(all(report["epochs"]["flags"]) for report in reports)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_static_graph_is_refused_in_words(rank, reports):
    assert "static_graph" in reports[rank]["static graph"]["refused"]
