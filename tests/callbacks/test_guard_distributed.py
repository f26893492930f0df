"""Two processes decide alike, and a bad batch on one of them leaves nothing behind on either."""

import pytest

from tests.callbacks.guard_processes import PLACES, WORLD, run_on_two_processes
from tests.callbacks.guarded import different, same

RANKS = range(WORLD)


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    return run_on_two_processes(tmp_path_factory.mktemp("guard"))


def of_both(reports, name):
    return [{k: v for k, v in r[name].items() if k not in ("guard", "skipped")} for r in reports]


@pytest.mark.parametrize(
    ("guarded", "clean"),
    [
        ("guarded", "clean"),
        ("one bad", "clean"),
        ("spike", "without spike"),
        ("manual one bad", "manual clean"),
        *((f"accumulated {place}", f"left out {place}") for place in PLACES),
    ],
)
def test_a_run_is_that_without_the_bad_batch(guarded, clean, reports):
    for got, expected in zip(of_both(reports, guarded), of_both(reports, clean), strict=True):
        assert different(expected, got) == []


@pytest.mark.parametrize(
    "name", ["one bad", "spike", "manual one bad", *(f"accumulated {n}" for n in PLACES)]
)
def test_one_batch_was_undone_on_both(name, reports):
    assert [report[name]["skipped"] for report in reports] == [1, 1]


@pytest.mark.parametrize("name", ["one bad", "spike", "gone back", "accumulated 3", "gave up"])
def test_processes_hold_the_same_weights_and_the_same_state(name, reports):
    first, second = (report[name] for report in reports)
    trained = [
        {k: v for k, v in r["weights"].items() if "running" not in k and "metric" not in k}
        for r in (first, second)
    ]
    assert same(*trained)
    assert all(value.isfinite().all() for r in (first, second) for value in r["weights"].values())
    assert same(first["optimizers"], second["optimizers"])
    for key in ("trips", "learning_rate_factor", "batches", "judge"):
        assert same(first["guard"][key], second["guard"][key])
    assert first["guard"]["events"]["events"] == second["guard"]["events"]["events"]


def test_the_process_at_fault_is_named(reports):
    event = reports[0]["one bad"]["guard"]["events"]["events"][0]
    assert event["process"] == 1
    assert event["cause"] == "poisoned batch"


def test_both_go_back(reports):
    assert [r["gone back"]["guard"]["learning_rate_factor"] for r in reports] == [0.5, 0.5]


def test_both_give_up(reports):
    assert all("gave up after 0 rollbacks" in report["gave up"]["error"] for report in reports)
