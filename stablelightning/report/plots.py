"""Figures of what a model knows and what it does not: arrays in, matplotlib ``Figure`` out."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = Any  # a numpy array, a torch tensor on any device, or nested sequences of numbers


def reliability_diagram(
    probabilities: Array | Mapping[str, Array], target: Array, *, bins: int = 10
) -> "Figure":
    """Observed accuracy against confidence; a mapping of name to probabilities is overlaid."""
    raise NotImplementedError


def ood_histogram(
    in_scores: Array,
    out_scores: Mapping[str, Array],
    *,
    label: str,
    in_name: str = "test set",
    bins: int = 40,
) -> "Figure":
    """Histogram of an uncertainty on known data against each out-of-distribution set."""
    raise NotImplementedError


def most_uncertain_grid(
    images: Array,
    probabilities: Array,
    uncertainty: Array,
    target: Array,
    *,
    class_names: Sequence[str] | None = None,
    label: str = "mutual information",
) -> "Figure":
    """The nine inputs of which the model is least sure."""
    raise NotImplementedError


def interval_plot(
    mean: Array, std: Array, target: Array, *, level: float = 0.9, label: str = "target"
) -> "Figure":
    """Predictions in ascending order with their central interval, and the observed targets."""
    raise NotImplementedError


def interval_calibration(
    mean: Array | Mapping[str, Array], std: Array | Mapping[str, Array], target: Array
) -> "Figure":
    """Observed against nominal coverage of central intervals."""
    raise NotImplementedError


def save_figure(figure: "Figure", path: str | Path) -> Path:
    """Write ``figure`` whole or not at all, at 150 dpi; the suffix chooses the format."""
    raise NotImplementedError
