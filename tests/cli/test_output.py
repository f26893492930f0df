"""Choosing and checking the folder of a run."""

import pytest

from stablelightning.cli.output import (
    announced,
    choose_folder,
    make_folder,
    remove_stillborn,
    reserved,
)
from stablelightning.errors import OutputError


@pytest.fixture(autouse=True)
def in_tmp(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_default_takes_the_first_free_number(in_tmp):
    assert choose_folder(None, "digits") == in_tmp / "runs" / "digits-1"
    (in_tmp / "runs" / "digits-1").mkdir(parents=True)
    assert choose_folder(None, "digits") == in_tmp / "runs" / "digits-2"


def test_choosing_leaves_nothing_behind(in_tmp):
    choose_folder(None, "digits")
    choose_folder("deep/er/out", "digits")
    assert list(in_tmp.iterdir()) == []


def test_an_empty_folder_is_taken_a_full_one_is_not(in_tmp):
    (in_tmp / "out").mkdir()
    assert choose_folder("out", "digits") == in_tmp / "out"
    (in_tmp / "out" / "file").touch()
    with pytest.raises(OutputError, match="new or empty folder, got 'out'"):
        choose_folder("out", "digits")


@pytest.mark.parametrize("wanted", ["file", "file/below", "/proc/below", "/dev/null"])
def test_what_cannot_be_a_folder_is_refused(in_tmp, wanted):
    (in_tmp / "file").touch()
    with pytest.raises(OutputError, match="can be written"):
        choose_folder(wanted, "digits")


def test_make_folder_reports_its_failure(in_tmp):
    (in_tmp / "file").touch()
    with pytest.raises(OutputError, match="can be written"):
        make_folder(in_tmp / "file" / "below")


@pytest.mark.parametrize("existing", [".", "runs", "runs/a"])
def test_a_stillborn_run_takes_with_it_only_what_was_made_for_it(in_tmp, existing):
    (in_tmp / existing).mkdir(parents=True, exist_ok=True)
    folder = in_tmp / "runs" / "a"
    made = make_folder(folder)
    (folder / "config.yaml").touch()
    remove_stillborn(folder, made)
    assert not folder.exists()
    assert (in_tmp / "runs").exists() == (existing != ".")


def test_runs_that_begin_at_once_take_folders_of_their_own(in_tmp, monkeypatch):
    first = in_tmp / "runs" / "digits-1"
    with reserved(None, "digits") as one, reserved(None, "digits") as two:
        assert (one, two) == (first, in_tmp / "runs" / "digits-2")
        (two / "summary.json").touch()
        monkeypatch.setenv("LOCAL_RANK", "1")
        with reserved(None, "digits") as further:
            assert further == two
        assert two.is_dir()
    assert not one.exists()  # nothing was put into it
    assert (two / "summary.json").exists()


def test_a_number_that_is_taken_between_the_look_and_the_making_is_not_shared(in_tmp, monkeypatch):
    looked = iter([in_tmp / "runs" / "digits-1", in_tmp / "runs" / "digits-2"])
    monkeypatch.setattr("stablelightning.cli.output.choose_folder", lambda *_: next(looked))
    (in_tmp / "runs" / "digits-1").mkdir(parents=True)
    with reserved(None, "digits") as folder:
        assert folder == in_tmp / "runs" / "digits-2"


def test_a_reservation_that_comes_to_nothing_leaves_nothing(in_tmp):
    with pytest.raises(KeyError), reserved(None, "digits"):
        raise KeyError
    assert list(in_tmp.iterdir()) == []


def test_further_processes_take_the_announced_folder(in_tmp, monkeypatch):
    with announced(in_tmp / "chosen"):
        assert choose_folder(None, "digits") == in_tmp / "runs" / "digits-1"  # started by hand
        monkeypatch.setenv("LOCAL_RANK", "1")
        assert choose_folder(None, "digits") == in_tmp / "chosen"
    monkeypatch.delenv("LOCAL_RANK")
    assert choose_folder(None, "digits") == in_tmp / "runs" / "digits-1"


def test_processes_that_a_launcher_started_do_not_stumble_over_the_first(in_tmp, monkeypatch):
    (in_tmp / "out").mkdir()
    (in_tmp / "out" / "config.yaml").touch()
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert choose_folder("out", "digits") == in_tmp / "out"
