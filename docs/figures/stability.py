"""Accuracy of deep networks by how they start: the numbers of the run that the page states."""

import json
import sys
from pathlib import Path

from matplotlib.figure import Figure

_HERE = Path(__file__).parent
_NUMBERS = _HERE / "stability.json"


def draw() -> Figure:
    """A row for each network, a dot for each seed; drawn by the benchmark's own function."""
    sys.path.insert(0, str(_HERE.parents[1]))
    try:
        from tests.benchmarks.stability import judge, show
    finally:
        sys.path.pop(0)
    numbers = json.loads(_NUMBERS.read_text(encoding="utf-8"))
    verdicts = []
    for row in numbers["training"]:
        cells = {name: judge.Cell(**cell) for name, cell in row.pop("cells").items()}
        verdicts.append(judge.Verdict(cells=cells, **row))
    return show.draw(verdicts, seeds=numbers["seeds"])
