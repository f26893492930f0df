"""One case or more for every public metric: how it is made, what it is fed, what must come out."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from stablelightning import metrics
from stablelightning.functional.intervals import PERCENTS
from tests.metrics import oracles

ROWS, CLASSES, SAMPLES = 120, 4, 3

#: Where the batches end: of unequal size, and one of a single row.
CUTS = (0, 40, 41, 90, ROWS)


@dataclass(frozen=True)
class Case:
    """What a metric is held to.

    Args:
        make: a fresh metric.
        inputs: tensors, or pairs of them, whose first axis are the rows; samples come first in
            those named by ``samples``.
        oracle: the value of all rows, from numpy arrays.
        samples: places of inputs whose rows are on the second axis.
        close: how far the metric may be from the oracle.
        coarse: how far it may be when it is fed bfloat16.
    """

    make: Callable[[], Metric]
    inputs: tuple[Any, ...]
    oracle: Callable[..., Any]
    samples: tuple[int, ...] = ()
    close: float = 1e-6
    coarse: float = 0.02

    def batch(self, start: int, end: int) -> tuple[Any, ...]:
        """Arguments of ``update`` for some rows."""

        def cut(value: Any, place: int) -> Any:
            if isinstance(value, tuple):
                return tuple(cut(part, place) for part in value)
            return value[:, start:end] if place in self.samples else value[start:end]

        return tuple(cut(value, place) for place, value in enumerate(self.inputs))

    def batches(self) -> list[tuple[Any, ...]]:
        """All rows, in batches of unequal size."""
        return [self.batch(start, end) for start, end in pairwise(CUTS)]

    def expected(self) -> Any:
        """The oracle's value of all rows."""

        def flat(values: tuple[Any, ...]) -> list[Any]:
            parts = [flat(v) if isinstance(v, tuple) else [v.numpy()] for v in values]
            return [one for part in parts for one in part]

        return self.oracle(*flat(self.inputs))


def _drawn() -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(7)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    logits = 2 * normal(ROWS, CLASSES)
    target = torch.multinomial((0.6 * logits).softmax(1), 1, generator=g).squeeze(1)
    out = torch.rand(ROWS, generator=g) < 0.4
    label = torch.rand(ROWS, generator=g, dtype=torch.float64)
    drawn = {
        "p": logits.softmax(1),
        "y": target,
        "u": normal(ROWS).abs(),
        "out": out.long(),
        "score": normal(ROWS) * 5 + 3 * out - 10,
        "label": label,
        "truth": (torch.rand(ROWS, generator=g) < label).long(),
        "mean": normal(ROWS),
        "variance": normal(ROWS).square() + 0.1,
        "means": normal(SAMPLES, ROWS),
        "variances": normal(SAMPLES, ROWS).square() + 0.1,
        "value": 1.5 * normal(ROWS),
        "quantiles": normal(ROWS, 3),
    }
    # Metrics see float32; the oracle gets what they see, in double.
    return {k: v.float() if v.is_floating_point() else v for k, v in drawn.items()}


_D = _drawn()
_CLASSES, _LABELS, _OUT = (_D["p"], _D["y"]), (_D["label"], _D["truth"]), (_D["score"], _D["out"])
_SELECT = (_D["p"], _D["y"], _D["u"])
_GAUSSIAN = ((_D["mean"], _D["variance"]), _D["value"])
_MIXTURE = ((_D["means"], _D["variances"]), _D["value"])
_INTERVAL = ((_D["mean"] - _D["variance"], _D["mean"] + 2 * _D["variance"]), _D["value"])
_LEVELS = (0.1, 0.5, 0.8)


def _doubles(oracle: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arrays: Any) -> Any:
        return oracle(*(a.astype(np.float64) if a.dtype == np.float32 else a for a in arrays))

    return call


def _surest(oracle: Callable[..., Any], **settings: Any) -> Callable[..., Any]:
    """The default uncertainty: 1 minus the largest probability."""

    def call(p: Any, y: Any, u: Any = None) -> Any:
        wrong = (p.argmax(1) != y).astype(float)
        return oracle(1 - p.astype(np.float64).max(1) if u is None else u, wrong, **settings)

    return call


def _selective(
    make: Callable[..., Metric], oracle: Callable[..., Any], **settings: Any
) -> dict[str, Case]:
    """By its own score and by another, and exactly."""
    call = _surest(oracle, **settings)
    return {
        "": Case(make, _CLASSES, call, close=2e-4),
        "-uncertainty": Case(make, _SELECT, call, close=2e-4),
        "-exact": Case(partial(make, exact=True), _SELECT, call),
    }


