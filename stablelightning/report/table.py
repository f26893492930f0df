"""The summary of a run as tables: rich on a terminal, plain text elsewhere."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

from stablelightning.errors import MissingPackageError
from stablelightning.optional import require

if TYPE_CHECKING:
    from rich.table import Table as RichTable

Numbers = Mapping[str, float | None]

_MC = "_mc"
_AUROC = "auroc_"

# Quantities of which less is better; of the others that are compared, more is.
_LESS_IS_BETTER = ("nll", "brier", "ece", "rmse", "mae", "mse", "error", "loss", "crps")
# Coverage is best near its nominal value, width beside coverage: neither word fits alone.
_OF_INTERVALS = ("coverage", "width")

_DECIMALS = 4
_SMALLEST_FIXED = 1e-3  # below it, four decimals would show one digit or none

_WORDS = {
    "ece": "expected calibration error",
    "nll": "negative log-likelihood (nats)",
    "brier": "Brier score",
    "rmse": "root mean squared error",
    "mae": "mean absolute error",
}


@dataclass(frozen=True)
class Table:
    """Rows of text under a caption; the first column names, the others hold numbers."""

    caption: str
    columns: list[str]
    rows: list[list[str]]


def summary_tables(summary: Numbers) -> list[Table]:
    """Sort the numbers of a summary into tables.

    Args:
        summary: what :func:`stablelightning.report.summary.build_summary` gives.

    Returns:
        Up to three tables: quantities that stand with and without ``_mc``, side by side with their
        difference; AUROC of every score on every out-of-distribution set; all that is left.

    Example:
        >>> (table,) = summary_tables({"test/accuracy": 0.97, "test/accuracy_mc": 0.98})
        >>> table.rows
        [['accuracy', '0.9700', '0.9800', '+0.0100', 'better']]
    """
    pairs = [key for key in summary if f"{key}{_MC}" in summary and not key.startswith("ood/")]
    unknown = [key for key in summary if key.startswith("ood/") and f"/{_AUROC}" in key]
    taken = {*pairs, *(f"{key}{_MC}" for key in pairs), *unknown}
    rest = [key for key in summary if key not in taken]
    tables = []
    if pairs:
        columns = ["", "one pass", "MC dropout", "difference", ""]
        rows = [_compared(key, summary[key], summary[f"{key}{_MC}"]) for key in pairs]
        tables.append(Table("Predictions on the test set", columns, rows))
    if unknown:
        tables.append(_unknown_table(summary, unknown))
    if rest:
        rows = [[key, _number(summary[key])] for key in rest]
        tables.append(Table("Other numbers", ["", "value"], rows))
    return tables


def _compared(key: str, plain: float | None, sampled: float | None) -> list[str]:
    quantity = key.rpartition("/")[2]
    cells = [_quantity_name(quantity), _number(plain), _number(sampled)]
    if plain is None or sampled is None:
        return [*cells, "-", ""]
    difference = round(sampled - plain, _DECIMALS)
    if difference == 0:
        return [*cells, _number(0.0), ""]
    return [*cells, f"{difference:+.{_DECIMALS}f}", _verdict(quantity, difference)]


def _quantity_name(quantity: str) -> str:
    name, _, level = quantity.rpartition("_")
    if level.isdecimal() and name in _OF_INTERVALS:
        return f"{name} of {level} % intervals"
    return _WORDS.get(quantity, quantity.replace("_", " "))


def _verdict(quantity: str, difference: float) -> str:
    if quantity.startswith(_OF_INTERVALS):
        return ""
    less_is_better = any(part in _LESS_IS_BETTER for part in quantity.split("_"))
    return "better" if (difference < 0) == less_is_better else "worse"


def _unknown_table(summary: Numbers, keys: list[str]) -> Table:
    sets: dict[str, dict[str, float | None]] = {}
    for key in keys:
        _, name, score = key.split("/", 2)
        sets.setdefault(name, {})[score.removeprefix(_AUROC)] = summary[key]
    scores = sorted({score for values in sets.values() for score in values})
    columns = ["", *(_score_name(score) for score in scores)]
    rows = [
        [name.replace("_", " "), *(_number(values.get(score)) for score in scores)]
        for name, values in sets.items()
    ]
    caption = "Unknown inputs told from the test set (AUROC: 0.5 is chance, 1 is always)"
    return Table(caption, columns, rows)


def _score_name(score: str) -> str:
    return score.removesuffix(_MC).replace("_", " ") + (" (MC)" if score.endswith(_MC) else "")


def _number(value: float | None) -> str:
    """Four decimals for measures, none for counts, powers of ten for tiny ones, a dash for none."""
    if value is None:
        return "-"
    if value == int(value) and abs(value) >= 2:
        return f"{value:,.0f}"
    if 0 < abs(value) < _SMALLEST_FIXED:
        return f"{value:.1e}"
    return f"{value:,.1f}" if abs(value) >= 1000 else f"{value:.{_DECIMALS}f}"


def format_summary(summary: Numbers, *, title: str | None = None) -> str:
    """Set the tables as plain text, without colour codes, for files and pipes.

    Args:
        summary: what :func:`stablelightning.report.summary.build_summary` gives.
        title: a line above the tables.

    Example:
        >>> print(format_summary({"ood/rotated_digits/auroc_mutual_information": 0.95}))
        Unknown inputs told from the test set (AUROC: 0.5 is chance, 1 is always)
        ----------------------------------
                        mutual information
        rotated digits              0.9500
    """
    blocks = [title] if title else []
    for table in summary_tables(summary):
        lines = [table.columns, *table.rows]
        widths = [max(len(line[i]) for line in lines) for i in range(len(table.columns))]
        text = [
            "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip()
            for line in lines
        ]
        blocks.append("\n".join([table.caption, "-" * max(map(len, text)), *text]))
    return "\n\n".join(blocks)


def print_summary(
    summary: Numbers, *, title: str | None = None, file: TextIO | None = None
) -> None:
    """Print the tables: with rich on a terminal, as plain text to files and where rich is missing.

    Args:
        summary: what :func:`stablelightning.report.summary.build_summary` gives.
        title: a line above the tables.
        file: where to; ``None`` is ``sys.stdout``.
    """
    file = file or sys.stdout
    if file.isatty():
        try:
            _print_rich(summary, title, file)
            return
        except MissingPackageError:
            pass
    print(format_summary(summary, title=title), file=file)


def _print_rich(summary: Numbers, title: str | None, file: TextIO) -> None:
    console = require("rich.console", extra="recipes").Console(file=file, highlight=False)
    if title:
        console.print(title, style="bold", markup=False)
    for table in summary_tables(summary):
        console.print()
        console.print(_rich_table(table))


def _rich_table(table: Table) -> "RichTable":
    rich = require("rich.table", extra="recipes")
    text = require("rich.text", extra="recipes").Text
    box = require("rich.box", extra="recipes").SIMPLE_HEAD
    built: RichTable = rich.Table(
        title=table.caption, title_justify="left", title_style="bold", box=box, pad_edge=False
    )
    for place, column in enumerate(table.columns):
        built.add_column(column, justify="right" if place and column else "left")
    for row in table.rows:
        # Blue and yellow are told apart with every common colour blindness; the words say it too.
        style = {"better": "blue", "worse": "yellow"}.get(row[-1], "")
        built.add_row(*row[:-1], text(row[-1], style=style))
    return built
