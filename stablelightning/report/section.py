"""One part of the doctor's page or of a run's report: a sentence, a table, a picture."""

import io
import re
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TextIO

from stablelightning.errors import MissingPackageError
from stablelightning.optional import require

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import Group


@dataclass
class Section:
    """What one concern has to say, for the page, the terminal, a folder and W&B.

    Args:
        name: of its files and keys: ``"clipping"`` becomes ``plots/clipping.png``.
        title: its heading.
        lead: what was found, in one sentence.
        columns: of its table.
        rows: of its table; numbers and words.
        figure: its picture.
        notes: what else is to be known, each a sentence.
        numbers: for ``summary.json``, each ``concern/quantity``.

    Example:
        >>> print(Section("speed", "Speed", "Two is slower", ["batch", "ms"], [[1, 0.5], [2, 0.9]]))
        Speed
        Two is slower.
        <BLANKLINE>
        batch  ms
        1      0.5
        2      0.9
    """

    name: str
    title: str
    lead: str
    columns: list[str] = field(default_factory=list)
    rows: list[list[Any]] = field(default_factory=list)
    figure: "Figure | None" = None
    notes: list[str] = field(default_factory=list)
    numbers: dict[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [self.title, sentence(self.lead)]
        if self.rows:
            lines += ["", *_aligned([self.columns, *self.texts()])]
        lines += [f"Note: {sentence(note)}" for note in self.notes]
        return "\n".join(lines)

    def texts(self) -> list[list[str]]:
        """The rows as text, numbers to four digits."""
        return [[_text(cell) for cell in row] for row in self.rows]

    def to_dict(self) -> dict[str, Any]:
        """Everything but the picture, of plain types."""
        kept = ("name", "title", "lead", "columns", "rows", "notes", "numbers")
        return {name: getattr(self, name) for name in kept}


def sentence(text: str) -> str:
    """Begin a remark with a capital, unless it begins with a name, and end it with a full stop.

    Example:
        >>> sentence("the gradient vanishes"), sentence("body.3 is dead.")
        ('The gradient vanishes.', 'body.3 is dead.')
    """
    text = text.strip()
    if text.partition(" ")[0].replace("-", "").isalpha():
        text = text[0].upper() + text[1:]
    return text if not text or text[-1] in ".!?" else f"{text}."


def print_section(section: Section, *, file: TextIO | None = None) -> None:
    """Print a section: with rich on a terminal, as plain text to files and pipes.

    Args:
        section: its picture is not shown.
        file: where to; ``None`` is ``sys.stdout``.

    Example:
        >>> print_section(Section("speed", "Speed", "fast enough"))
        Speed
        Fast enough.
    """
    file = file or sys.stdout
    if file.isatty():
        try:
            console = require("rich.console", extra="recipes").Console(file=file, highlight=False)
            console.print(_rich(section))
            return
        except MissingPackageError:
            pass
    print(section, file=file)


def svg(figure: "Figure") -> Any:
    """A figure as SVG that is safe to put into HTML; equal figures give equal text.

    Args:
        figure: of matplotlib.

    Raises:
        MissingPackageError: jinja2 or matplotlib is not installed.

    Example:
        >>> from stablelightning.report.style import new_figure
        >>> svg(new_figure(1, 1)).startswith("<svg")
        True
    """
    matplotlib = require("matplotlib", extra="recipes")
    buffer = io.StringIO()
    # Without a date and with a salt of its own, equal pictures make equal pages.
    with matplotlib.rc_context({"svg.hashsalt": "stablelightning"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    return require("markupsafe", extra="recipes").Markup(text)


def _rich(section: Section) -> "Group":
    text = require("rich.text", extra="recipes").Text
    parts: list[object] = [text(section.title, style="bold"), text(sentence(section.lead))]
    if section.rows:
        table = require("rich.table", extra="recipes").Table(box=None, pad_edge=False)
        for number, column in enumerate(section.columns):
            table.add_column(column, justify="right" if number else "left", header_style="dim")
        for row in section.texts():
            table.add_row(*row)
        parts += [text(""), table]
    parts += [text(f"Note: {sentence(note)}", style="dim") for note in section.notes]
    return require("rich.console", extra="recipes").Group(*parts)  # type: ignore[no-any-return]


def _text(cell: Any) -> str:
    if isinstance(cell, bool) or not isinstance(cell, int | float):
        return "-" if cell is None else str(cell)
    return f"{cell:,}" if isinstance(cell, int) else f"{cell:.4g}"


def _aligned(rows: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    padded = ([cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in rows)
    return ["  ".join(row).rstrip() for row in padded]
