"""A diagnosis on one page: its depth plot and its findings, as a figure and on a terminal.

The same as HTML is made in :mod:`stablelightning.report.page`.
"""

import math
import sys
import textwrap
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TextIO

from stablelightning.errors import MissingPackageError
from stablelightning.optional import require
from stablelightning.report.depth import (
    DEPTH_HEIGHT,
    DEPTH_WIDTH,
    SEVERITIES,
    depth_sentence,
    draw_depth,
)
from stablelightning.report.section import sentence
from stablelightning.report.style import COLOURS, INK, MUTED, new_figure, say

if TYPE_CHECKING:
    from matplotlib.figure import Figure, SubFigure
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    from stablelightning.model.cures import Treatment
    from stablelightning.model.diagnosis import Diagnosis, Finding

_MOST_IN_FIGURE = 8  # findings; the page and the terminal have them all
_LINE_INCHES = 0.165
_LETTERS_PER_LINE = 118
_MOST_LINES = 3  # of a finding's message, and of its remedy
_LONGEST_PLACE = 60  # letters
_TEXT_SIZE = 8.5

_BARS = "▁▂▃▄▅▆▇█"
_MOST_BARS = 56
_STYLES = {"error": "bold red", "warning": "yellow", "info": "cyan"}
_SIGNS = {"error": "✖", "warning": "▲", "info": "●"}


def diagnosis_figure(diagnosis: "Diagnosis") -> "Figure":
    """Draw the depth plot, and underneath what was done and the findings, worst first.

    Args:
        diagnosis: with its ``before`` where cures were applied.

    Returns:
        A figure of the first eight findings; how many more there are is said.

    Raises:
        DataError: the diagnosis has no layers.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> import stablelightning as sl
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> diagnosis_figure(sl.diagnose(net, torch.randn(16, 4))).get_suptitle()
        'Over 2 layers the signal holds, and the gradient holds on its way back'
    """
    blocks = [_Block.of(finding) for finding in diagnosis.findings[:_MOST_IN_FIGURE]]
    blocks[:0] = [_Block.done(treatment) for treatment in diagnosis.treatments]
    left_out = max(len(diagnosis.findings) - _MOST_IN_FIGURE, 0)
    lines = 2.6 + sum(len(block.lines) + 1.5 for block in blocks)
    text_height = lines * _LINE_INCHES
    figure = new_figure(DEPTH_WIDTH, DEPTH_HEIGHT + text_height)
    parts: Any = figure.subfigures(2, 1, height_ratios=[DEPTH_HEIGHT, text_height])
    upper, lower = parts
    draw_depth(upper, diagnosis)
    say(figure, depth_sentence(diagnosis))
    _write_blocks(lower, blocks, summary_line(diagnosis), lines, left_out)
    return figure


@dataclass(frozen=True)
class _Block:
    """One finding, or one treatment, as lines of the figure."""

    sign: str
    colour: str
    name: str
    place: str
    lines: list[str]

    @classmethod
    def done(cls, treatment: "Treatment") -> "_Block":
        sign, colour = ("✔", COLOURS[2]) if treatment.done else ("✖", MUTED)
        place = "done" if treatment.done else "left as it was"
        return cls(sign, colour, treatment.cure, place, _wrapped(sentence(treatment.words)))

    @classmethod
    def of(cls, finding: "Finding") -> "_Block":
        said = _wrapped(sentence(finding.message))
        remedy = _wrapped(f"→ {sentence(finding.remedy)}")
        place = finding.module
        if len(place) > _LONGEST_PLACE:
            place = f"…{place[1 - _LONGEST_PLACE :]}"
        place = f"{finding.severity}{f' at {place}' if place else ''}"
        sign, colour = _SIGNS[finding.severity], SEVERITIES[finding.severity]
        return cls(sign, colour, finding.code, place, [*said, *remedy])


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, _LETTERS_PER_LINE, max_lines=_MOST_LINES, placeholder=" …")


def _write_blocks(
    figure: "SubFigure", blocks: Sequence[_Block], summary: str, lines: float, left_out: int
) -> None:
    def write(line: float, x: float, text: str, **look: Any) -> None:
        figure.text(x, 1 - line / lines, text, va="top", fontsize=_TEXT_SIZE, **look)

    write(0.2, 0.02, summary, color=INK, fontweight="bold")
    if left_out:
        write(0.2, 0.98, f"{left_out} more on the page", color=MUTED, ha="right")
    line = 1.9
    for block in blocks:
        write(line, 0.02, block.sign, color=block.colour)
        write(line, 0.042, block.name, color=INK, fontweight="bold")
        write(line, 0.98, block.place, color=MUTED, ha="right")
        for number, text in enumerate(block.lines, 1):
            write(line + number, 0.042, text, color=INK)
        line += len(block.lines) + 1.5


