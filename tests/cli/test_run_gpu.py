"""One GPU: a recipe as it is, and in half precision with its gradient scaler."""

import json

import pytest

from tests.cli.commands import stablelightning

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("precision", ["32-true", "16-mixed", "bf16-mixed"])
def test_a_recipe_runs_on_one_gpu(tmp_path, precision):
    options = ("--trainer.accelerator=gpu", "--trainer.devices=1", "--trainer.max_epochs=10")
    done = stablelightning(
        "run", "digits", *options, f"--trainer.precision={precision}", "--output=out", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["uncertainty/accuracy_mc"] > 0.95
    assert summary["ood/held_out_digits/auroc_mutual_information"] > 0.8
