"""A recipe of the reader's own: classes of the working folder, nothing of this package in it."""

import json
from pathlib import Path

import pytest
import yaml

from tests.cli.commands import stablelightning

CODE = """
import lightning as L
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Plain(L.LightningModule):
    def __init__(self, dropout: float = 0.0, api_key: str = ""):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(dropout), nn.Linear(8, 3))

    def forward(self, x):
        return self.net(x)

    def _step(self, batch, name):
        loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
        self.log(name, loss)
        return loss

    def training_step(self, batch, batch_idx):
        return self._step(batch, "train_loss")

    def validation_step(self, batch, batch_idx):
        self._step(batch, "val_loss")

    def test_step(self, batch, batch_idx):
        self._step(batch, "test_loss")

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Blobs(L.LightningDataModule):
    def _loader(self):
        x = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
        return DataLoader(TensorDataset(x, x[:, :3].argmax(1)), batch_size=16)

    train_dataloader = val_dataloader = test_dataloader = _loader


class Predicts(Blobs):
    predict_dataloader = Blobs._loader


class Refuses(L.LightningModule):
    def __init__(self):
        raise ValueError("width must be even,\\n got 3")
"""
RECIPE = """
# A model of my own.
model: {class_path: own_classes.Plain}
data: {class_path: own_classes.Blobs}
trainer: {max_epochs: 1, enable_progress_bar: false, logger: false}
"""


@pytest.fixture
def own(tmp_path):
    name = "own_classes"
    (tmp_path / f"{name}.py").write_text(CODE)
    (tmp_path / "mine.yaml").write_text(RECIPE)
    return tmp_path


def summary(folder: Path) -> dict[str, float]:
    return json.loads((folder / "summary.json").read_text())


def test_own_classes_run_and_are_sampled_without_being_asked(own):
    secret = "a-long-secret-value"
    options = ("--model.dropout=0.5", f"--model.api_key={secret}", "--output=out")
    done = stablelightning("run", "mine.yaml", *options, cwd=own)
    assert done.returncode == 0, done.stderr
    numbers = summary(own / "out")
    assert {"test_loss", "uncertainty/accuracy", "uncertainty/nll_mc"} <= set(numbers)
    assert (own / "out" / "predictions.parquet").exists()
    config = yaml.safe_load((own / "out" / "config.yaml").read_text())
    assert config["model"]["class_path"] == "own_classes.Plain"
    assert secret not in (own / "out" / "config.yaml").read_text()


def test_fit_writes_no_secret_either(own, in_process, monkeypatch):
    monkeypatch.syspath_prepend(own)
    secret = "another-long-secret"
    assert in_process("fit", "--config=mine.yaml", f"--model.api_key={secret}") == 0
    config = (own / "config.yaml").read_text()
    assert secret not in config
    assert yaml.safe_load(config)["model"]["init_args"]["dropout"] == 0


def test_a_model_with_nothing_random_is_told_so_and_runs(own, in_process, monkeypatch):
    monkeypatch.syspath_prepend(own)
    with pytest.warns(UserWarning, match="steps aside"):
        assert in_process("run", "mine.yaml", "--output=out") == 0
    numbers = summary(own / "out")
    assert "test_loss" in numbers
    assert not any(key.startswith("uncertainty/") for key in numbers)


def test_switched_off_is_off(own, in_process, monkeypatch):
    monkeypatch.syspath_prepend(own)
    options = ("--model.dropout=0.5", "--stable.uncertainty=null", "--output=out")
    assert in_process("run", "mine.yaml", *options) == 0
    assert not any(key.startswith("uncertainty/") for key in summary(own / "out"))


def test_best_checkpoint_follows_lightnings_usual_name(own, in_process, monkeypatch):
    import torch

    monkeypatch.syspath_prepend(own)
    assert in_process("run", "mine.yaml", "--stable.uncertainty=null", "--output=out") == 0
    state = torch.load(own / "out" / "checkpoints" / "best.ckpt", weights_only=True)
    kept = next(v for k, v in state["callbacks"].items() if k.startswith("KeepBest"))
    assert kept["monitor"] == "val_loss"


def test_predict_finds_the_checkpoint_that_the_reader_chose_to_keep(own, in_process, monkeypatch):
    monkeypatch.syspath_prepend(own)
    keeper = "{class_path: ModelCheckpoint, init_args: {monitor: val_loss, filename: mine}}"
    (own / "keep.yaml").write_text(f"trainer: {{callbacks: [{keeper}]}}")
    options = ("--model.dropout=0.5", "--stable.uncertainty.samples=2", "--output=out")
    assert in_process("run", "mine.yaml", "--add", "keep.yaml", *options) == 0
    assert [path.name for path in (own / "out" / "checkpoints").iterdir()] == ["mine.ckpt"]
    assert in_process("predict", "out", "--output=p.parquet") == 2  # Blobs has nothing to predict
    loader = "--data=own_classes.Predicts"
    assert in_process("predict", "out", loader, "--output=p.parquet") == 0
    assert (own / "p.parquet").exists()


def test_what_a_constructor_refuses_is_one_line(own, in_process, monkeypatch, capsys):
    monkeypatch.syspath_prepend(own)
    assert in_process("run", "mine.yaml", "--model=own_classes.Refuses") == 2
    assert capsys.readouterr().err == "stablelightning: error: width must be even, got 3\n"
    assert not (own / "runs").exists()
