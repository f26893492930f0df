"""Two processes: one W&B run, one summary, the same numbers on a repeat."""

import json

import pytest

from tests.cli.commands import QUICK, stablelightning
from tests.report.offline import read_offline_run

ARGUMENTS = ("run", "digits", "--add", "multi_gpu", "--trainer.accelerator=cpu", *QUICK)


@pytest.fixture(scope="module")
def twice(tmp_path_factory):
    """The same run by both doors of the command: each starts its second process by itself."""
    cwd = tmp_path_factory.mktemp("two_processes")
    for script in (True, False):
        done = stablelightning(*ARGUMENTS, cwd=cwd, script=script)
        assert done.returncode == 0, done.stderr
    return [cwd / "runs" / f"digits-{number}" for number in (1, 2)]


def test_both_processes_share_one_folder(twice):
    assert sorted(path.name for path in twice[0].parent.iterdir()) == ["digits-1", "digits-2"]
    for folder in twice:
        assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == [
            "best.ckpt",
            "last.ckpt",
        ]
        assert len(list(folder.rglob("summary.json"))) == 1


def test_there_is_one_wandb_run_with_the_numbers(twice):
    summary = json.loads((twice[0] / "summary.json").read_text())
    assert len(list(twice[0].rglob("*.wandb"))) == 1
    run = read_offline_run(twice[0] / "wandb")
    assert set(summary) <= run.metrics
    assert run.exit_code == 0


def test_a_repeat_gives_the_same_numbers(twice):
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in twice]
    timed = ("run/seconds", "latency/")
    one, two = ({k: v for k, v in s.items() if not k.startswith(timed)} for s in summaries)
    assert one == two
    assert "test/accuracy" in one


def test_every_test_row_is_predicted_once(twice):
    pandas = pytest.importorskip("pandas")
    table = pandas.read_parquet(twice[0] / "predictions.parquet")
    assert list(table["index"]) == list(range(len(table)))
    assert len(table) == 289  # a fifth of the 1,443 digits that are not held out, rounded
