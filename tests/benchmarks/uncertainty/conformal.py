"""Conformal sets and intervals over many resplits of test predictions: coverage and size.

``python -m tests.benchmarks.uncertainty.conformal predictions.parquet`` does the same with the
predictions of any run that has tested a classifier.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

import stablelightning as sl
from stablelightning.calibration.conformal import ConformalSets
from stablelightning.calibration.conformal_scores import (
    AdaptiveScore,
    ConformityScore,
    LeastAmbiguousScore,
    QuantileScore,
    RegularizedAdaptiveScore,
    ResidualScore,
    ScaledResidualScore,
)
from stablelightning.data import TabularData
from stablelightning.functional.conformal_coverage import coverage_band, coverage_distribution
from stablelightning.model.prediction import Prediction
from stablelightning.model.prediction_rows import take_rows
from stablelightning.module import StableModule
from stablelightning.nn import MLP, QuantileMLP
from stablelightning.report.style import COLOURS, legend, new_figure, say, tidy
from tests.benchmarks.paired import interval
from tests.benchmarks.record import Job, Run
from tests.benchmarks.transfer.training import trainer
from tests.benchmarks.uncertainty.sets import CASES
from tests.benchmarks.uncertainty.training import Predictor, trained

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "Conformal sets: coverage and size over resplits"
NEEDS_ROOT = False

RESPLITS = 500
ALPHAS = (0.1, 0.02)
#: Of the band in which the coverage of a resplit must lie, and how often it must.
BAND = 0.95

CLASS_SCORES: Mapping[str, ConformityScore] = {
    "LAC": LeastAmbiguousScore(),
    "APS": AdaptiveScore(),
    "APS, not drawn": AdaptiveScore(randomized=False),
    "RAPS": RegularizedAdaptiveScore(penalty=0.05, free=2),
}


def resplit(
    prediction: Prediction, target: Tensor, score: ConformityScore, *, alpha: float, seed: int
) -> dict[str, Any]:
    """Calibrate on one half of the rows and test on the other, again and again.

    Args:
        prediction: of N rows that were not trained on.
        target: ``(N,)``.
        score: how badly a target fits.
        alpha: share that may be missed.
        seed: of the halves, and of the names by which rows draw.
    """
    rows = len(target)
    known = rows // 2
    names = torch.arange(rows) + rows * seed
    generator = torch.Generator().manual_seed(seed)
    held, size, empty = [], [], []
    for _ in range(RESPLITS):
        order = torch.randperm(rows, generator=generator)
        fit, test = order[:known], order[known:]
        sets = ConformalSets(alpha, score=score)
        sets.fit(take_rows(prediction, fit), target[fit], rows=names[fit])
        found = sets(take_rows(prediction, test), rows=names[test])
        held.append(_held(found, target[test]).double().mean().item())
        each = _sizes(found)
        size.append(each.mean().item())
        empty.append((each == 0).float().mean().item())
    return {"known": known, "rows": rows - known, "alpha": alpha} | {
        "coverage": held,
        "size": sum(size) / RESPLITS,
        "empty": sum(empty) / RESPLITS,
        **_promise(held, known, rows - known, alpha),
    }


def _promise(held: Sequence[float], known: int, rows: int, alpha: float) -> dict[str, Any]:
    """What theory says of these coverages, and how far they are from it."""
    distribution = coverage_distribution(known, rows, alpha)
    shares = torch.arange(rows + 1, dtype=torch.float64) / rows
    expected = float(shares @ distribution)
    spread = float(((shares - expected).square() @ distribution).sqrt())
    low, high = coverage_band(known, rows, alpha, probability=BAND)
    inside = sum(low <= share <= high for share in held) / len(held)
    in_band = float(distribution[(shares >= low) & (shares <= high)].sum())
    mean = sum(held) / len(held)
    return {
        "expected": expected,
        "band": [low, high],
        "inside": inside,
        "expected inside": in_band,
        "errors": (mean - expected) / (spread / len(held) ** 0.5),
    }


def _held(prediction: Prediction, target: Tensor) -> Tensor:
    if prediction.sets is not None:
        return prediction.sets.gather(1, target[:, None]).squeeze(1)
    assert prediction.lower is not None
    assert prediction.upper is not None
    return (prediction.lower <= target) & (target <= prediction.upper)


def _sizes(prediction: Prediction) -> Tensor:
    if prediction.sets is not None:
        return prediction.sets.sum(1).float()
    assert prediction.lower is not None
    assert prediction.upper is not None
    return prediction.upper - prediction.lower


# ---- classes ------------------------------------------------------------------------------------


def classes(case: str, root: str | None, seed: int) -> dict[str, Any]:
    """Sets of the Monte Carlo mean of one network, over resplits of its test rows."""
    drawn = CASES[case](seed, root)
    predictor = Predictor(drawn, [trained(drawn, 1000 * seed)], seed=seed)
    return of_classes(predictor.sampled(drawn.test.inputs), drawn.test.target, seed=seed)


def of_classes(prediction: Prediction, target: Tensor, *, seed: int = 0) -> dict[str, Any]:
    """Every score at every alpha."""
    return {
        f"{name}, alpha={alpha:g}": resplit(prediction, target, score, alpha=alpha, seed=seed)
        for alpha in ALPHAS
        for name, score in CLASS_SCORES.items()
    }


# ---- values -------------------------------------------------------------------------------------


def values(seed: int) -> dict[str, Any]:
    """Intervals of two networks on scikit-learn's diabetes table, on the half kept from both."""
    data = TabularData(val_fraction=0.1, test_fraction=0.5, seed=seed)
    data.setup("fit")
    data.setup("test")
    std = float(data.target_scale[1])
    inputs, target = (torch.cat(each) for each in zip(*data.test_dataloader(), strict=True))
    found: dict[str, Any] = {}
    methods: dict[str, tuple[Callable[[], torch.nn.Module], dict[str, ConformityScore]]] = {
        "Gaussian": (
            partial(MLP, 10, hidden=[64, 64], dropout=0.2, variance=True),
            {"residual": ResidualScore(), "residual / MC deviation": ScaledResidualScore()},
        ),
        "quantiles": (
            partial(QuantileMLP, 10, hidden=[64, 64], dropout=0.2, level=0.9),
            {"CQR": QuantileScore()},
        ),
    }
    for name, (network, scores) in methods.items():
        torch.manual_seed(seed)
        module = StableModule(
            network=network(),
            task="regression",
            optimizer=partial(torch.optim.AdamW, lr=0.002, weight_decay=0.1),
        )
        trainer(30, half=False).fit(module, data.train_dataloader())
        prediction = sl.mc_dropout(module.eval(), inputs, samples=100, seed=seed)
        raw = _uncorrected(prediction)
        found[f"{name}, not conformal"] = {
            "alpha": 0.1,
            "coverage": [_held(raw, target).double().mean().item()],
            "size": _sizes(raw).mean().item() * std,
        }
        for title, score in scores.items():
            result = resplit(prediction, target, score, alpha=0.1, seed=seed)
            found[title] = result | {"size": result["size"] * std}
    return found


