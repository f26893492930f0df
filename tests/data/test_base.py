"""What every data module of the package promises, and the settings that they share."""

import pickle
import subprocess
import sys

import lightning as L
import pytest
import torch
from jsonargparse import ArgumentParser
from PIL import Image

from stablelightning import data as package
from stablelightning.data import AddingData, DigitsData, ImageFolderData, TabularData
from stablelightning.errors import DataError, RecipeError
from tests.data.small import TRAINER, Linear, rows_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    for green, name in ((90, "cat"), (40, "dog")):
        (root / name).mkdir()
        for number in range(10):
            Image.new("RGB", (12, 10), (number * 20, green, 30)).save(root / name / f"{number}.png")
    return str(root)


#: Without targets; tests/data/test_unlabelled.py holds it to the rest.
UNLABELLED = {"UnlabelledImages"}


@pytest.fixture(params=[name for name in package.__all__ if name not in UNLABELLED])
def make(request, folder):
    """A constructor of each public data module, with what it needs filled in."""
    required = {"ImageFolderData": {"root": folder, "image_size": 8, "num_workers": 0}}
    kind = getattr(package, request.param)
    return lambda **settings: kind(**required.get(request.param, {}), **settings)


def num_features(data):
    if isinstance(data, AddingData):
        return data.num_features * data.length
    if hasattr(data, "num_features"):
        return data.num_features
    return 3 * data.preprocessing.image_size**2


def test_it_trains_tests_and_predicts(make, tmp_path):
    data = make(batch_size=8)
    trainer = L.Trainer(**TRAINER, default_root_dir=tmp_path)
    model = Linear(num_features(data), data.num_outputs)
    trainer.fit(model, datamodule=data)
    assert "val/loss" in trainer.callback_metrics
    (results,) = trainer.test(model, datamodule=data, verbose=False)
    assert 0 < results["test/loss"] < 100
    predicted = torch.cat(trainer.predict(model, datamodule=data))
    assert len(predicted) == len(data.test_rows) > 0
    # Checkpoints with it must open without pickle.
    saved = torch.load(trainer.checkpoint_callback.best_model_path, weights_only=True)
    assert saved["datamodule_hyper_parameters"]["batch_size"] == 8
    assert saved.get(type(data).__qualname__, {}).keys() == data.state_dict().keys()


def test_it_trains_without_validation(make, tmp_path):
    data = make(val_fraction=0.0)
    trainer = L.Trainer(**TRAINER, default_root_dir=tmp_path)
    trainer.fit(Linear(num_features(data), data.num_outputs), datamodule=data)
    assert trainer.global_step > 0
    assert "val/loss" not in trainer.callback_metrics


def test_testing_without_a_test_split_is_refused_in_words(make, tmp_path):
    data = make(test_fraction=0.0)
    trainer = L.Trainer(**TRAINER, default_root_dir=tmp_path)
    with pytest.raises(DataError, match=r"set test_fraction above 0"):
        trainer.test(Linear(num_features(data), data.num_outputs), datamodule=data)


def test_two_of_a_kind_agree_whatever_the_global_random_state(make):
    torch.manual_seed(1)
    first = make(seed=5)
    first.setup("fit")
    torch.manual_seed(2)
    second = make(seed=5)
    second.setup("test")
    assert torch.equal(first.test_rows, second.test_rows)
    for one, two in zip(
        rows_of(first.test_dataloader()), rows_of(second.test_dataloader()), strict=True
    ):
        assert torch.equal(one, two)
    other = make(seed=6)
    other.setup("test")
    inputs, others = (rows_of(data.test_dataloader())[0] for data in (first, other))
    assert not torch.equal(inputs, others)


def test_test_rows_are_a_long_tensor_of_the_test_order(make):
    data = make()
    assert data.test_rows.dtype == torch.long
    assert len(data.test_rows) == len(data.test_dataloader().dataset)


def test_setup_is_done_once(make):
    data = make()
    data.setup("fit")
    rows = data.test_rows
    for stage in ("fit", "validate", "test", "predict"):
        data.setup(stage)
    assert data.test_rows is rows


