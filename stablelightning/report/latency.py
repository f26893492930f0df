"""Latency in the doctor's page and in a run's report: a picture and a section."""

from typing import TYPE_CHECKING

import numpy as np

from stablelightning.errors import DataError
from stablelightning.model.latency import Latency, LatencyReport
from stablelightning.report.section import Section
from stablelightning.report.style import COLOURS, INK, MUTED, legend, new_figure, say, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MILLISECONDS = 1e3
#: Less than this is the noise of the machine.
_NOISE = 0.03
#: Reasons shown in a section; the report object has all.
_SHOWN = 6
_LETTERS = 110


def latency_section(report: LatencyReport) -> Section:
    """What a latency measurement says, as a section of a page.

    Args:
        report: of :func:`stablelightning.model.latency.measure_latency`.

    Example:
        >>> rows = [Latency(1, 0.004, 0.002)]
        >>> print(latency_section(LatencyReport(rows, 20, 5, "cpu, 1 thread")))
        Latency
        A pass over one row takes 4 ms, and 2 ms with 0 folded norms (cpu, 1 thread).
        <BLANKLINE>
        batch  one pass (ms)
        1      4
    """
    columns, rows = report.rows_for_table()
    notes = list(report.notes)
    if report.folding is not None and report.folding.left:
        left = report.folding.left
        total = len(left) + report.folded
        notes.append(f"{len(left)} of {total} batch norms cannot be folded")
        reasons: dict[str, list[str]] = {}
        for norm in left:
            reasons.setdefault(norm.why, []).append(norm.norm)
        for why, norms in list(reasons.items())[:_SHOWN]:
            more = f" and {len(norms) - 1} more" if len(norms) > 1 else ""
            text = f"{norms[0]}{more}: {why}"
            notes.append(text if len(text) <= _LETTERS else f"{text[: _LETTERS - 3]}...")
    lead = f"{report.summary()} ({report.device})"
    figure = latency_figure(report) if len(report.rows) > 1 else None
    first = f"/{report.rows[0].batch_size}"  # latency is that of the smallest; the table has all
    numbers = {name: ms for name, ms in report.numbers().items() if name.endswith(first)}
    return Section("latency", "Latency", lead, columns, rows, figure, notes, numbers)


def latency_figure(report: LatencyReport) -> "Figure":
    """Plot milliseconds a row over the batch size: one pass and sampled, plain and folded.

    Args:
        report: of :func:`stablelightning.model.latency.measure_latency`.

    Raises:
        DataError: nothing was measured.

    Example:
        >>> rows = [Latency(1, 0.004, 0.002), Latency(8, 0.02, 0.015)]
        >>> len(latency_figure(LatencyReport(rows, 20, 5, "cpu")).axes)
        1
    """
    if not report.rows:
        raise DataError("a picture of latency needs a measurement, got none; give batch sizes.")
    sampled = any(row.sampled is not None for row in report.rows)
    figure = new_figure(7.2 if sampled else 4.2, 3.4)
    panels = figure.subplots(1, 2 if sampled else 1, squeeze=False, sharey=True)[0]
    titles = ["one pass", f"{report.samples} samples of Monte Carlo dropout"]
    for axes, kind, title in zip(panels, ("one_pass", "sampled"), titles, strict=False):
        _draw(axes, report.rows, kind)
        axes.set_title(title, fontsize=9.5, color=INK, loc="left", pad=20)
        tidy(axes, x="batch size (rows)", y="ms a row" if kind == "one_pass" else "", grid="both")
        legend(axes, columns=2)
    say(figure, _sentence(report))
    return figure


def _draw(axes: "Axes", rows: list[Latency], kind: str) -> None:
    for suffix, label, colour in (("", "as trained", MUTED), ("_folded", "folded", COLOURS[1])):
        times = [getattr(row, f"{kind}{suffix}") for row in rows]
        known = [(r.batch_size, t) for r, t in zip(rows, times, strict=True) if t is not None]
        if known:
            sizes, seconds = np.array(known).T
            each = seconds * _MILLISECONDS / sizes
            axes.plot(sizes, each, marker="o", markersize=4, color=colour, label=label)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    sizes_shown = [row.batch_size for row in rows]
    axes.set_xticks(sizes_shown, labels=[str(size) for size in sizes_shown])
    axes.minorticks_off()
    low, high = axes.get_ylim()
    ticks = [m * 10.0**p for p in range(-6, 6) for m in (1, 2, 5) if low <= m * 10.0**p <= high]
    if len(ticks) >= 2:
        axes.set_yticks(ticks, labels=[f"{tick:g}" for tick in ticks])


def _sentence(report: LatencyReport) -> str:
    ratios = [
        row.one_pass / row.one_pass_folded for row in report.rows if row.one_pass_folded is not None
    ]
    if not ratios:
        return "A row costs less in a larger batch; there is no batch norm to fold"
    ratio = float(np.median(ratios))
    norms = f"{report.folded} batch norm{'s' if report.folded != 1 else ''}"
    if ratio < 1 + _NOISE:
        return f"Folding {norms} makes no difference here that could be measured"
    return f"With {norms} folded, one pass is {ratio:.2f} times as fast"
