"""The figures of a run: what its test rows show of what the model knows, one maker for each."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from stablelightning.functional.intervals import gaussian_probability_below
from stablelightning.functional.scores import gaussian_coverage
from stablelightning.report import plots
from stablelightning.report.columns import is_classification
from stablelightning.report.decomposition import decomposition_scatter
from stablelightning.report.quantiles import quantile_calibration
from stablelightning.report.selective import risk_coverage
from stablelightning.words import reason_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from stablelightning.model.abstain import Thresholds

Rows = dict[str, Tensor]

_NINE = 9
_SAMPLES, _CALIBRATED = "mean of the samples", "calibrated"
_BELOW = "below_calibrated"  #: where recalibrated quantiles are not those of a Gaussian
_LEAST_LEVEL = 1e-12


@dataclass(frozen=True)
class Seen:
    """What a test has shown, for the figures.

    Args:
        rows: ``EstimateUncertainty.rows``.
        unknown: the same of each out-of-distribution set.
        data: the data module.
        level: what the intervals of the rows promise to hold, where they have any.
        thresholds: by which the rows were decided upon, if they were.
    """

    rows: Rows
    unknown: dict[str, Rows] = field(default_factory=dict)
    data: Any = None
    level: float | None = None
    thresholds: "Thresholds | None" = None

    @property
    def of_classes(self) -> bool:
        """Whether each row was put into one of several classes, and that class is known."""
        return "target" in self.rows and is_classification(self.rows)

    @property
    def of_values(self) -> bool:
        """Whether one value was predicted for each row, and is known."""
        return "target" in self.rows and self.rows["mean"].ndim == 1

    def last(self, name: str) -> Tensor:
        """A column as the last correction left it."""
        if name == "mean":
            return self.rows.get(_CALIBRATED, self.rows["mean"])
        return self.rows.get(f"{name}_calibrated", self.rows[name])

    @property
    def said_by(self) -> str:
        """What to call the predictions that :meth:`last` gives."""
        return _CALIBRATED if _CALIBRATED in self.rows else _SAMPLES


def figures_of(seen: Seen) -> "Iterator[tuple[str, Figure | str]]":
    """Every figure that the rows can fill, by name; in words why one could not be drawn.

    One that fails does not take the others along: a run that has trained must not end there.
    """
    for name, maker in FIGURES.items():
        try:
            figure = maker(seen)
        except Exception as error:
            yield name, f"there is no figure {name} ({reason_of(error)})"
            continue
        if figure is not None:
            yield name, figure


def reliability(seen: Seen) -> "Figure | None":
    """Accuracy against confidence: of one pass, of the samples, and calibrated."""
    if not seen.of_classes:
        return None
    series = {"one pass": seen.rows["deterministic"], _SAMPLES: seen.rows["mean"]}
    if _CALIBRATED in seen.rows:
        series[_CALIBRATED] = seen.rows[_CALIBRATED]
    return plots.reliability_diagram(series, seen.rows["target"])


def most_uncertain(seen: Seen) -> "Figure | None":
    """The nine test inputs of which the model is least sure, if they are images."""
    if not seen.of_classes:
        return None
    rows = seen.rows
    chosen = rows["epistemic"].argsort(descending=True, stable=True)[:_NINE]
    images = images_of(seen.data, rows["index"][chosen])
    if images is None:
        return None
    return plots.most_uncertain_grid(
        images,
        rows["mean"][chosen],
        rows["epistemic"][chosen],
        rows["target"][chosen],
        class_names=getattr(seen.data, "class_names", None),
    )


def selective(seen: Seen) -> "Figure | None":
    """What leaving the least certain rows out is worth."""
    answered = seen.rows.get("answered")
    mean, target = seen.last("mean"), seen.rows.get("target")
    if target is None:
        return None
    if seen.of_classes:
        plain = seen.rows["deterministic"]
        wrong = mean.argmax(1) != target
        return risk_coverage(
            {
                "one pass: confidence": 1 - plain.amax(1),
                f"{seen.said_by}: entropy": seen.last("total"),
                "mutual information": seen.last("epistemic"),
            },
            {
                "one pass: confidence": plain.argmax(1) != target,
                f"{seen.said_by}: entropy": wrong,
                "mutual information": wrong,
            },
            answered=answered,
        )
    if not seen.of_values or not bool((seen.last("total") > 0).any()):
        return None
    scores = {"epistemic variance": seen.last("epistemic"), "total variance": seen.last("total")}
    errors = dict.fromkeys(scores, (mean - target).square())
    label = "root mean squared error"
    return risk_coverage(scores, errors, squared=True, label=label, answered=answered)


def decomposition(seen: Seen) -> "Figure | None":
    """Where the uncertainty of each row comes from, and the borders of the decision."""
    mean, target = seen.last("mean"), seen.rows.get("target")
    parts = seen.last("aleatoric"), seen.last("epistemic")
    if seen.of_classes:
        wrong = mean.argmax(1) != target
        return decomposition_scatter(*parts, wrong, thresholds=seen.thresholds)
    if not seen.of_values or target is None or not bool((seen.last("total") > 0).any()):
        return None
    level = 0.9
    if "lower" in seen.rows and "upper" in seen.rows:  # the intervals that the other picture shows
        level = level if seen.level is None else seen.level
        outside = (target < seen.rows["lower"]) | (target > seen.rows["upper"])
    else:
        outside = gaussian_coverage(mean, seen.last("total").clamp(min=0), target) == 0
    return decomposition_scatter(
        *parts,
        outside,
        unit="variance",
        names=(f"in its {100 * level:g} % interval", "outside"),
        thresholds=seen.thresholds,
    )


def intervals(seen: Seen) -> "Figure | None":
    """Predictions with the intervals that were promised, or those of a normal distribution."""
    if not seen.of_values:
        return None
    mean, target = seen.last("mean"), seen.rows["target"]
    if "lower" in seen.rows and "upper" in seen.rows:
        level = 0.9 if seen.level is None else seen.level
        return plots.bounds_plot(mean, seen.rows["lower"], seen.rows["upper"], target, level=level)
    return plots.interval_plot(mean, _std(seen.last("total")), target)


def interval_calibration(seen: Seen) -> "Figure | None":
    """Observed against nominal coverage of central intervals."""
    if not seen.of_values:
        return None
    rows = seen.rows
    means, stds = {_SAMPLES: rows["mean"]}, {_SAMPLES: _std(rows["total"])}
    if _CALIBRATED in rows:
        means[_CALIBRATED], stds[_CALIBRATED] = rows[_CALIBRATED], _std(rows["total_calibrated"])
    if _BELOW in rows:  # the Gaussian that is as far from each target as its quantiles are
        level = rows[_BELOW].double().clamp(_LEAST_LEVEL, 1 - _LEAST_LEVEL)
        means[_CALIBRATED] = rows["target"] - torch.special.ndtri(level) * stds[_CALIBRATED]
    return plots.interval_calibration(means, stds, rows["target"])


def quantiles(seen: Seen) -> "Figure | None":
    """Whether predictions are too high, too low, or as sure as they are right."""
    if not seen.of_values or not bool((seen.rows["total"] > 0).any()):
        return None
    rows = seen.rows
    series = {_SAMPLES: (rows["mean"], rows["total"])}
    if _CALIBRATED in rows:
        series[_CALIBRATED] = rows[_CALIBRATED], rows["total_calibrated"]
    below = {
        name: gaussian_probability_below(mean, total.clamp(min=0), rows["target"])
        for name, (mean, total) in series.items()
    }
    if _BELOW in rows:
        below[_CALIBRATED] = rows[_BELOW]
    return quantile_calibration(below)


def out_of_distribution(seen: Seen) -> "Figure | None":
    """The model's own doubt on known inputs, and on each unknown set."""
    doubt = seen.rows["epistemic"]
    if not seen.unknown or doubt.ndim != 1:
        return None
    classes = seen.rows["mean"].ndim == 2
    label = "mutual information (nats)" if classes else "epistemic variance"
    others = {name: other["epistemic"] for name, other in seen.unknown.items()}
    return plots.ood_histogram(doubt, others, label=label)