def _ood(
    make: Callable[..., Metric], oracle: Callable[..., Any], **settings: Any
) -> dict[str, Case]:
    call = partial(oracle, **settings)
    return {
        "": Case(make, _OUT, call, close=2e-4),
        "-exact": Case(partial(make, exact=True), _OUT, call),
    }


#: Several cases of a class have its name and a suffix.
FAMILIES: dict[str, dict[str, Case]] = {
    "BrierScore": {
        "": Case(metrics.BrierScore, _CLASSES, oracles.brier),
        "-labels": Case(metrics.BrierScore, _LABELS, oracles.label_brier),
    },
    "BrierDecomposition": {
        "": Case(
            partial(metrics.BrierDecomposition, CLASSES, bins=6),
            _CLASSES,
            partial(oracles.brier_parts, bins=6),
            coarse=0.1,
        ),
    },
    "ClasswiseCalibrationError": {
        "": Case(
            partial(metrics.ClasswiseCalibrationError, CLASSES, bins=6),
            _CLASSES,
            partial(oracles.classwise, bins=6),
        ),
        "-labels": Case(
            partial(metrics.ClasswiseCalibrationError, 1, bins=6),
            _LABELS,
            partial(oracles.label_classwise, bins=6),
        ),
    },
    "AdaptiveCalibrationError": {
        "": Case(
            partial(metrics.AdaptiveCalibrationError, bins=10),
            _CLASSES,
            partial(oracles.adaptive, bins=10),
            close=1e-3,
            coarse=0.05,
        ),
        "-exact": Case(
            partial(metrics.AdaptiveCalibrationError, bins=10, exact=True),
            _CLASSES,
            partial(oracles.adaptive, bins=10),
            coarse=0.05,
        ),
    },
    "NegativeLogLikelihood": {
        "": Case(metrics.NegativeLogLikelihood, _CLASSES, oracles.nll),
        "-labels": Case(metrics.NegativeLogLikelihood, _LABELS, oracles.label_nll),
    },
    "AURC": _selective(metrics.AURC, oracles.aurc),
    "ExcessAURC": _selective(metrics.ExcessAURC, oracles.excess_aurc),
    "AUGRC": _selective(metrics.AUGRC, oracles.augrc),
    "RiskAtCoverage": _selective(
        partial(metrics.RiskAtCoverage, 0.7), oracles.risk_at_coverage, coverage=0.7
    ),
    "CoverageAtRisk": _selective(
        partial(metrics.CoverageAtRisk, 0.4), oracles.coverage_at_risk, risk=0.4
    ),
    "OODAUROC": _ood(metrics.OODAUROC, oracles.auroc),
    "OODAUPROut": _ood(metrics.OODAUPROut, oracles.aupr_out),
    "OODAUPRIn": _ood(metrics.OODAUPRIn, oracles.aupr_in),
    "FalsePositiveRate": _ood(
        partial(metrics.FalsePositiveRate, 0.8), oracles.false_positive_rate, recall=0.8
    ),
    "GaussianNegativeLogLikelihood": {
        "": Case(metrics.GaussianNegativeLogLikelihood, _GAUSSIAN, _doubles(oracles.gaussian_nll)),
    },
    "MixtureNegativeLogLikelihood": {
        "": Case(
            metrics.MixtureNegativeLogLikelihood,
            _MIXTURE,
            _doubles(oracles.mixture_nll),
            samples=(0,),
            coarse=0.1,
        ),
    },
    "IntervalCoverage": {"": Case(metrics.IntervalCoverage, _INTERVAL, oracles.coverage)},
    "IntervalWidth": {"": Case(metrics.IntervalWidth, _INTERVAL, _doubles(oracles.width))},
    "IntervalScore": {
        "": Case(
            partial(metrics.IntervalScore, 0.8),
            _INTERVAL,
            _doubles(partial(oracles.interval_score, level=0.8)),
            coarse=0.1,
        )
    },
    "PinballLoss": {
        "": Case(
            partial(metrics.PinballLoss, _LEVELS),
            (_D["quantiles"], _D["value"]),
            partial(oracles.pinball, levels=_LEVELS),
        )
    },
    "QuantileCalibrationError": {
        "": Case(
            metrics.QuantileCalibrationError,
            _GAUSSIAN,
            partial(oracles.quantile_error, levels=np.array(PERCENTS)),
        ),
        "-mixture": Case(
            partial(metrics.QuantileCalibrationError, _LEVELS),
            _MIXTURE,
            partial(oracles.mixture_quantile_error, levels=np.array(_LEVELS)),
            samples=(0,),
        ),
    },
    "Sharpness": {"": Case(metrics.Sharpness, _GAUSSIAN, _doubles(oracles.sharpness))},
}

CASES: dict[str, Case] = {
    name + suffix: case for name, family in FAMILIES.items() for suffix, case in family.items()
}