def test_it_travels_between_processes(make):
    data = make()
    data.setup()
    twin = pickle.loads(pickle.dumps(data))
    assert torch.equal(twin.test_rows, data.test_rows)
    before, after = rows_of(data.test_dataloader()), rows_of(twin.test_dataloader())
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_a_recipe_survives_the_round_trip(make):
    data = make(seed=3, batch_size=7, val_fraction=0.15)
    parser = ArgumentParser()
    parser.add_subclass_arguments(L.LightningDataModule, "data")
    settings = {"class_path": type(data).__name__, "init_args": dict(data.hparams)}
    written = parser.dump(parser.parse_object({"data": settings}))
    assert "!!" not in written  # no tag of a Python type: plain YAML
    built = parser.instantiate(parser.parse_string(written)).data
    assert dict(built.hparams) == dict(data.hparams)
    assert torch.equal(built.test_rows, data.test_rows)


def test_settings_stay_out_of_the_loggers(make):
    assert not make()._log_hyperparams


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, r"batch_size must be a whole number >= 1, got 0"),
        ({"batch_size": 2.5}, r"batch_size must be a whole number >= 1, got 2.5"),
        ({"batch_size": True}, r"batch_size must be a whole number >= 1, got True"),
        ({"seed": -1}, r"seed must be a whole number >= 0, got -1"),
        ({"num_workers": -2}, r"num_workers must be a whole number >= 0, got -2"),
        ({"val_fraction": 1.0}, r"val_fraction must be in \[0, 1\), got 1.0"),
        ({"test_fraction": -0.1}, r"test_fraction must be in \[0, 1\), got -0.1"),
        ({"val_fraction": float("nan")}, r"val_fraction must be in \[0, 1\), got nan"),
        ({"val_fraction": 0.5, "test_fraction": 0.5}, r"must be < 1, got 0.5 \+ 0.5"),
    ],
)
@pytest.mark.parametrize(
    "kind", [DigitsData, TabularData, lambda **settings: ImageFolderData("x", **settings)]
)
def test_settings_out_of_range_are_refused_by_the_constructor(kind, settings, message):
    with pytest.raises(RecipeError, match=message) as caught:
        kind(**settings)
    assert "\n" not in str(caught.value)


def test_importing_the_package_reads_no_optional_package():
    # What lightning itself imports (torchvision, by way of torchmetrics) is not ours to answer for.
    script = (
        "import sys, lightning; before = set(sys.modules); import stablelightning.data;"
        "new = set(sys.modules) - before;"
        "print({'sklearn', 'pandas', 'pyarrow', 'torchvision', 'PIL'} & new)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=300
    )
    assert done.stdout.strip() == "set()"


class Shards(Linear):
    """Says on every process which rows it was given, and fails where the processes disagree."""

    def on_train_start(self):
        self.rows = []

    def training_step(self, batch, batch_idx):
        self.rows.append(batch[0][:, 0])
        return self.loss(batch)

    def on_train_epoch_end(self):
        rows = self.trainer.datamodule.test_rows
        assert (self.all_gather(rows) == rows).all()
        shards = self.all_gather(torch.cat(self.rows))
        whole = rows_of(self.trainer.datamodule.train_dataloader())[0][:, 0]
        assert self.trainer.world_size == 2
        assert torch.equal(shards.flatten().sort().values, whole.sort().values)
        self.log("shards/agreed", 1.0, sync_dist=True)


def test_two_processes_share_one_split(tmp_path):
    data = TabularData(batch_size=32, val_fraction=0.0, test_fraction=0.2)
    data.setup()
    assert len(data.train_dataloader().dataset) % 2 == 0  # or a row would be padded twice
    trainer = L.Trainer(
        **{**TRAINER, "enable_checkpointing": False},
        strategy="ddp_spawn",
        devices=2,
        default_root_dir=tmp_path,
    )
    trainer.fit(Shards(10, 1), datamodule=data)
    assert trainer.callback_metrics["shards/agreed"] == 1.0
