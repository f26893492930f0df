"""Log-likelihood of five data sets by column: the numbers of the run that the page states."""

from _benchmarks import numbers, part
from matplotlib.figure import Figure


def draw() -> Figure:
    """A panel for each set, a dot for each split; drawn by the benchmark's own function."""
    figure: Figure = part("uci.show").draw(numbers("uci"))
    return figure