def _uncorrected(prediction: Prediction) -> Prediction:
    """What the network says by itself should hold nine rows of ten."""
    if prediction.lower is not None:
        return prediction
    half = 1.6449 * prediction.std
    return replace(prediction, lower=prediction.mean - half, upper=prediction.mean + half)


# ---- all ----------------------------------------------------------------------------------------


def measure(run: Run) -> dict[str, Any]:
    """Every data set and seed."""
    jobs: dict[str, Job] = {}
    for seed in range(run.seeds):
        jobs[f"digits {seed}"] = Job(classes, {"case": "digits", "root": None, "seed": seed})
        jobs[f"diabetes {seed}"] = Job(values, {"seed": seed})
    if run.root is not None:  # one split and one network: its 5,000 test rows are resplit
        jobs["cifar 0"] = Job(classes, {"case": "cifar", "root": run.root, "seed": 0})
    found = run.all(jobs)
    return {
        name: [result for key, result in found.items() if key.split()[0] == name]
        for name in dict.fromkeys(key.split()[0] for key in found)
    }


def table(measured: Mapping[str, Any]) -> str:
    """Means over the seeds of what each of them has over its resplits."""
    head = ["", "n", "coverage", "expected", "errors", "95% band", "inside", "size", "empty"]
    widths = (32, 6, 20, 10, 8, 18, 9, 8, 8)
    lines = []
    for name, seeds in measured.items():
        if not isinstance(seeds, list):
            continue
        lines += ["", _row([f"{name}, {len(seeds)} networks", *head[1:]], widths)]
        for method in seeds[0]:
            lines.append(_row([method, *_cells([seed[method] for seed in seeds])], widths))
    return "\n".join(lines).lstrip("\n") + "\n\n" + _LEGEND


