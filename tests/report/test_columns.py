import pyarrow
import torch

from stablelightning.report.columns import flat_columns, plain_column


def lists(columns):
    return {name: pyarrow.array(column).to_pylist() for name, column in columns.items()}


def test_vectors_are_spread_and_dense_rows_are_lists():
    rows = {
        "mean": torch.arange(12.0).view(2, 2, 3),
        "total": torch.ones(2, 2),
        "one": torch.ones(2),
    }
    columns = lists(flat_columns(rows))
    assert list(columns) == ["mean", "total_0", "total_1", "one"]
    assert columns["mean"] == [list(range(6)), list(range(6, 12))]


def test_the_class_stands_before_its_probabilities():
    mean = torch.tensor([[0.1, 0.9], [0.8, 0.2]])
    assert lists(flat_columns({"mean": mean}))["prediction"] == [1, 0]
    assert "prediction" not in flat_columns({"mean": mean}, classification=False)
    several = {"mean": mean, "target": torch.ones(2, 2)}
    assert "prediction" not in flat_columns(several)
    assert "prediction" not in flat_columns({"mean": torch.ones(2, 3, 4)}, classification=True)


def test_words_stay_words():
    assert flat_columns({"file": ["a", "b"]}) == {"file": ["a", "b"]}


def test_numbers_that_files_do_not_know_are_widened():
    assert plain_column(torch.ones(1, dtype=torch.float16)).dtype == torch.float32
    assert plain_column(torch.ones(1, dtype=torch.int16)).dtype == torch.int16
