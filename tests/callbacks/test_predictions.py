"""One process: what stands in the file, in which order, and what is refused."""

import os
from typing import Any

import lightning as L
import pandas
import pyarrow
import pytest
import torch
from torch.utils.data import DataLoader, SubsetRandomSampler, TensorDataset

from stablelightning.callbacks import EstimateUncertainty, WritePredictions, prediction_file
from stablelightning.data import DigitsData
from stablelightning.errors import DataError, ModelError, OutputError, RecipeError
from stablelightning.module import StableModule
from stablelightning.nn import MLP
from stablelightning.report import sorted_runs
from tests.callbacks.modules import NoisyRegressor, Plain, Segmenter, data, loader, quiet_trainer
from tests.callbacks.predict_processes import ROWS, Predicts


def predicted(module: L.LightningModule, folder: Any, *others: Any, **settings: Any) -> Any:
    write = WritePredictions(folder)
    loaders = {"dataloaders": settings.pop("loaders")} if "loaders" in settings else {}
    trainer = quiet_trainer(*others, write, **settings)
    trainer.predict(module, return_predictions=False, **loaders)
    if write.path is not None:
        assert len(pandas.read_parquet(write.path)) == write.rows
    return write


def read(write: WritePredictions) -> pandas.DataFrame:
    return pandas.read_parquet(write.path)


@pytest.mark.parametrize("shuffle", [False, True])
def test_rows_stand_in_the_order_of_the_dataset(tmp_path, shuffle):
    table = read(predicted(Predicts(shuffle=shuffle), tmp_path))
    assert list(table["index"]) == list(table["number"]) == list(range(ROWS))
    assert os.listdir(tmp_path) == ["predictions.parquet"]


def test_rows_of_a_sampler_keep_their_places(tmp_path):
    numbered = TensorDataset(data(20).tensors[0], torch.arange(20))
    some = DataLoader(numbered, batch_size=3, sampler=SubsetRandomSampler([17, 3, 11, 5]))
    table = read(predicted(Predicts(), tmp_path, loaders=some))
    assert list(table["index"]) == list(table["number"]) == [3, 5, 11, 17]


def test_rows_of_a_stream_are_numbered_as_they_come(tmp_path):
    table = read(predicted(Predicts(how="stream"), tmp_path))
    assert list(table["index"]) == list(table["number"]) == list(range(ROWS))


def test_a_limit_leaves_the_rest_out(tmp_path):
    assert list(read(predicted(Predicts(), tmp_path, limit_predict_batches=2))["index"]) == [
        *range(10)
    ]


def test_several_dataloaders_may_have_other_columns(tmp_path):
    class Two(Predicts):
        def predict_step(self, batch, batch_idx, dataloader_idx=0):
            return {"second": batch[1]} if dataloader_idx else {"first": batch[1].float()}

    table = read(predicted(Two(how="several"), tmp_path))
    assert list(table["dataloader"]) == [0] * ROWS + [1] * 7
    assert table["first"].notna().sum() == ROWS
    assert table["second"].dropna().tolist() == list(range(7))


def test_uncertainty_of_a_regression(tmp_path):
    module = NoisyRegressor()
    table = read(predicted(module, tmp_path, EstimateUncertainty(5), loaders=loader(10)))
    assert list(table) == ["index", "mean", "total", "aleatoric", "epistemic"]
    assert table["total"].to_numpy() == pytest.approx(
        (table["aleatoric"] + table["epistemic"]).to_numpy(), rel=1e-5
    )


def test_dense_predictions_are_lists(tmp_path):
    images = DataLoader(torch.randn(5, 1, 4, 4), batch_size=2)
    table = read(predicted(Segmenter(), tmp_path, EstimateUncertainty(3), loaders=images))
    assert "prediction" not in table
    assert {len(row) for row in table["mean"]} == {3 * 4 * 4}
    assert {len(row) for row in table["epistemic"]} == {4 * 4}


def test_a_data_module_names_rows_and_classes(tmp_path):
    digits = DigitsData(held_out=[8, 9], batch_size=100)
    module = StableModule(MLP(64, 8, hidden=[8]), task="classification", samples=2)
    write = WritePredictions(tmp_path)
    quiet_trainer(write).predict(module, datamodule=digits, return_predictions=False)
    table = read(write)
    assert list(table["row"]) == digits.test_rows.tolist()
    assert list(table["prediction_name"]) == [digits.class_names[p] for p in table["prediction"]]


def test_labels_of_a_multilabel_model_are_no_classes(tmp_path):
    module = StableModule(MLP(4, 3, hidden=[8]), task="multilabel", samples=2)
    assert "prediction" not in read(predicted(module, tmp_path, loaders=loader()))


