import lightning as L
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_diabetes

from stablelightning.data import TabularData
from stablelightning.errors import DataError, RecipeError
from tests.data.small import TRAINER, Linear, rows_of

ROWS = 60


def table(rows=ROWS, seed=0):
    random = np.random.default_rng(seed)
    age, size = random.normal(40, 10, rows), random.gamma(2, 100, rows)
    return pd.DataFrame(
        {
            "id": np.arange(rows),
            "age": age,
            "price": 3 * age + size + random.normal(0, 1, rows),
            "size": size,
            "kind": np.where(size > 200, "large", "small"),
        }
    )


@pytest.fixture
def csv(tmp_path):
    def write(frame=None, name="houses.csv"):
        path = tmp_path / name
        (table() if frame is None else frame).to_csv(path, index=False)
        return str(path)

    return write


REGRESSION = {"target": "price", "ignore": ("id", "kind")}
CLASSES = {"target": "kind", "ignore": ("id",), "task": "classification"}


def test_the_default_is_the_diabetes_data_in_its_own_units():
    data = TabularData()
    data.setup()
    source = load_diabetes(scaled=False)
    inputs, target = rows_of(data.test_dataloader())
    rows = data.test_rows.numpy()
    mean, std = data.target_scale
    assert data.feature_names == tuple(source.feature_names)
    torch.testing.assert_close(
        target * std + mean, torch.tensor(source.target[rows]).float(), rtol=1e-4, atol=1e-3
    )
    correlation = np.corrcoef(inputs[:, 2], source.data[rows, 2])[0, 1]
    assert correlation == pytest.approx(1.0)


def test_every_column_but_the_target_is_an_input(csv):
    data = TabularData(csv(), target="price", ignore=("kind",))
    assert data.feature_names == ("id", "age", "size")
    assert (data.num_features, data.num_outputs, data.num_classes) == (3, 1, None)
    assert data.class_names is None
    inputs, target = next(iter(data.train_dataloader()))
    assert (inputs.dtype, target.dtype) == (torch.float32, torch.float32)
    assert (inputs.shape[1:], target.shape[1:]) == ((3,), ())


def test_parquet_gives_what_csv_gives(csv, tmp_path):
    path = str(tmp_path / "houses.parquet")
    table().to_parquet(path)
    one = rows_of(TabularData(path, **REGRESSION).test_dataloader())
    two = rows_of(TabularData(csv(), **REGRESSION).test_dataloader())
    for a, b in zip(one, two, strict=True):
        torch.testing.assert_close(a, b)


def test_training_rows_have_mean_zero_and_deviation_one(csv):
    inputs, target = rows_of(TabularData(csv(), **REGRESSION).train_dataloader())
    for values in (*inputs.T, target):
        assert values.mean().abs() < 1e-5
        assert (values.std(correction=0) - 1).abs() < 1e-5


@settings(max_examples=15)
@given(st.integers(0, 1000), st.floats(-1e6, 1e6))
def test_no_statistic_depends_on_rows_outside_training(tmp_path_factory, seed, value):
    path = str(tmp_path_factory.mktemp("leak") / "houses.csv")
    frame = table()
    frame.to_csv(path, index=False)
    honest = TabularData(path, seed=seed, **REGRESSION)
    train = rows_of(honest.train_dataloader())
    split = honest._read().split
    frame.loc[torch.cat([split.test, split.val]).tolist(), ["age", "size", "price"]] = value
    frame.to_csv(path, index=False)
    spoiled = TabularData(path, seed=seed, **REGRESSION)
    assert spoiled.target_scale == honest.target_scale
    assert spoiled.state_dict()["inputs"][0].tolist() == honest.state_dict()["inputs"][0].tolist()
    assert spoiled.state_dict()["inputs"][1].tolist() == honest.state_dict()["inputs"][1].tolist()
    after = rows_of(spoiled.train_dataloader())
    assert train[1].sort().values.tolist() == after[1].sort().values.tolist()


def test_a_constant_column_becomes_zero(csv):
    frame = table().assign(country=49.1)
    data = TabularData(csv(frame), **REGRESSION)
    place = data.feature_names.index("country")
    inputs, _ = rows_of(data.train_dataloader())
    assert inputs[:, place].abs().max() < 1e-6


