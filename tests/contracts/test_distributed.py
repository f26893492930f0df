"""Every callback on two gloo processes."""

import pytest
import torch
from torch.utils.data import DistributedSampler

from stablelightning.model.monitor import QUANTITIES
from tests.callbacks.modules import data, quiet_trainer
from tests.contracts.distributed import ROWS, Distributed, run_on_two_processes
from tests.contracts.public import OBSERVERS, make, public_callbacks
from tests.contracts.test_callbacks import same
from tests.processes import WORLD

every_callback = pytest.mark.parametrize(
    "name", [kind.__name__ for kind in public_callbacks()], ids=str
)


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    return run_on_two_processes(tmp_path_factory.mktemp("distributed"))


@every_callback
def test_processes_agree(name, reports):
    first, second = (report[name] for report in reports)
    assert all(map(torch.equal, first["weights"], second["weights"]))
    # The module's own test_loss is logged without sync_dist, and is each process's own.
    own = reports[0]["none"]["metrics"][0].keys()
    logged = [{k: v for k, v in r["metrics"][0].items() if k not in own} for r in (first, second)]
    assert logged[0] == logged[1]


@every_callback
def test_a_repeat_gives_the_same_numbers(name, reports):
    once, again = reports[0][name]["metrics"]
    assert once == again


@every_callback
def test_observers_change_no_weight(name, reports):
    if name in OBSERVERS:
        pairs = zip(reports[0][name]["weights"], reports[0]["none"]["weights"], strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


@every_callback
def test_processes_keep_the_same_state(name, reports):
    first, second = (report[name]["state"] for report in reports)
    assert same(first, second)


def test_monitor_sees_the_units_of_every_process(reports):
    torch.manual_seed(0)
    model = Distributed()
    rows = data(24)
    # Lightning shuffles what it distributes for training.
    orders = [DistributedSampler(rows, WORLD, rank, shuffle=True, seed=0) for rank in range(WORLD)]
    first = [torch.stack([rows[i][0] for i in list(order)[:4]]) for order in orders]
    hidden = torch.cat([model.net[:3](part) for part in first]).detach()
    history = reports[0]["MonitorSignals"]["state"]["monitor"]["history"]
    place = QUANTITIES.index("activation_mean")
    mean, std = history["rows"][0, place : place + 2, 0].tolist()
    assert mean == pytest.approx(hidden.mean().item(), rel=1e-4)
    assert std == pytest.approx(hidden.var(0, correction=0).mean().sqrt().item(), rel=1e-4)
    assert reports[0]["MonitorSignals"]["state"]["monitor"]["units"]["rows"].tolist()[0] == 3 * 8


def test_uncertainty_counts_every_row_once(reports):
    first, second = (report["EstimateUncertainty"] for report in reports)
    rows = first["rows"]
    assert rows["index"].tolist() == list(range(ROWS))
    assert torch.equal(rows["target"], data(ROWS).tensors[1])
    assert second["rows"] == {}


def test_uncertainty_of_the_plain_pass_is_that_of_one_process(reports):
    model = Distributed()
    model.load_state_dict(
        dict(zip(model.state_dict(), reports[0]["EstimateUncertainty"]["weights"], strict=True))
    )
    callback = next(make(k) for k in public_callbacks() if k.__name__ == "EstimateUncertainty")
    quiet_trainer(callback).test(model, verbose=False)
    rows = reports[0]["EstimateUncertainty"]["rows"]
    torch.testing.assert_close(rows["deterministic"], callback.rows["deterministic"])
    metrics = reports[0]["EstimateUncertainty"]["metrics"][0]
    for name in ("accuracy", "nll", "brier", "ece"):
        expected = callback.results[f"uncertainty/{name}"]
        assert metrics[f"uncertainty/{name}"] == pytest.approx(expected, abs=1e-6)


def test_every_row_is_predicted_on_one_process(reports):
    predicted = [p for report in reports for p in report["EstimateUncertainty"]["predictions"]]
    assert sum(len(p.mean) for p in predicted) == ROWS


def test_one_process_that_steps_aside_stops_no_other(reports):
    assert [report["one rank fails"] for report in reports] == [[], []]