#: By the name of its file; a new figure is a new line here.
FIGURES: "dict[str, Callable[[Seen], Figure | None]]" = {
    "reliability": reliability,
    "most_uncertain": most_uncertain,
    "intervals": intervals,
    "interval_calibration": interval_calibration,
    "quantile_calibration": quantiles,
    "risk_coverage": selective,
    "decomposition": decomposition,
    "out_of_distribution": out_of_distribution,
}


def images_of(data: Any, index: Tensor) -> Tensor | None:
    """Test inputs by their index, ``(n, channels, height, width)``; ``None`` if they are no images.

    Rows of pixels are images too where the data module says how many ``in_channels`` they have.
    Whose data module it may be: a run that has trained must not end at its pictures.

    Args:
        data: a data module, of anybody.
        index: ``(n,)`` positions in its test set.
    """
    channels = getattr(data, "in_channels", None)
    if channels not in (1, 3) or not hasattr(data, "test_dataloader"):
        return None
    dataset: Any = getattr(data.test_dataloader(), "dataset", None)
    if not hasattr(dataset, "__getitem__") or isinstance(dataset, IterableDataset):
        return None
    examples = [dataset[int(i)] for i in index]
    inputs = [e[0] for e in examples if isinstance(e, tuple | list) and isinstance(e[0], Tensor)]
    if len(inputs) < len(index) or len({image.shape for image in inputs}) != 1:
        return None
    stacked = torch.stack(inputs)
    side = math.isqrt(stacked[0].numel() // channels)
    if stacked.ndim == 2 and channels * side**2 == stacked.shape[1]:
        stacked = stacked.view(len(stacked), channels, side, side)
    return stacked if stacked.ndim == 4 and stacked.shape[1] == channels else None


def _std(variance: Tensor) -> Tensor:
    return variance.clamp(min=0).sqrt()