def summary_line(diagnosis: "Diagnosis") -> str:
    """How many findings there are of each severity, and how many cures were applied.

    Example:
        >>> import torch
        >>> import stablelightning as sl
        >>> summary_line(sl.diagnose(torch.nn.Linear(4, 2), torch.randn(16, 4)))
        'no findings'
    """
    count = Counter[str](finding.severity for finding in diagnosis.findings)
    words = {"error": "error", "warning": "warning", "info": "note"}
    said = [
        f"{count[severity]} {word}{'s' if count[severity] > 1 else ''}"
        for severity, word in words.items()
        if count[severity]
    ]
    now = ", ".join(said) or "no findings"
    if diagnosis.before is None:
        return now
    return f"{now}; before the cures, {summary_line(diagnosis.before)}"


# ---- on a terminal --------------------------------------------------------------------------


def print_diagnosis(diagnosis: "Diagnosis", *, title: str = "", file: TextIO | None = None) -> None:
    """Print a diagnosis: with rich on a terminal, as plain text to files and pipes.

    Args:
        diagnosis: with its ``before`` where cures were applied.
        title: a line above it.
        file: where to; ``None`` is ``sys.stdout``.

    Example:
        >>> import torch
        >>> import stablelightning as sl
        >>> diagnosis = sl.diagnose(torch.nn.Linear(4, 2), torch.randn(16, 4))
        >>> print_diagnosis(diagnosis, title="one layer")  # doctest: +ELLIPSIS
        one layer
        ...
    """
    file = file or sys.stdout
    if file.isatty():
        try:
            console = require("rich.console", extra="recipes").Console(file=file, highlight=False)
            console.print(rich_diagnosis(diagnosis, title=title))
            return
        except MissingPackageError:
            pass
    print("\n".join([*([title] if title else []), str(diagnosis)]), file=file)


def rich_diagnosis(diagnosis: "Diagnosis", *, title: str = "") -> "Group":
    """The same as what rich prints: signal and gradient as bars over depth, then the findings.

    Args:
        diagnosis: with its ``before`` where cures were applied.
        title: a line above it.

    Raises:
        MissingPackageError: rich is not installed.
    """
    text = require("rich.text", extra="recipes").Text
    group = require("rich.console", extra="recipes").Group
    parts: list[object] = [text(title, style="bold")] if title else []
    parts += [text(depth_sentence(diagnosis) + "."), text(""), _bars_table(diagnosis)]
    if diagnosis.before is not None and diagnosis.before.findings:
        parts.append(text("\nWhat was found", style="bold"))
        for finding in diagnosis.before.findings:
            sign = f"{_SIGNS[finding.severity]} {finding.head()}"
            parts.append(text(sign, style=_STYLES[finding.severity]))
    if diagnosis.treatments:
        parts += [text("\nWhat was done", style="bold"), _treatments_table(diagnosis.treatments)]
    parts.append(text(f"\n{summary_line(diagnosis)}", style="bold"))
    if diagnosis.findings:
        parts.append(_findings_table(diagnosis.findings))
    parts += [text(f"Note: {sentence(note)}", style="dim") for note in diagnosis.notes]
    return group(*parts)  # type: ignore[no-any-return]


def _bars_table(diagnosis: "Diagnosis") -> "Table":
    text = require("rich.text", extra="recipes").Text
    table = require("rich.table", extra="recipes").Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    for _ in range(3):
        table.add_column(no_wrap=True)
    old = diagnosis.before.layers if diagnosis.before is not None else []
    for quantity, name in (("std", "std of the output"), ("gradient_rms", "rms of the gradient")):
        everything = [getattr(layer, quantity) for layer in (*old, *diagnosis.layers)]
        for layers, when, style in ((old, "before", "yellow"), (diagnosis.layers, "", "blue")):
            if layers:
                values = [getattr(layer, quantity) for layer in layers]
                label = f"{name}, {when}" if when else f"{name}{', after' if old else ''}"
                bars = text(_bars(values, everything), style=style)
                table.add_row(label, short_number(values[0]), bars, short_number(values[-1]))
    return table  # type: ignore[no-any-return]


def _bars(values: Sequence[float], everything: Sequence[float]) -> str:
    """One bar for each layer (for equal shares of them, where there are many), of its logarithm."""
    usable = [math.log10(v) for v in everything if v > 0 and math.isfinite(v)] or [0.0]
    low, high = min(usable), max(usable)
    # A decade at least, so that the noise of a healthy model is no mountain range.
    high = max(high, low + 1)
    step = max(1, math.ceil(len(values) / _MOST_BARS))
    bars = []
    for value in values[::step]:
        if not math.isfinite(value):
            bars.append("!")
        elif value <= 0:
            bars.append(" ")
        else:
            place = (math.log10(value) - low) / (high - low)
            bars.append(_BARS[round(place * (len(_BARS) - 1))])
    return "".join(bars)


