"""Two and three processes: every row is predicted once, and means are those of one process."""

import os

import pandas
import pytest
import torch

from tests.callbacks import predict_processes
from tests.callbacks.predict_processes import ROWS, all_tests, folder_for, one_breaks
from tests.processes import reports_of


@pytest.fixture(scope="module", params=[2, 3], ids=["two", "three"])
def run(request, tmp_path_factory):
    """The folder that was written to, what each process reports, and how many there are."""
    folder = tmp_path_factory.mktemp("written")
    folder_for(folder)
    report = {2: predict_processes.two, 3: predict_processes.three}[request.param]
    return folder, reports_of(report, tmp_path_factory.mktemp("reports"), world=request.param)


@pytest.fixture(scope="module")
def alone():
    return all_tests(1)


@pytest.mark.parametrize("name", ["rows", "shuffled", "tells"])
def test_every_row_stands_once_and_in_the_order_of_the_dataset(run, name):
    folder, reports = run
    told = {report["predictions"][name] for report in reports}
    assert told == {(str(folder / f"{name}.parquet"), ROWS)}
    table = pandas.read_parquet(folder / f"{name}.parquet")
    assert list(table["index"]) == list(range(ROWS))
    assert list(table["number"]) == list(range(ROWS))


def test_what_is_predicted_does_not_depend_on_the_processes(run):
    scores = [pandas.read_parquet(run[0] / f"{n}.parquet").filter(like="score") for n in FILES]
    for other in scores[1:]:
        assert other.to_numpy() == pytest.approx(scores[0].to_numpy(), abs=1e-6)


FILES = ("rows", "shuffled", "tells")


def test_several_dataloaders_stand_one_behind_the_other(run):
    table = pandas.read_parquet(run[0] / "several.parquet")
    assert list(table["dataloader"]) == [0] * ROWS + [1] * 7
    assert list(table["number"]) == [*range(ROWS), *range(7)]


def test_uncertainty_stands_beside_the_mean(run):
    table = pandas.read_parquet(run[0] / "sampled.parquet")
    assert list(table["index"]) == list(range(ROWS))
    assert {"prediction", "mean_0", "total", "epistemic", "variation_ratio"} <= set(table)


def test_nothing_is_left_beside_the_files(run):
    names = ("rows", "shuffled", "several", "tells", "sampled")
    assert sorted(os.listdir(run[0])) == sorted(f"{name}.parquet" for name in names)


def test_rows_without_a_place_are_refused_on_every_process(run):
    for report in run[1]:
        assert "Stream has none; predict with devices=1" in report["predictions"]["stream"]


def test_processes_that_shuffle_each_in_its_own_way_are_told_so(run):
    errors = {report["predictions"]["own shuffle"] for report in run[1]}
    assert len(errors) == 1
    assert "each process shuffles in its own way; give shuffle=False" in errors.pop()


WAYS = ("classes", "validation", "two loaders", "few rows", "words", "regression")


@pytest.mark.parametrize("way", WAYS)
def test_means_over_processes_are_those_of_one(run, alone, way):
    for report in run[1]:
        logged = report["tests"][way]
        assert logged.keys() == alone[way].keys()
        assert logged == pytest.approx(alone[way], abs=1e-6)
        assert any("loss" in name for name in logged)


ENDED = (
    torch.multiprocessing.ProcessRaisedException,
    torch.multiprocessing.ProcessExitedException,
)


def test_a_process_that_breaks_leaves_the_old_file(tmp_path):
    old = tmp_path / "predictions.parquet"
    old.write_text("old")
    folder_for(tmp_path)
    with pytest.raises(ENDED):
        reports_of(one_breaks, tmp_path)
    assert (tmp_path / "broken.txt").exists()
    assert old.read_text() == "old"
    assert [name for name in os.listdir(tmp_path) if name.endswith("parquet")] == [old.name]