def test_columns_of_ones_own(tmp_path):
    class Best(WritePredictions):
        def columns_of(self, output):
            return {"best": output["score"].argmax(1), "index": output["number"] * 2}

    write = Best(tmp_path)
    quiet_trainer(write).predict(Predicts(), return_predictions=False)
    assert list(read(write)) == ["index", "best"]
    assert list(read(write)["index"]) == list(range(0, 2 * ROWS, 2))


def test_an_old_file_is_replaced_at_the_end_only(tmp_path):
    old = tmp_path / "predictions.parquet"
    old.write_text("old")

    class Breaks(Predicts):
        def predict_step(self, batch, batch_idx, dataloader_idx=0):
            if batch_idx == 2:
                raise RuntimeError("broken on purpose")
            return super().predict_step(batch, batch_idx)

    with pytest.raises(RuntimeError, match="broken on purpose"):
        predicted(Breaks(), tmp_path)
    assert old.read_text() == "old"
    assert os.listdir(tmp_path) == [old.name]
    assert predicted(Predicts(), tmp_path).rows == ROWS


def test_what_a_killed_run_left_is_cleared_away(tmp_path):
    (tmp_path / ".predictions.parts").mkdir()
    (tmp_path / ".predictions.parts" / "dead-0-0-0.arrow").write_text("half")
    predicted(Predicts(), tmp_path)
    assert os.listdir(tmp_path) == ["predictions.parquet"]


def test_a_dry_run_writes_nothing(tmp_path):
    write = predicted(Predicts(), tmp_path, fast_dev_run=True)
    assert (write.path, write.rows, os.listdir(tmp_path)) == (None, 0, [])


def test_nothing_to_predict_leaves_no_file(tmp_path):
    write = predicted(Predicts(), tmp_path, limit_predict_batches=0)
    assert (write.path, os.listdir(tmp_path)) == (None, [])


@pytest.mark.parametrize(("shuffle", "more"), [(False, 2**18), (True, 2**22)])
def test_memory_does_not_grow_with_the_predictions(tmp_path, monkeypatch, shuffle, more):
    """Most that Arrow holds while 1 and 16 MB are sorted and merged: in any order, some blocks."""
    monkeypatch.setattr(sorted_runs, "_BUFFER_BYTES", 2**17)
    monkeypatch.setattr(sorted_runs, "_BLOCK_BYTES", 2**15)
    monkeypatch.setattr(prediction_file, "_ROW_GROUP_BYTES", 2**17)
    in_order, held = sorted_runs._in_order, []

    def watched(table):
        held[-1] = max(held[-1], pyarrow.total_allocated_bytes())
        return in_order(table)

    class Wide(Plain):
        def predict_step(self, batch, batch_idx):
            return {"wide": ["x" * 1000 for _ in batch]}

    monkeypatch.setattr(sorted_runs, "_in_order", watched)
    for rows in (1000, 16000):
        held.append(0)
        batches = DataLoader(torch.zeros(rows, 1), batch_size=50, shuffle=shuffle)
        write = WritePredictions(tmp_path)
        quiet_trainer(write).predict(Wide(), batches, return_predictions=False)
        assert write.rows == rows
    assert held[1] < held[0] + more


@pytest.mark.parametrize("name", ["p.csv", "folder/p.parquet", "parquet"])
def test_a_name_that_is_no_parquet_file_is_refused(name):
    with pytest.raises(RecipeError, match=r"must be that of a \.parquet file"):
        WritePredictions(name=name)


def test_a_folder_that_cannot_be_written_is_told_before_the_first_batch(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="choose another folder"):
        predicted(Predicts(), tmp_path / "file")


def test_steps_that_return_nothing_are_refused(tmp_path):
    class Nothing(Predicts):
        def predict_step(self, batch, batch_idx):
            return None

    with pytest.raises(ModelError, match="got NoneType; return them there"):
        predicted(Nothing(), tmp_path)
    assert os.listdir(tmp_path) == []


def test_steps_that_take_an_iterator_are_refused(tmp_path):
    class Iterates(Predicts):
        def predict_step(self, dataloader_iter):
            return next(dataloader_iter)

    with pytest.raises(RecipeError, match="one that takes dataloader_iter"):
        predicted(Iterates(), tmp_path)


def test_other_rows_than_the_batch_has_are_refused(tmp_path):
    class Twice(Predicts):
        def predict_step(self, batch, batch_idx):
            return torch.ones(3)

    with pytest.raises(DataError, match="one entry for each of the 5 rows"):
        predicted(Twice(), tmp_path)
