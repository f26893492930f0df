"""Latency: what is measured on what, and what is told; how fast it is, nobody asserts."""

import json

import pytest
import torch
from torch import nn

from stablelightning.errors import DataError, ModelError, RecipeError
from stablelightning.model.latency import Latency, LatencyReport, measure_latency, with_rows

X = torch.randn(4, 6)


def model(*more: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(6, 3), nn.BatchNorm1d(3), nn.ReLU(), *more)


def test_all_four_are_measured_at_every_batch_size():
    report = measure_latency(model(nn.Dropout(0.5)), X, batch_sizes=[9, 1], seconds=60, samples=4)
    assert [row.batch_size for row in report.rows] == [1, 9]
    for row in report.rows:
        times = (row.one_pass, row.one_pass_folded, row.sampled, row.sampled_folded)
        assert all(time > 0 for time in times)
    assert report.folded == 1
    assert report.notes == []
    assert report.rounds >= 3


def test_the_model_is_left_as_it_is():
    net = model(nn.Dropout(0.5)).train()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    state = torch.get_rng_state()
    measure_latency(net, X, seconds=0.01)
    assert net.training
    assert isinstance(net[1], nn.BatchNorm1d)
    after = net.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert torch.equal(torch.get_rng_state(), state)


def test_without_anything_random_there_are_no_samples():
    report = measure_latency(model(), X, batch_sizes=[1], seconds=0.01)
    (row,) = report.rows
    assert row.sampled is row.sampled_folded is None
    assert row.one_pass_folded is not None
    assert "samples" not in str(report)


def test_without_batch_norm_there_is_nothing_folded():
    report = measure_latency(nn.Linear(6, 3), X, batch_sizes=[1], seconds=0.01)
    assert report.rows[0].one_pass_folded is None
    assert "folded" not in str(report)


def test_what_folding_refuses_is_told():
    net = torch.compile(model(), backend="eager")
    report = measure_latency(net, X, batch_sizes=[1], seconds=0.01)
    assert "is compiled" in report.notes[0]
    assert report.folding is None


class Slow(nn.Linear):
    """Counts its calls, and pretends to be slow by many products."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(300):
            x = super().forward(x)
        return x


def test_large_batches_are_left_out_where_time_is_short():
    report = measure_latency(Slow(6, 6), X, batch_sizes=[1, 1000], seconds=1e-4)
    assert [row.batch_size for row in report.rows] == [1]
    assert "1000" in report.notes[0]


def test_rows_are_repeated_and_cut_and_nothing_else():
    inputs = {"x": torch.arange(3), "table": torch.eye(2), "flag": True}
    changed = with_rows(inputs, 5)
    assert changed["x"].tolist() == [0, 1, 2, 0, 1]
    assert torch.equal(changed["table"], inputs["table"])
    assert changed["flag"] is True
    assert with_rows(torch.arange(3), 2).tolist() == [0, 1]
    with pytest.raises(DataError, match="has rows"):
        with_rows({"x": 1}, 2)


def test_a_trainer_is_not_copied():
    net = model()
    net._trainer = _Uncopied()
    assert measure_latency(net, X, batch_sizes=[1], seconds=0.01).folded == 1
    net.other = _Uncopied()
    with pytest.raises(ModelError, match="must be copied"):
        measure_latency(net, X, batch_sizes=[1], seconds=0.01)


class _Uncopied:
    def __deepcopy__(self, memo: object) -> None:
        raise RuntimeError("a socket")


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"batch_sizes": []}, "at least one"),
        ({"batch_sizes": [0]}, "batch_sizes must be whole numbers >= 1"),
        ({"samples": 0}, "samples must be"),
        ({"samples": True}, "samples must be"),
        ({"seconds": 0}, "seconds must be > 0"),
    ],
)
def test_bad_settings(settings, why):
    with pytest.raises(RecipeError, match=why):
        measure_latency(model(), X, **settings)


def report() -> LatencyReport:
    rows = [Latency(1, 0.004, 0.002, 0.02, 0.01), Latency(8, 0.03)]
    return LatencyReport(rows, 20, 7, "cpu, 1 thread", notes=["more"])


def test_the_numbers_are_in_milliseconds():
    numbers = report().numbers()
    assert numbers["latency/one_pass_ms/1"] == pytest.approx(4.0)
    assert numbers["latency/sampled_folded_ms/1"] == pytest.approx(10.0)
    assert "latency/one_pass_folded_ms/8" not in numbers
    assert json.dumps(report().to_dict())


def test_the_table_has_a_column_only_for_what_was_measured():
    columns, rows = report().rows_for_table()
    assert columns == ["batch", "one pass (ms)", "20 samples (ms)"]
    assert rows[1] == [8, 30.0, None]
    assert str(report()).endswith("more")


def test_a_batch_size_whose_plain_pass_takes_too_long_is_left_out_with_its_folded_one(monkeypatch):
    took = iter([0.02, 0.001])  # somebody interrupted the first call: 8 times that is too long
    monkeypatch.setattr("stablelightning.model.latency._seconds", lambda _: next(took, 0.001))
    report = measure_latency(model(), X, batch_sizes=[1, 8], seconds=1.0, samples=1)
    assert [row.batch_size for row in report.rows] == [1]
    assert report.notes == ["not all was measured at batches of 8: 1 s is too short"]


def test_the_line_says_which_time_is_the_folded_one():
    report = LatencyReport([Latency(1, 0.004, 0.002, 0.03, 0.02)], 20, 5, "cpu, 1 thread")
    assert report.summary() == (
        "a pass over one row takes 4 ms, and 2 ms with 0 folded norms; "
        "20 samples take 30 ms, and 20 ms folded"
    )