def test_classes_keep_their_proportions_and_their_names(csv):
    data = TabularData(csv(), **CLASSES)
    assert data.class_names == ("large", "small")
    assert data.num_classes == data.num_outputs == 2
    assert data.target_scale is None
    _, target = rows_of(data.test_dataloader())
    assert target.dtype == torch.long
    expected = table()["kind"].iloc[data.test_rows.numpy()]
    assert [data.class_names[number] for number in target.tolist()] == list(expected)
    share = (table()["kind"] == "small").mean()
    assert abs((target == 1).float().mean().item() - share) < 1 / len(target)


def test_index_files_set_the_splits(csv, tmp_path):
    for name, rows in (("train", range(10, ROWS)), ("test", [4, 2, 9])):
        (tmp_path / f"index_{name}_0.txt").write_text("\n".join(str(row) for row in rows))
    files = {name: str(tmp_path / f"index_{name}_0.txt") for name in ("train", "test")}
    data = TabularData(csv(), index_files=files, val_fraction=0.2, **REGRESSION)
    assert data.test_rows.tolist() == [4, 2, 9]
    assert len(data.val_dataloader().dataset) == 10
    assert len(data.train_dataloader().dataset) == 40
    mean, std = data.target_scale
    _, target = rows_of(data.test_dataloader())
    own = torch.tensor(table()["price"].iloc[[4, 2, 9]].to_numpy()).float()
    torch.testing.assert_close(target * std + mean, own)


def test_an_index_file_with_a_row_too_many_is_refused_in_setup(csv, tmp_path):
    (tmp_path / "train.txt").write_text(f"0\n{ROWS}\n")
    (tmp_path / "test.txt").write_text("1\n")
    files = {name: str(tmp_path / f"{name}.txt") for name in ("train", "test")}
    with pytest.raises(DataError, match=rf"\[0, {ROWS - 1}\] for {ROWS} rows, got {ROWS} on line"):
        TabularData(csv(), index_files=files, **REGRESSION).setup("fit")


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        ({}, {"target": "prize"}, r"target must be a column .* did you mean 'price'\?"),
        ({}, {"ignore": ("kinds",)}, r"ignore must be a column .* did you mean 'kind'\?"),
        ({}, {"ignore": ("id",)}, r"'kind' .* got '\w+' in row 0 .*name the column in ignore"),
        ({}, {"target": "kind", "ignore": ()}, r"column 'kind' .* set task to classification"),
        ({"age": float("nan")}, {}, r"60 in 'age' \(first in row 0\)"),
        ({"price": float("inf")}, {}, r"60 in 'price' \(first in row 0\)"),
        ({"age": [1e308, -1e308] * 30}, {}, r"'age' must have a finite variance"),
        ({}, {"ignore": ("id", "age", "size", "kind")}, r"an input column beside the target"),
    ],
)
def test_unusable_data_is_refused_in_setup_in_one_line(csv, change, arguments, message):
    data = TabularData(csv(table().assign(**change)), **{**REGRESSION, **arguments})
    with pytest.raises(DataError, match=message) as caught:
        data.setup("fit")
    assert "\n" not in str(caught.value)


def test_a_class_that_index_files_keep_from_training_is_refused(csv, tmp_path):
    frame = table()
    frame.loc[3, "kind"] = "castle"
    (tmp_path / "train.txt").write_text("\n".join(str(row) for row in range(10, ROWS)))
    (tmp_path / "test.txt").write_text("3\n4\n")
    files = {name: str(tmp_path / f"{name}.txt") for name in ("train", "test")}
    with pytest.raises(DataError, match=r"got none of the 1 of class 'castle'"):
        TabularData(csv(frame), index_files=files, **CLASSES).setup("fit")
    by_seed = TabularData(csv(frame), **CLASSES)
    assert 0 in rows_of(by_seed.train_dataloader())[1]  # "castle" comes first


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"task": "ranking"}, r"task must be regression or classification, got 'ranking'"),
        ({"ignore": ("target",)}, r"target cannot be ignored"),
        ({"ignore": "id"}, r"a list of column names, got 'id'"),
        ({"index_files": {"train": "a"}}, r"for train and for test.* got train"),
        ({"index_files": {"train": "a", "test": "b", "valid": "c"}}, r"got train, test, valid"),
        ({"index_files": {}}, r"got none"),
    ],
)
def test_settings_that_contradict_are_refused(arguments, message):
    with pytest.raises(RecipeError, match=message):
        TabularData(**arguments)


