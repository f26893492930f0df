"""The standard error of the mean falls as 1/sqrt(samples), and ``tolerance`` stops on it."""

from _digits import BLUE, GREY, ORANGE, split, trained
from matplotlib.figure import Figure

import stablelightning as sl

_COUNTS = (8, 16, 32, 64, 128, 256, 512)
_TOLERANCE = 0.02


def draw() -> Figure:
    """Largest and median standard error over the test digits, and where the tolerance stops."""
    inputs, _ = split("test")
    errors = [
        sl.mc_dropout(trained(), inputs, samples=count, seed=0).standard_error.amax(1)
        for count in _COUNTS
    ]
    largest = [float(error.max()) for error in errors]
    stopped = sl.mc_dropout(trained(), inputs, samples=2000, seed=0, tolerance=_TOLERANCE)

    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.subplots()
    guide = [largest[0] * (_COUNTS[0] / count) ** 0.5 for count in _COUNTS]
    axes.loglog(_COUNTS, guide, "--", color=GREY, label="1/sqrt(samples)")
    axes.loglog(_COUNTS, largest, "o-", color=BLUE, label="the least certain digit")
    axes.axhline(_TOLERANCE, color=ORANGE, linewidth=1)
    axes.axvline(stopped.samples_used, color=ORANGE, linewidth=1)
    axes.annotate(
        f"tolerance={_TOLERANCE}: {stopped.samples_used} samples",
        (stopped.samples_used, _TOLERANCE),
        xytext=(-6, 6),
        textcoords="offset points",
        ha="right",
        color=ORANGE,
    )
    axes.set(xlabel="samples", ylabel="standard error of the mean")
    axes.legend(frameon=False, loc="upper right")
    return figure
