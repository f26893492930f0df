"""A file is there whole, or as it was before."""

from pathlib import Path

import pytest

from stablelightning.errors import OutputError
from stablelightning.files import written_whole


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "numbers.json"
    path.write_text("old")

    def fail_half_way() -> None:
        with written_whole(path) as temporary:
            temporary.write_text("half")
            raise KeyError("something of the caller's")

    with pytest.raises(KeyError, match="something of the caller's"):
        fail_half_way()
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["numbers.json"]


def test_parents_are_made_and_the_suffix_is_kept(tmp_path: Path) -> None:
    with written_whole(tmp_path / "a" / "b.png") as temporary:
        assert temporary.suffix == ".png"
        temporary.write_text("whole")
    assert (tmp_path / "a" / "b.png").read_text() == "whole"


def test_a_file_in_the_place_of_the_folder_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with (
        pytest.raises(OutputError, match=r"must be written to .*taken.*another folder"),
        written_whole(tmp_path / "taken" / "numbers.json") as temporary,
    ):
        temporary.write_text("never")