def short_number(value: float) -> str:
    """At most four significant digits, powers of ten for what is tiny or huge.

    Example:
        >>> short_number(0.12345), short_number(50), short_number(3.2e-12)
        ('0.1235', '50', '3.2e-12')
    """
    if not math.isfinite(value) or value == 0 or 1e-3 <= abs(value) < 1e4:
        return f"{value:.4g}"
    return f"{value:.1e}"


def _findings_table(findings: "Sequence[Finding]") -> "Table":
    text = require("rich.text", extra="recipes").Text
    table = require("rich.table", extra="recipes").Table(
        box=require("rich.box", extra="recipes").SIMPLE_HEAD, pad_edge=False, expand=False
    )
    table.add_column("", no_wrap=True)
    table.add_column("finding", ratio=2, overflow="fold")
    table.add_column("what was measured", ratio=4)
    table.add_column("remedy", ratio=4)
    for number, finding in enumerate(findings):
        style = _STYLES[finding.severity]
        head = text(finding.code, style="bold")
        if finding.module:
            head.append(f"\n{finding.module}", style="dim")
        table.add_row(
            text(f"{_SIGNS[finding.severity]} {finding.severity}", style=style),
            head,
            text(sentence(finding.message)),
            text(sentence(finding.remedy)),
            end_section=number + 1 < len(findings),
        )
    return table  # type: ignore[no-any-return]


def _treatments_table(treatments: "Sequence[Treatment]") -> "Table":
    text = require("rich.text", extra="recipes").Text
    table = require("rich.table", extra="recipes").Table.grid(padding=(0, 2))
    for treatment in treatments:
        done: Text = text("done", style="green") if treatment.done else text("left", style="yellow")
        words = text(sentence(treatment.words))
        table.add_row(done, text(treatment.cure, style="bold"), words)
    return table  # type: ignore[no-any-return]


def layer_rows(diagnosis: "Diagnosis") -> tuple[list[str], list[list[object]]]:
    """Columns and rows of the measured layers, for a table of W&B or of the page.

    Where cures were applied, what was measured before is beside it, by name.

    Example:
        >>> import torch
        >>> import stablelightning as sl
        >>> columns, rows = layer_rows(sl.diagnose(torch.nn.Linear(4, 2), torch.randn(3, 4)))
        >>> columns[:2], len(rows)
        (['layer', 'kind'], 1)
    """
    columns = ["layer", "kind", "activation", "mean", "std", "cosine", "gradient rms"]
    columns += ["dead", "saturated"]
    rows: list[list[object]] = [
        [
            *(layer.name, layer.kind, layer.activation, layer.mean, layer.std),
            *(_known(layer.cosine), layer.gradient_rms),
            *(_known(layer.dead), _known(layer.saturated)),
        ]
        for layer in diagnosis.layers
    ]
    if diagnosis.before is not None:
        columns += ["std before", "gradient rms before"]
        old = {layer.name: layer for layer in diagnosis.before.layers}
        for layer, row in zip(diagnosis.layers, rows, strict=True):
            was = old.get(layer.name)
            row += [None, None] if was is None else [was.std, was.gradient_rms]
    return columns, rows


def _known(value: float) -> float | None:
    """NaN is how a layer says of these that they are not known."""
    return None if math.isnan(value) else value


def findings_rows(diagnosis: "Diagnosis") -> tuple[list[str], list[list[object]]]:
    """Columns and rows of the findings, for a table of W&B; those that were cured come last.

    Example:
        >>> import torch
        >>> import stablelightning as sl
        >>> findings_rows(sl.diagnose(torch.nn.Linear(4, 2), torch.randn(16, 4)))[0][:3]
        ['state', 'severity', 'finding']
    """
    columns = ["state", "severity", "finding", "module", "message", "evidence", "remedy", "cure"]
    state = "found" if diagnosis.before is None else "left"
    told = [(state, finding) for finding in diagnosis.findings]
    told += [("cured", finding) for finding in cured_findings(diagnosis)]
    rows: list[list[object]] = [
        [
            *(state, finding.severity, finding.code, finding.module, finding.message),
            ", ".join(f"{name} = {short_number(v)}" for name, v in finding.evidence.items()),
            *(finding.remedy, finding.cure),
        ]
        for state, finding in told
    ]
    return columns, rows


def cured_findings(diagnosis: "Diagnosis") -> "list[Finding]":
    """What was found before the cures, and is gone.

    Example:
        >>> import torch
        >>> import stablelightning as sl
        >>> cured_findings(sl.diagnose(torch.nn.Linear(4, 2), torch.randn(16, 4)))
        []
    """
    if diagnosis.before is None:
        return []
    left = {(finding.code, finding.module) for finding in diagnosis.findings}
    return [f for f in diagnosis.before.findings if (f.code, f.module) not in left]