_LEGEND = f"""coverage: mean over {RESPLITS} resplits of each network's test rows, and over the
networks, with a 95% interval of these; expected: by theory, for the n rows that calibrate (sets
that are not drawn hold more); errors: how many standard errors the mean over the resplits is away
from it, the farthest of all networks; inside: share of resplits in the band; size: mean number of
classes, or mean width in target units."""


def _cells(seeds: Sequence[Mapping[str, Any]]) -> list[str]:
    coverage = interval([sum(each["coverage"]) / len(each["coverage"]) for each in seeds])
    written = f"{coverage.mean:.3f} [{coverage.low:.2f}, {coverage.high:.2f}]"
    size = f"{interval([each['size'] for each in seeds]).mean:.4g}"
    first = seeds[0]
    if "band" not in first:
        return ["", written, f"{1 - first['alpha']:.3f}", "", "", "", size, ""]
    return [
        str(first["known"]),
        written,
        f"{first['expected']:.3f}",
        f"{max((each['errors'] for each in seeds), key=abs):+.1f}",
        "{:.3f} to {:.3f}".format(*first["band"]),
        f"{interval([each['inside'] for each in seeds]).mean:.3f}",
        size,
        f"{interval([each['empty'] for each in seeds]).mean:.3f}",
    ]


def _row(cells: Sequence[str], widths: Sequence[int]) -> str:
    first = cells[0].ljust(widths[0])
    return first + "".join(cell.rjust(w) for cell, w in zip(cells[1:], widths[1:], strict=True))


def draw(measured: Mapping[str, Any]) -> "Figure":
    """The coverages of all resplits beside their distribution in theory."""
    found = measured["digits"][0]["LAC, alpha=0.1"]
    rows, held = found["rows"], torch.tensor(found["coverage"], dtype=torch.float64)
    counts = (held * rows).round().long().bincount(minlength=rows + 1) / len(held)
    theory = coverage_distribution(found["known"], rows, found["alpha"])
    shown = (theory > 1e-4).nonzero()[:, 0]
    figure = new_figure(6.0, 3.4)
    axes = figure.subplots()
    share = 100 * shown / rows
    axes.bar(share, counts[shown], width=80 / rows, color=COLOURS[0], label="resplits")
    axes.plot(share, theory[shown], color=COLOURS[1], label="beta-binomial")
    tidy(axes, x="coverage (%)", y="share of resplits")
    legend(axes, columns=2)
    say(figure, "The coverage of a split varies, just as much as theory says")
    return figure


def main(path: str) -> None:
    """Resplit the rows of a ``predictions.parquet``, and print the table."""
    import pandas

    frame = pandas.read_parquet(path)
    columns = sorted(
        (name for name in frame if name.startswith("mean_")), key=lambda name: int(name[5:])
    )
    mean = torch.tensor(frame[columns].to_numpy())
    zero = torch.zeros(len(mean))
    prediction = Prediction("classification", mean, zero, zero, zero, zero, 1, "file")
    target = torch.tensor(frame["target"].to_numpy())
    print(table({path: [of_classes(prediction, target)]}))


if __name__ == "__main__":
    main(sys.argv[1])
