import os

import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stablelightning.errors import DataError, OutputError
from stablelightning.report import sorted_runs
from stablelightning.report.sorted_runs import SortedRuns, fitted, merged, schema_of

#: What several processes add, batch by batch: indices, in any order, perhaps several times.
PROCESSES = st.lists(st.lists(st.lists(st.integers(0, 60), max_size=9), max_size=6), max_size=4)


def table(index, **columns):
    index = pyarrow.array(index, pyarrow.int64())
    return pyarrow.table({"index": index, **columns})


def merged_rows(paths):
    return [row for part in merged(paths) for row in part.to_pylist()]


@pytest.fixture
def little_memory(monkeypatch):
    """Two rows wait, one is read at a time, and three files are open at once."""
    monkeypatch.setattr(sorted_runs, "_BUFFER_BYTES", 32)
    monkeypatch.setattr(sorted_runs, "_BLOCK_BYTES", 16)
    monkeypatch.setattr(sorted_runs, "_MOST_OPEN", 3)


@given(PROCESSES, st.booleans())
@settings(max_examples=60, deadline=None)
def test_every_index_once_in_order_and_the_first_process_counts(tmp_path_factory, added, little):
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        if little:
            patch.setattr(sorted_runs, "_BUFFER_BYTES", 32)
            patch.setattr(sorted_runs, "_BLOCK_BYTES", 16)
        paths = []
        for rank, batches in enumerate(added):
            runs = SortedRuns(folder, str(rank))
            for index in batches:
                runs.add(table(index, rank=[rank] * len(index)))
            paths += runs.close()
            assert runs.rows == sum(map(len, batches))
        expected = {}
        for rank, batches in enumerate(added):
            for place in (place for index in batches for place in index):
                expected.setdefault(place, rank)
        rows = merged_rows(paths)
    assert [row["index"] for row in rows] == sorted(expected)
    assert {row["index"]: row["rank"] for row in rows} == expected


def test_rows_in_order_make_one_run_however_many_they_are(tmp_path, little_memory):
    runs = SortedRuns(tmp_path, "0")
    for start in range(0, 200, 4):
        runs.add(table(range(start, start + 4)))
    paths = runs.close()
    assert len(paths) == 1
    assert [len(part) for part in merged(paths)] == [2] * 100  # one small block at a time


def test_more_runs_than_may_be_open_are_merged_in_turns(tmp_path, little_memory):
    runs = SortedRuns(tmp_path, "0")
    for start in reversed(range(0, 44, 4)):
        runs.add(table(range(start, start + 4)))
    paths = runs.close()
    assert len(paths) == 11
    assert [row["index"] for row in merged_rows(paths)] == list(range(44))


def test_columns_that_some_rows_lack_are_null(tmp_path):
    runs = SortedRuns(tmp_path, "0")
    runs.add(table([0], score=[0.5]))
    runs.add(table([1], name=["b"]))
    rows = merged_rows(runs.close())
    assert rows == [
        {"index": 0, "score": 0.5, "name": None},
        {"index": 1, "score": None, "name": "b"},
    ]


def test_numbers_of_other_widths_are_widened(tmp_path):
    runs = SortedRuns(tmp_path, "0")
    runs.add(table([0], score=pyarrow.array([1], pyarrow.int32())))
    runs.add(table([1], score=pyarrow.array([2.5], pyarrow.float32())))
    paths = runs.close()
    assert [row["score"] for row in merged_rows(paths)] == [1, 2.5]
    assert pyarrow.types.is_floating(schema_of(paths).field("score").type)


def test_columns_of_other_kinds_are_refused(tmp_path):
    runs = SortedRuns(tmp_path, "0")
    runs.add(table([0], score=[0.5]))
    runs.add(table([1], score=["high"]))
    with pytest.raises(DataError, match="same kind of columns in every batch"):
        list(merged(runs.close()))


def test_a_run_that_is_gone_is_told(tmp_path):
    runs = SortedRuns(tmp_path, "0")
    runs.add(table([0]))
    (path,) = runs.close()
    path.unlink()
    with pytest.raises(OutputError, match="a folder that all of them share"):
        list(merged([path]))


def test_a_folder_that_is_gone_is_told(tmp_path):
    runs = SortedRuns(tmp_path / "gone", "0")
    runs.add(table([0]))
    with pytest.raises(OutputError, match="choose another folder"):
        runs.close()


def test_discarded_runs_leave_nothing(tmp_path, little_memory):
    runs = SortedRuns(tmp_path, "0")
    for start in (8, 4, 0):
        runs.add(table(range(start, start + 4)))
    assert os.listdir(tmp_path)
    runs.discard()
    runs.discard()
    assert os.listdir(tmp_path) == []


def test_nothing_has_no_columns():
    assert schema_of([]) is None
    assert list(merged([])) == []


def test_fitted_keeps_the_order_of_the_schema():
    schema = pyarrow.schema({"a": pyarrow.int64(), "index": pyarrow.int64()})
    assert fitted(table([3]), schema).to_pylist() == [{"a": None, "index": 3}]