def trained(path, folder, **arguments):
    """Train a small model on ``path`` and return it with its data and its checkpoint."""
    data = TabularData(path, **arguments)
    trainer = L.Trainer(**TRAINER, default_root_dir=folder)
    model = Linear(data.num_features, data.num_outputs)
    trainer.fit(model, datamodule=data)
    return model, data, trainer.checkpoint_callback.best_model_path


def predicted(model, data, folder, path):
    trainer = L.Trainer(**TRAINER, default_root_dir=folder)
    answers = trainer.predict(model, datamodule=data, ckpt_path=path, weights_only=True)
    return torch.cat(answers)


def test_new_rows_are_scaled_as_the_model_was_trained(csv, tmp_path):
    model, data, path = trained(csv(), tmp_path, **REGRESSION)
    fresh = table(rows=7, seed=5)
    new = csv(fresh.drop(columns=["price", "id"])[["size", "kind", "age"]], name="new.csv")
    # The training file is gone: all that is needed is in the checkpoint.
    elsewhere = TabularData("gone.csv", predict_path=new, **REGRESSION)
    answers = predicted(model, elsewhere, tmp_path, path)
    values = torch.tensor(fresh[["age", "size"]].to_numpy())
    mean, scale = data.state_dict()["inputs"]
    expected = model(((values - mean) / scale).float())
    torch.testing.assert_close(answers, expected.detach())


def test_without_a_checkpoint_new_rows_are_scaled_by_the_training_file(csv):
    new = csv(table(rows=4, seed=1), name="new.csv")
    data = TabularData(csv(), predict_path=new, **REGRESSION)
    data.setup("predict")
    (inputs,) = data.predict_dataloader()
    mean, scale = data.state_dict()["inputs"]
    values = torch.tensor(table(rows=4, seed=1)[["age", "size"]].to_numpy())
    torch.testing.assert_close(inputs, ((values - mean) / scale).float())


def test_new_rows_without_an_input_are_refused(csv):
    new = csv(table()[["size"]], name="new.csv")
    data = TabularData(csv(), predict_path=new, **REGRESSION)
    with pytest.raises(DataError, match=r"every input must be a column of .*new.csv, got 'age'"):
        data.predict_dataloader()


def test_a_missing_file_of_new_rows_is_refused_in_setup(csv):
    data = TabularData(csv(), predict_path="absent.csv", **REGRESSION)
    with pytest.raises(DataError, match=r"must exist, got 'absent.csv'"):
        data.setup("predict")


def test_another_file_is_tested_in_the_units_and_classes_of_training(csv, tmp_path):
    frame = table().assign(kind=["a", "b", "c"] * 20)
    _, data, path = trained(csv(frame), tmp_path, **CLASSES)
    state = torch.load(path, weights_only=True)["TabularData"]
    fewer = frame[frame["kind"] != "b"][["kind", "size", "id", "age", "price"]]
    other = TabularData(csv(fewer, name="fewer.csv"), **CLASSES)
    other.setup("test")
    other.load_state_dict(state)
    inputs, target = rows_of(other.test_dataloader())
    rows = fewer.iloc[other.test_rows.numpy()]
    assert other.class_names == ("a", "b", "c")
    assert [data.class_names[number] for number in target.tolist()] == list(rows["kind"])
    mean, scale = data.state_dict()["inputs"]
    values = torch.tensor(rows[["age", "price", "size"]].to_numpy())
    torch.testing.assert_close(inputs, ((values - mean) / scale).float())


def test_data_that_does_not_fit_the_checkpoint_is_refused(csv, tmp_path):
    data = TabularData(csv(), **CLASSES)
    data.setup()
    state = data.state_dict()
    unknown = TabularData(csv(table().assign(kind=["large", "huge"] * 30)), **CLASSES)
    unknown.setup()
    with pytest.raises(DataError, match=r"trained on \(large, small\), got huge"):
        unknown.load_state_dict(state)
    narrow = TabularData(csv(table()[["age", "kind", "id"]], name="narrow.csv"), **CLASSES)
    narrow.load_state_dict(state)
    with pytest.raises(DataError, match=r"lacks price, size; it has age"):
        narrow.setup()
    quantity = TabularData(csv(), **REGRESSION)
    quantity.load_state_dict({**state, "features": ["age", "size"]})
    with pytest.raises(DataError, match=r"got a target without classes"):
        quantity.setup()


def test_data_that_was_never_read_has_no_state(csv):
    data = TabularData("gone.csv")
    assert data.state_dict() == {}
    data.load_state_dict({})
    assert TabularData(csv(), **REGRESSION).state_dict() == {}
