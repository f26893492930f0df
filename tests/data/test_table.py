from decimal import Decimal

import pandas as pd
import pytest
import torch

from stablelightning.data.table import check_columns, class_values, numeric_values, read_table
from stablelightning.errors import DataError


def written(tmp_path, text, name="data.csv", encoding="utf-8"):
    path = tmp_path / name
    path.write_bytes(text.encode(encoding))
    return str(path)


def numbers(frame, columns):
    return numeric_values(frame, columns, source="data.csv", remedy="mend it.")


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("a,b c\n1,2\n3,4\n", "data.csv"),
        ("a, b c\r\n1, 2\r\n3, 4\r\n", "data.CSV"),
        ('"a";"b c"\n1;2\n3;4', "data.csv"),
        ("a\tb c\n1\t2\n3\t4\n", "data.tsv"),
        ("\ufeffa,b c\n1,2\n3,4\n", "data.csv"),
        ("a,b c\n1,2,\n3,4,\n", "data.csv"),
    ],
    ids=["plain", "spaces and CRLF", "semicolons", "tabs", "byte-order mark", "trailing commas"],
)
def test_csv_dialects_are_read_alike(tmp_path, text, name):
    frame = read_table(written(tmp_path, text, name))
    assert numbers(frame, ["b c", "a"]).tolist() == [[2.0, 1.0], [4.0, 3.0]]


def test_parquet_is_read_whatever_its_row_names(tmp_path):
    path = str(tmp_path / "data.parquet")
    pd.DataFrame({"a": [1, 2]}, index=[7, 9]).to_parquet(path)
    frame = read_table(path)
    assert list(frame.index) == [0, 1]
    assert numbers(frame, ["a"]).tolist() == [[1.0], [2.0]]


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        ("a,b\n", "data.csv", r"must have rows, got none in .*data.csv"),
        ("", "data.csv", r"must have rows, got an empty file"),
        ("a,b\n1,2\n", "data.xlsx", r"must end in .csv, .tsv, .parquet, .pq, got .*data.xlsx"),
        ("a,b\n1,2\n", "data", r"must end in"),
        ("a,a\n1,2\n", "data.csv", r"names must be unique, got 'a' more than once"),
        (",a\n0,2\n1,4\n", "data.csv", r"must have a name, got none for column 1 of 2"),
        ('"","a"\n"1",2\n', "data.csv", r"must have a name, got none for column 1 of 2"),
        ("a;b;\n1;2;\n", "data.csv", r"must have a name, got none for column 3 of 3"),
        ("a,b\n1,2\n1,2,3\n", "data.csv", r"must be readable.*line 3"),
        ("a,b\n1,2,3\n4,5,6\n", "data.csv", r"as many fields as the header, got more"),
        ("hello", "data.parquet", r"must be readable"),
    ],
)
def test_unusable_files_are_refused_in_one_line(tmp_path, text, name, message):
    with pytest.raises(DataError, match=message) as caught:
        read_table(written(tmp_path, text, name))
    assert "\n" not in str(caught.value)


def test_a_file_in_another_encoding_is_refused_in_one_line(tmp_path):
    with pytest.raises(DataError, match=r"must be readable, got .*data.csv.*utf-8"):
        read_table(written(tmp_path, "größe,b\n1,2\n", encoding="latin-1"))


def test_a_missing_file_is_named_with_the_folder_looked_in(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=rf"got 'absent.csv', .*looked in {tmp_path}"):
        read_table("absent.csv")


def test_a_missing_column_is_named_with_the_nearest_one():
    frame = pd.DataFrame(columns=["age", "Price", *"cdefghij"])
    check_columns(frame, ["age", "Price"], role="target", source="x.csv")
    with pytest.raises(DataError, match=r"got 'prise'; did you mean 'Price'\?") as caught:
        check_columns(frame, ["age", "prise"], role="target", source="x.csv")
    assert str(caught.value).endswith("Its columns: age, Price, c, d, e, f, g, h and 2 more.")
    with pytest.raises(DataError, match=r"got 'quantity'. Its columns: age"):
        check_columns(frame, ["quantity"], role="target", source="x.csv")


@pytest.mark.parametrize(
    "values",
    [
        [1, 0],
        [True, False],
        ["1", "0"],
        [Decimal(1), Decimal(0)],
        pd.Categorical(["1", "0"]),
        pd.Categorical([1, 0]),
        pd.array([1, 0], dtype="Int64"),
        pd.array([True, False], dtype="boolean"),
    ],
    ids=lambda values: f"{type(values).__name__} of {values[0]!r}",
)
def test_numbers_in_many_guises_are_numbers(values):
    read = numbers(pd.DataFrame({"a": values}), ["a"])
    assert read.dtype == torch.float64
    assert read.tolist() == [[1.0], [0.0]]


def test_text_is_named_by_column_first_row_and_value():
    frame = pd.DataFrame({"a": [1, 2, 3], "b": ["1", "many", "few"]})
    message = r"^column 'b' of data.csv must hold numbers, got 'many' in row 1 .*; mend it.$"
    with pytest.raises(DataError, match=message):
        numbers(frame, ["a", "b"])


def test_dates_are_no_numbers():
    frame = pd.DataFrame({"day": pd.to_datetime(["2020-01-01"])})
    with pytest.raises(DataError, match=r"'day' of data.csv must hold numbers, got datetime"):
        numbers(frame, ["day"])


def test_missing_and_infinite_values_are_counted_by_column():
    frame = pd.DataFrame({"a": [0, None, 1], "b": [1, 2, 3], "c": [float("inf")] * 3})
    message = r"in data.csv: 1 in 'a' \(first in row 1\), 3 in 'c' \(first in row 0\); fill"
    with pytest.raises(DataError, match=message):
        numbers(frame, ["a", "b", "c"])
    wide = pd.DataFrame({name: [float("nan")] for name in "abcde"})
    with pytest.raises(DataError, match=r"'c' \(first in row 0\), and 2 more columns; fill"):
        numbers(wide, list("abcde"))


def test_no_columns_are_an_empty_table():
    assert numbers(pd.DataFrame({"a": [1, 2]}), []).shape == (2, 0)


@pytest.mark.parametrize(
    ("values", "codes", "names"),
    [
        (["b", "a", "b"], [1, 0, 1], ("a", "b")),
        ([10, 9, 10], [1, 0, 1], ("9", "10")),
        ([2.0, 1.0, 2.0], [1, 0, 1], ("1", "2")),
        ([True, False, True], [1, 0, 1], ("False", "True")),
        (pd.Categorical(["b", "a", "b"]), [1, 0, 1], ("a", "b")),
    ],
)
def test_classes_are_numbered_in_order(values, codes, names):
    classes = class_values(pd.DataFrame({"kind": values}), "kind", source="x.csv")
    assert (classes.codes.tolist(), classes.names) == (codes, names)
    assert classes.codes.dtype == torch.long


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["a", None], r"1 without one in 'kind' of x.csv \(first in row 1"),
        ([1.0, 2.5], r"whole numbers, got 2.5 in row 1 of 'kind' in x.csv"),
        ([1.0, float("inf")], r"whole numbers, got inf in row 1"),
        (["a", "a"], r"at least two classes, got only 'a'"),
    ],
)
def test_a_target_that_is_no_class_is_refused(values, message):
    with pytest.raises(DataError, match=message):
        class_values(pd.DataFrame({"kind": values}), "kind", source="x.csv")
