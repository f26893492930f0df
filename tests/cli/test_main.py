"""The light door: help, version, unknown verbs, and what becomes of an exception."""

import subprocess
import sys

import pytest

from stablelightning import __version__
from stablelightning.cli.main import VERBS, main

HEAVY = ("torch", "lightning", "wandb", "jsonargparse")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        [],
        ["run", "--list"],
        ["run", "--help"],
        ["predict", "--help"],
        ["doctor", "--help"],
        ["run", "no"],
    ],
)
def test_light_answers_import_nothing_heavy(arguments):
    code = (
        "import sys; from stablelightning.cli.main import main; status = main(sys.argv[1:]); "
        f"heavy = [m for m in {HEAVY!r} if m in sys.modules]; assert not heavy, heavy; "
        "sys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert done.returncode == (2 if arguments[-1:] == ["no"] else 0), done.stderr


def test_help_names_every_verb_and_no_other(capsys):
    assert main(["--help"]) == 0
    printed = capsys.readouterr().out
    listed = [
        line.split()[0]
        for line in printed.splitlines()
        if line.startswith("  ") and "  " in line.strip()
    ]
    assert [word for word in listed if not word.startswith("-")] == list(VERBS)


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == f"stablelightning {__version__}"


def test_unknown_verb_names_the_nearest(capsys):
    assert main(["ftt"]) == 2
    error = capsys.readouterr().err
    assert "got 'ftt'; did you mean 'fit'?" in error
    assert error.count("\n") == 1


def test_unexpected_error_is_one_line_with_a_hint(capsys, monkeypatch):
    monkeypatch.setattr("stablelightning.cli.run.listing", lambda: 1 / 0)
    assert main(["run", "--list"]) == 1
    error = capsys.readouterr().err
    assert "ZeroDivisionError" in error
    assert "--debug" in error
    assert error.count("\n") == 1


def test_debug_lets_the_traceback_through(monkeypatch):
    monkeypatch.setattr("stablelightning.cli.run.listing", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["run", "--list", "--debug"])


def test_interrupt_is_quiet(capsys, monkeypatch):
    def interrupt():
        raise KeyboardInterrupt

    monkeypatch.setattr("stablelightning.cli.run.listing", interrupt)
    assert main(["run", "--list"]) == 130
    assert "Traceback" not in capsys.readouterr().err
