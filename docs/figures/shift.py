"""What turning images does to every way of predicting: the run that the page states."""

import json
import sys
from pathlib import Path

from matplotlib.figure import Figure

_HERE = Path(__file__).parent
_NUMBERS = _HERE / "uncertainty.json"


def draw() -> Figure:
    """Drawn by the benchmark's own function."""
    sys.path.insert(0, str(_HERE.parents[1]))
    try:
        from tests.benchmarks.uncertainty import show
    finally:
        sys.path.pop(0)
    numbers = json.loads(_NUMBERS.read_text(encoding="utf-8"))
    return show.draw(numbers["digits"])
