"""The doctor on the command line: what it prints, writes and returns; it trains nothing."""

import json

import pytest
import torch

from stablelightning.cli import consultation
from stablelightning.cli.main import main
from stablelightning.model.cures import CHECKPOINT_KEY
from tests.cli.commands import stablelightning
from tests.report.offline import read_offline_run

pandas = pytest.importorskip("pandas")


def test_a_healthy_recipe_returns_0_and_leaves_a_page(in_process, tmp_path, capsys):
    assert in_process("doctor", "digits") == 0
    printed = capsys.readouterr().out
    folder = tmp_path / "runs" / "digits-doctor-1"
    assert "The doctor on digits" in printed
    assert f"The page: {folder / 'doctor.html'}" in printed
    assert {path.name for path in folder.iterdir()} == {"doctor.html", "doctor.json", "doctor.png"}
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def test_an_error_returns_1(in_process, tmp_path, capsys):
    assert in_process("doctor", "digits_deep", "--out=out", "--model.network.width=16") == 1
    told = json.loads((tmp_path / "out" / "doctor.json").read_text())
    assert "vanishing-gradient" in [finding["code"] for finding in told["findings"]]
    assert len(told["layers"]) == 51
    assert "vanishing-gradient" in capsys.readouterr().out


def test_cures_are_shown_before_and_after(in_process, tmp_path, capsys):
    status = in_process("doctor", "digits_deep", "--apply", "--out=out", "--model.network.width=16")
    told = json.loads((tmp_path / "out" / "doctor.json").read_text())
    assert {"initialize", "add-skips"} <= {t["cure"] for t in told["treatments"] if t["done"]}
    assert "vanishing-gradient" in [f["code"] for f in told["before"]["findings"]]
    assert "error" not in [f["severity"] for f in told["findings"]]
    assert status == 0


def test_a_recipe_is_named_as_lightning_does_too(in_process, tmp_path, capsys):
    (tmp_path / "mine.yaml").write_text("model: {init_args: {optimizer: {init_args: {lr: 0.001}}}}")
    assert in_process("doctor", "--config", "digits", "--config=mine.yaml", "--out=out") == 0
    assert "The doctor on digits with mine" in capsys.readouterr().out


def test_overlays_stack(in_process, tmp_path, capsys):
    """Two processes are no hindrance: the doctor needs one."""
    assert in_process("doctor", "digits", "--add", "multi_gpu", "--out=out") == 0
    assert "with multi_gpu" in capsys.readouterr().out


def test_what_changes_the_model_before_training_has_acted(in_process, tmp_path):
    """The selu overlay swaps, and a slot initializes; the doctor sees what they leave."""
    settings = ("--stable.initialize.class_path=InitializeWeights", "--model.network.dropout=0")
    in_process("doctor", "digits_deep", "--add=selu", *settings, "--out=out")
    told = json.loads((tmp_path / "out" / "doctor.json").read_text())
    assert {layer["activation"] for layer in told["layers"]} == {"selu", "linear"}
    assert "vanishing-gradient" not in [finding["code"] for finding in told["findings"]]


def test_a_race_is_not_run(in_process, tmp_path):
    in_process("doctor", "digits", "--add=select_activation", "--out=out")
    told = json.loads((tmp_path / "out" / "doctor.json").read_text())
    assert any("race in a run" in note for note in told["notes"])


def test_nothing_is_trained_and_no_run_is_begun(in_process, tmp_path, monkeypatch):
    import lightning as L

    def never(*_, **__):
        raise AssertionError("trained")

    monkeypatch.setattr(L.Trainer, "fit", never)
    monkeypatch.setattr(torch.optim.AdamW, "step", never)
    in_process("doctor", "digits", "--out=out")
    assert not list(tmp_path.rglob("wandb"))


def test_the_optimizers_settings_are_looked_at(in_process, monkeypatch):
    seen = []

    def diagnose(model, batch, *, optimizer):
        seen.append((optimizer, batch))
        return real(model, batch, optimizer=optimizer)

    real = consultation.diagnose
    monkeypatch.setattr(consultation, "diagnose", diagnose)
    in_process("doctor", "digits", "--batches=3", "--model.optimizer.lr=0.125")
    ((optimizer, batch),) = seen
    assert isinstance(optimizer, torch.optim.AdamW)
    assert optimizer.param_groups[0]["lr"] == 0.125
    assert len(batch[0]) == 3 * 64


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["doctor"], "doctor needs a recipe"),
        (["doctor", "digit"], "did you mean 'digits'?"),
        (["doctor", "digits", "--batches=0"], "--batches must be a whole number >= 1, got 0"),
        (["doctor", "digits", "--batches=x"], "invalid int value"),
        (["doctor", "digits", "--model.network.depht=3"], "depht"),
        (["doctor", "digits", "--model.network.in_features=7"], "rows of 64 for a layer of 7"),
        (["doctor", "digits", "--out=full"], "new or empty folder"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(in_process, tmp_path, capsys, arguments, said):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("")
    assert in_process(*arguments) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


def test_help_says_what_the_status_means(capsys):
    assert main(["doctor", "--help"]) == 0
    printed = capsys.readouterr().out
    assert "1 where an error was found" in " ".join(printed.split())


def test_as_a_user_runs_it(tmp_path):
    done = stablelightning("doctor", "digits", cwd=tmp_path, script=True)
    assert done.returncode == 0, done.stderr
    assert "The doctor on digits" in done.stdout
    assert "Traceback" not in done.stderr


# ---- in a run -----------------------------------------------------------------------------------


def test_fifty_layers_are_cured_trained_tested_and_predicted_with(in_process, tmp_path):
    quick = (
        "--trainer.max_epochs=5",
        "--trainer.enable_progress_bar=false",
        "--model.network.width=32",
        "--stable.uncertainty.samples=2",
        "--output=out",
    )
    assert in_process("run", "digits_deep", *quick) == 0
    out = tmp_path / "out"
    assert {"doctor.html", "doctor.json", "doctor.png"} <= {path.name for path in out.iterdir()}
    assert json.loads((out / "summary.json").read_text())["test/accuracy"] > 0.8
    checkpoint = torch.load(out / "checkpoints" / "best.ckpt", weights_only=False)
    assert "add-skips" in [entry["cure"] for entry in checkpoint[CHECKPOINT_KEY]]
    logged = read_offline_run(out)
    assert {"doctor/errors", "doctor/warnings", "doctor/forward_slope"} <= logged.metrics
    assert in_process("predict", "out") == 0
    predicted = pandas.read_parquet(out / "predict-1.parquet")
    tested = pandas.read_parquet(out / "predictions.parquet")
    assert (predicted["prediction"].to_numpy() == tested["prediction"].to_numpy()).all()
