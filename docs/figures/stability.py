"""Accuracy of deep networks by how they start: the numbers of the run that the page states."""

from _benchmarks import numbers, part
from matplotlib.figure import Figure


def draw() -> Figure:
    """A row for each network, a dot for each seed; drawn by the benchmark's own function."""
    judge = part("stability.judge")
    measured = numbers("stability")
    verdicts = []
    for row in measured["training"]:
        cells = {name: judge.Cell(**cell) for name, cell in row.pop("cells").items()}
        verdicts.append(judge.Verdict(cells=cells, **row))
    figure: Figure = part("stability.show").draw(verdicts, seeds=measured["seeds"])
    return figure
