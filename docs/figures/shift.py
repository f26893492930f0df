"""What turning images does to every way of predicting: the run that the page states."""

from _benchmarks import numbers, part
from matplotlib.figure import Figure


def draw() -> Figure:
    """Drawn by the benchmark's own function."""
    figure: Figure = part("uncertainty.show").draw(numbers("uncertainty")["digits"])
    return figure
