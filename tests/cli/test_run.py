"""A real run of the digits, and everything that it leaves."""

import json
from pathlib import Path

import pytest
import torch
import yaml

from tests.cli.commands import QUICK, stablelightning
from tests.report.offline import read_offline_run

pandas = pytest.importorskip("pandas")
Image = pytest.importorskip("PIL.Image")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One run, through the installed script, in a folder that has nothing to do with the clone."""
    cwd = tmp_path_factory.mktemp("elsewhere")
    done = stablelightning("run", "digits", *QUICK, "--output=out", cwd=cwd, script=True)
    assert done.returncode == 0, done.stderr
    return done, cwd / "out"


@pytest.fixture(scope="module")
def folder(finished) -> Path:
    return finished[1]


@pytest.fixture(scope="module")
def summary(folder) -> dict[str, float]:
    return json.loads((folder / "summary.json").read_text())


def test_nothing_but_the_folder_is_left(folder):
    assert [path.name for path in folder.parent.iterdir()] == ["out"]
    assert {path.name for path in folder.iterdir()} == {
        "checkpoints",
        "config.yaml",
        "plots",
        "predictions.parquet",
        "summary.json",
        "wandb",
    }


@pytest.mark.parametrize("score", ["accuracy", "nll", "brier", "ece"])
def test_summary_holds_each_score_of_one_pass_and_of_the_samples(summary, score):
    for suffix in ("", "_mc"):
        assert 0 <= summary[f"uncertainty/{score}{suffix}"] < 3


@pytest.mark.parametrize("unknown", ["held_out_digits", "rotated_digits"])
@pytest.mark.parametrize("score", ["predictive_entropy", "mutual_information", "max_softmax"])
def test_summary_holds_how_well_unknown_inputs_are_noticed(summary, unknown, score):
    assert 0.5 < summary[f"ood/{unknown}/auroc_{score}"] <= 1


def test_summary_holds_samples_and_seconds(summary):
    assert summary["uncertainty/samples_used"] == 4
    assert summary["run/seconds"] > 0
    assert all(isinstance(value, float) for value in summary.values())


def test_predictions_have_one_row_per_test_input(folder, summary):
    table = pandas.read_parquet(folder / "predictions.parquet")
    assert list(table["index"]) == list(range(len(table)))
    assert {"target", "mean_0", "mean_7", "total", "aleatoric", "epistemic"} <= set(table.columns)
    means = table[[f"mean_{i}" for i in range(8)]]
    assert means.sum(axis=1).between(0.999, 1.001).all()
    accuracy = (means.to_numpy().argmax(1) == table["target"]).mean()
    assert accuracy == pytest.approx(summary["uncertainty/accuracy_mc"])


def test_predictions_say_which_row_of_the_data_each_one_is(folder):
    digits = pytest.importorskip("sklearn.datasets").load_digits().target
    table = pandas.read_parquet(folder / "predictions.parquet")
    assert table["row"].is_unique
    assert list(digits[table["row"]]) == list(table["target"])  # 8 and 9 are held out


def test_plots_are_images(folder):
    plots = {path.stem: path.read_bytes() for path in (folder / "plots").glob("*.png")}
    assert set(plots) == {
        "decomposition",
        "latency",
        "most_uncertain",
        "out_of_distribution",
        "reliability",
        "risk_coverage",
    }
    assert all(data.startswith(b"\x89PNG") and len(data) > 5000 for data in plots.values())


def test_best_and_last_checkpoint_are_kept(folder):
    names = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert names == ["best.ckpt", "last.ckpt"]
    last = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["epoch"] == 1


def test_terminal_shows_the_table_and_where_all_lies(finished):
    done, folder = finished
    assert "expected calibration error" in done.stdout
    assert "held out digits" in done.stdout
    assert f"Results: {folder}" in done.stdout
    assert done.stderr.count("wandb sync") == 1


def test_terminal_is_quiet(finished):
    done, _ = finished
    text = done.stdout + done.stderr
    for chatter in ("Tip", "GPU available", "num_workers", "Warning", "deprecated", "Restoring"):
        assert chatter not in text


def test_wandb_holds_every_number_the_recipe_the_plots_and_the_table(folder, summary):
    run = read_offline_run(folder / "wandb")
    assert set(summary) <= run.metrics
    assert {"train/loss", "val/loss"} <= run.metrics
    assert run.config["model"]["init_args"]["network"]["class_path"] == "stablelightning.nn.MLP"
    assert run.exit_code == 0


def test_every_picture_and_table_of_wandb_has_arrived(folder):
    run = read_offline_run(folder / "wandb")
    told = {key: value for row in run.history for key, value in row.items()}
    (files,) = (folder / "wandb").glob("offline-run-*/files")
    for plot in (folder / "plots").glob("*.png"):
        group = "report" if plot.stem == "latency" else "uncertainty"
        sent = files / told[f"{group}/{plot.stem}/path"]
        with Image.open(sent) as there, Image.open(plot) as here:
            assert there.size == here.size
    name = "uncertainty/most_uncertain_examples"
    table = json.loads((files / told[f"{name}/path"]).read_text())
    assert {"target", "prediction", "epistemic", "image"} <= set(table["columns"])
    assert len(table["data"]) == 50
    # The images in a table travel beside it.
    (artifact,) = (a for key, a in run.artifacts.items() if "most_uncertain_examples" in key)
    pictures = [path for inside, path in artifact.items() if inside.endswith(".png")]
    assert len(pictures) == 50
    for path in pictures:
        with Image.open(path) as digit:
            assert digit.size == (8, 8)


def test_config_is_a_recipe_for_another_run(folder):
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["trainer"]["max_epochs"] == 2
    assert config["stable"]["uncertainty"]["init_args"]["samples"] == 4
    assert str(folder) not in (folder / "config.yaml").read_text()


def test_predict_takes_config_and_checkpoint_from_the_folder(folder, in_process):
    assert in_process("predict", str(folder), "--output=new.parquet") == 0
    again = pandas.read_parquet("new.parquet")
    table = pandas.read_parquet(folder / "predictions.parquet")
    assert list(again["index"]) == list(table["index"])
    assert list(again["row"]) == list(table["row"])
    assert (again["prediction"] == table["prediction"]).mean() > 0.9  # other random numbers


def test_predict_lets_data_and_settings_be_overridden(folder, in_process):
    options = ("--data.held_out=[]", "--stable.uncertainty.samples=2", "--output=all.parquet")
    assert in_process("predict", str(folder), *options) == 0
    assert len(pandas.read_parquet("all.parquet")) > len(
        pandas.read_parquet(folder / "predictions.parquet")
    )


def test_predict_refuses_another_model(folder, in_process, capsys):
    assert in_process("predict", str(folder), "--model.network.hidden=[32]") == 2
    error = capsys.readouterr().err
    assert "network.body.0.weight is (512, 64) in the checkpoint and (32, 64) in the model" in error
    assert not list(Path.cwd().iterdir())


def test_predict_refuses_what_is_no_checkpoint(folder, in_process, capsys, tmp_path):
    (tmp_path / "notes.txt").write_text("no checkpoint")
    assert in_process("predict", str(folder), "--checkpoint=notes.txt") == 2
    assert "notes.txt cannot be read" in capsys.readouterr().err


def test_lightnings_own_verbs_take_the_config_of_a_run(folder, in_process, capsys):
    config, best = folder / "config.yaml", folder / "checkpoints" / "best.ckpt"
    options = ("--trainer.logger=false", "--trainer.enable_progress_bar=false")
    assert in_process("test", f"--config={config}", f"--ckpt_path={best}", *options) == 0
    assert "uncertainty/nll_mc" in capsys.readouterr().out


def test_a_checkpoint_that_does_not_exist_stops_before_anything_starts(folder, in_process, capsys):
    config = folder / "config.yaml"
    assert in_process("test", f"--config={config}", "--ckpt_path=nowhere.ckpt") == 2
    assert "--ckpt_path must be a file, got 'nowhere.ckpt'" in capsys.readouterr().err
    assert not list(Path.cwd().iterdir())


def test_the_report_tells_of_all_of_training_whichever_checkpoint_was_tested(tmp_path):
    first_is_best = "--checkpoint.mode=max"  # of the validation loss
    settings = (*QUICK, "--add=clipped", "--add=gap", first_is_best, "--output=out")
    done = stablelightning("run", "digits", *settings, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    best = torch.load(tmp_path / "out" / "checkpoints" / "best.ckpt", weights_only=True)
    last = torch.load(tmp_path / "out" / "checkpoints" / "last.ckpt", weights_only=True)
    assert best["epoch"] < last["epoch"]
    assert f" of {last['global_step']} steps were clipped" in done.stdout
    _, train, _ = last["callbacks"]["MeasureGap"]["gaps"][-1]
    assert summary["regularize/train"] == pytest.approx(train)


BAD = """
from stablelightning.data import DigitsData


class BadDigits(DigitsData):
    def setup(self, stage=None):
        super().setup(stage)
        self._images = self._images * float("nan")
"""


def test_what_a_guard_wrote_is_kept_where_it_gave_up_before_a_step(tmp_path):
    (tmp_path / "bad.py").write_text(BAD)
    (tmp_path / "bad.yaml").write_text("data: {class_path: bad.BadDigits}")
    settings = ("--add=guarded", "--add=bad.yaml", "--stable.guard.max_rollbacks=0", "--output=out")
    done = stablelightning("run", "digits", *settings, *QUICK, cwd=tmp_path)
    assert done.returncode == 2
    assert "gave up" in done.stderr
    events = (tmp_path / "out" / "events.jsonl").read_text().splitlines()
    assert json.loads(events[-1])["decision"] == "gave up"
