"""Pretraining as a recipe: a file, a picture, losses; and fine-tuning from that file."""

import json

import pytest
import torch
from safetensors.torch import load_file

from stablelightning.pretraining import DenoisingAutoencoder

pytest.importorskip("sklearn")

QUICK = (
    "--trainer.max_epochs=2",
    "--trainer.limit_train_batches=4",
    "--trainer.limit_val_batches=2",
    "--trainer.limit_test_batches=2",
    "--trainer.logger=false",
    "--trainer.accelerator=cpu",
    "--stable.latency=null",
)


def test_the_whole_way_round(in_process, tmp_path, capsys):
    assert in_process("run", "pretrain", "--output=first", *QUICK) == 0
    said = capsys.readouterr().out
    first = tmp_path / "first"
    assert {path.name for path in first.iterdir()} == {
        "backbone.safetensors",
        "checkpoints",
        "config.yaml",
        "plots",
        "summary.json",
    }
    # A busy machine measures latency for more than one batch size, and draws that as well.
    assert "pretraining.png" in {path.name for path in (first / "plots").iterdir()}
    assert f"--stable.pretrain.weights={first / 'backbone.safetensors'}" in said
    assert "explained variance" in said
    summary = json.loads((first / "summary.json").read_text())
    assert {"train/loss", "val/loss", "test/loss", "test/explained_variance"} <= set(summary)
    assert not any(name.startswith(("uncertainty", "ood")) for name in summary)

    loaded = DenoisingAutoencoder.load_from_checkpoint(first / "checkpoints" / "best.ckpt")
    kept = load_file(first / "backbone.safetensors")
    assert all(torch.equal(loaded.network.state_dict()[n], v) for n, v in kept.items())

    weights = f"--stable.pretrain.weights={first / 'backbone.safetensors'}"
    settings = ("--stable.pretrain=PretrainFirst", weights, "--data.labels_per_class=10")
    assert in_process("run", "digits_cnn", "--output=second", *settings, *QUICK) == 0
    captured = capsys.readouterr()
    assert "head" in captured.out + captured.err
    assert 0 <= json.loads((tmp_path / "second" / "summary.json").read_text())["test/accuracy"] <= 1


def test_the_config_of_a_run_is_a_recipe_again(in_process, tmp_path):
    assert in_process("run", "digits_cnn", "--add=rotation", "--output=first", *QUICK) == 0
    assert in_process("run", "first/config.yaml", "--output=second") == 0
    both = [load_file(tmp_path / name / "backbone.safetensors") for name in ("first", "second")]
    assert all(torch.equal(value, both[1][name]) for name, value in both[0].items())


def test_a_checkpoint_is_tested_by_itself(in_process, tmp_path):
    assert in_process("run", "digits_cnn", "--add=rotation", "--output=first", *QUICK) == 0
    module = ("--config=first/config.yaml", "--ckpt_path=first/checkpoints/best.ckpt")
    assert in_process("test", *module) == 0


def test_predictions_of_a_run_are_features(in_process, tmp_path):
    pandas = pytest.importorskip("pandas")
    assert in_process("run", "digits_cnn", "--add=rotation", "--output=first", *QUICK) == 0
    assert in_process("predict", "first", "--output=features.parquet") == 0
    columns = list(pandas.read_parquet(tmp_path / "features.parquet").columns)
    assert "feature_63" in columns
    assert "prediction" not in columns


def test_the_doctor_examines_an_objective(in_process, tmp_path, capsys):
    assert in_process("doctor", "digits", "--add=autoencoder", "--out=page") == 0
    said = capsys.readouterr().out
    assert "network.body.0" in said
    assert "decoder.layers.2" in said


def test_rows_given_to_rotation_leave_one_line_and_no_folder(in_process, tmp_path, capsys):
    assert in_process("run", "digits", "--add=rotation", "--output=first", *QUICK) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert said[-1].startswith("stablelightning: error: rotation needs images (N, C, H, W), got")
    assert not (tmp_path / "first").exists()
