"""Medians, worst seeds, and whether each bound of a row is met."""

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median
from typing import Any

from tests.benchmarks.stability.rows import COLUMNS, OURS, SHALLOW, Row
from tests.benchmarks.stability.training import Result

#: Points of accuracy that our median may stay behind the two-layer net, and our worst seed.
MEDIAN_BOUND = 1.0
WORST_BOUND = 3.0


@dataclass(frozen=True)
class Cell:
    """One column of one row, in percent of the test images."""

    median: float
    worst: float
    accuracies: list[float]


@dataclass(frozen=True)
class Verdict:
    """One row, judged.

    Args:
        row: its name.
        training: optimizer, rate, epochs.
        cells: by column.
        bounds: what was asked, and by how many points it is met (negative: missed).
        notes: what the doctor found and applied, for the first seed.
        differs: whether it found something else for another seed.
    """

    row: str
    training: str
    cells: dict[str, Cell]
    bounds: dict[str, float]
    notes: dict[str, Any]
    differs: bool

    @property
    def met(self) -> bool:
        return bool(self.bounds) and all(margin >= 0 for margin in self.bounds.values())


def judge(row: Row, results: Iterable[Result]) -> Verdict:
    """Sum up one row; columns that were not run are left out."""
    own = sorted((r for r in results if r.row == row.name), key=lambda r: r.seed)
    cells = {}
    for column in COLUMNS:
        values = [r.accuracy for r in own if r.column == column]
        if values:
            cells[column] = Cell(median(values), min(values), values)
    notes = [r.notes for r in own if r.column == OURS]
    return Verdict(
        row.name,
        row.describe(),
        cells,
        _bounds(cells),
        notes[0] if notes else {},
        any(_codes(n) != _codes(notes[0]) for n in notes),
    )


def _codes(notes: dict[str, Any]) -> list[str]:
    return sorted(notes.get("found", []))


def _bounds(cells: dict[str, Cell]) -> dict[str, float]:
    ours = cells.get(OURS)
    others = [cell.median for name, cell in cells.items() if name != OURS]
    shallow = [cells[name].median for name in SHALLOW if name in cells]
    if ours is None or not others or not shallow:
        return {}
    exact = {
        f"median within {MEDIAN_BOUND:g} of two-layer": ours.median - max(shallow) + MEDIAN_BOUND,
        f"worst within {WORST_BOUND:g} of two-layer": ours.worst - max(shallow) + WORST_BOUND,
        "median not below the best other": ours.median - max(others),
    }
    return {name: round(margin, 9) for name, margin in exact.items()}  # 97.5 - 97.5 is not -1e-14
