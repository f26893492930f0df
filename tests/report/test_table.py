"""The tables hold the numbers, side by side; files get no colour codes."""

import io

import pytest

from stablelightning.errors import MissingPackageError
from stablelightning.report import table
from stablelightning.report.table import format_summary, print_summary, summary_tables

SUMMARY = {
    "ood/held_out_digits/auroc_max_softmax": 0.91,
    "ood/held_out_digits/auroc_mutual_information": 0.95,
    "ood/rotated_digits/auroc_mutual_information": None,
    "run/seconds": 13.25,
    "uncertainty/accuracy": 0.9816,
    "uncertainty/accuracy_mc": 0.9834,
    "uncertainty/brier": 0.03,
    "uncertainty/brier_mc": 0.03001,
    "uncertainty/coverage_90": 0.86,
    "uncertainty/coverage_90_mc": 0.93,
    "uncertainty/nll": 0.05,
    "uncertainty/nll_mc": None,
    "uncertainty/ece": 0.006,
    "uncertainty/ece_mc": 0.021,
    "uncertainty/samples_used": 50.0,
}


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def plain_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "COLORTERM"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "120")


def test_pairs_stand_side_by_side_with_their_difference_and_a_verdict() -> None:
    compared, _, _ = summary_tables(SUMMARY)
    rows = {row[0]: row[1:] for row in compared.rows}
    assert rows == {
        "accuracy": ["0.9816", "0.9834", "+0.0018", "better"],
        "Brier score": ["0.0300", "0.0300", "0.0000", ""],
        "coverage of 90 % intervals": ["0.8600", "0.9300", "+0.0700", ""],
        "negative log-likelihood (nats)": ["0.0500", "-", "-", ""],
        "expected calibration error": ["0.0060", "0.0210", "+0.0150", "worse"],
    }


def test_unknown_sets_are_rows_and_scores_are_columns() -> None:
    _, unknown, _ = summary_tables(SUMMARY)
    assert unknown.columns == ["", "max softmax", "mutual information"]
    assert unknown.rows == [["held out digits", "0.9100", "0.9500"], ["rotated digits", "-", "-"]]


def test_nothing_is_left_out() -> None:
    _, _, rest = summary_tables(SUMMARY)
    assert rest.rows == [["run/seconds", "13.2500"], ["uncertainty/samples_used", "50"]]
    assert summary_tables({}) == []


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0.0000"), (1.0, "1.0000"), (1234.0, "1,234"), (1234.56, "1,234.6"), (2e-5, "2.0e-05")],
)
def test_numbers_keep_their_digits(value: float, text: str) -> None:
    assert summary_tables({"a/x": value})[0].rows == [["a/x", text]]


def test_a_file_gets_aligned_text_without_colour_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    file = io.StringIO()
    print_summary(SUMMARY, title="digits-1", file=file)
    text = file.getvalue()
    assert text == format_summary(SUMMARY, title="digits-1") + "\n"
    assert text.isascii()
    assert "\x1b" not in text
    assert text.startswith("digits-1\n\nPredictions on the test set\n")
    header, first = text.splitlines()[4:6]
    assert header.index("MC dropout") + len("MC dropout") == first.index("0.9834") + len("0.9834")


def test_a_terminal_gets_the_same_numbers_through_rich() -> None:
    terminal = Terminal()
    print_summary(SUMMARY, title="digits-1", file=terminal)
    text = terminal.getvalue()
    assert "\x1b[" in text
    for cell in ("digits-1", "0.9834", "+0.0150", "held out digits", "0.9500", "13.2500"):
        assert cell in text


def test_markup_in_a_title_is_text() -> None:
    terminal = Terminal()
    print_summary({}, title="run [/bold] 1", file=terminal)
    assert "run [/bold] 1" in terminal.getvalue()


def test_without_rich_a_terminal_gets_plain_text(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str, *, extra: str) -> None:
        raise MissingPackageError(f"{name} must be installed")

    monkeypatch.setattr(table, "require", missing)
    terminal = Terminal()
    print_summary(SUMMARY, file=terminal)
    assert terminal.getvalue() == format_summary(SUMMARY) + "\n"
