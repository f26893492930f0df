"""One case over all seeds: scores, unknown inputs and shift of every way of predicting."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torchmetrics.functional.classification import multiclass_calibration_error

from stablelightning.functional.out_of_distribution import (
    energy_score,
    false_positive_rate,
    ood_auroc,
)
from stablelightning.functional.scores import brier_score, negative_log_likelihood
from stablelightning.functional.selective import aurc
from stablelightning.functional.uncertainty import entropy
from stablelightning.model.prediction import Prediction
from tests.benchmarks.paired import differences, interval
from tests.benchmarks.record import Job, Run
from tests.benchmarks.uncertainty.sets import CASES, NOISES, ROTATIONS, Case, Rows
from tests.benchmarks.uncertainty.training import MEMBERS, METHODS, Predictor, trained

#: Equal-width bins of the expected calibration error.
BINS = 15

SCORES = ("accuracy", "nll", "ece", "brier", "aurc")

#: What the others are held against: one pass, and how sure its most likely class is.
BASELINE = "max-softmax"


def one_seed(case: str, root: str | None, seed: int) -> dict[str, Any]:
    """Train the members, and measure everything that is asked of them."""
    drawn = CASES[case](seed, root)
    networks = [trained(drawn, 1000 * seed + member) for member in range(MEMBERS)]
    predictor = Predictor(drawn, networks, seed=seed)
    known = predictor.all(drawn.test.inputs)
    return {
        "temperature": float(predictor.temperature.temperature),
        "scores": {name: scores(one, drawn.test.target) for name, one in known.items()},
        "unknown": _unknown(predictor, known),
        "rotation": [_shifted(predictor, drawn.turned, each) for each in (0, *ROTATIONS)],
        "noise": [_shifted(predictor, drawn.noisy, each) for each in (0, *NOISES)],
    }


def scores(prediction: Prediction, target: Tensor) -> dict[str, float]:
    """In percent: accuracy, ECE and AURC; in nats: NLL."""
    mean = prediction.mean
    wrong = (mean.argmax(1) != target).float()
    error = multiclass_calibration_error(mean, target, num_classes=mean.shape[1], n_bins=BINS)
    return {
        "accuracy": 100 * (1 - wrong.mean().item()),
        "nll": negative_log_likelihood(mean, target).mean().item(),
        "ece": 100 * error.item(),
        "brier": brier_score(mean, target).mean().item(),
        "aurc": 100 * float(aurc(1 - mean.amax(1), wrong)),
    }


def _unknown(predictor: Predictor, known: Mapping[str, Prediction]) -> dict[str, Any]:
    """AUROC and FPR95, in percent, of every score and unknown set."""
    inside = _doubts(predictor, predictor.case.test.inputs, known)
    found = {}
    for name, inputs in predictor.case.unknown.items():
        outside = _doubts(predictor, inputs, predictor.all(inputs))
        found[name] = {score: _apart(inside[score], outside[score]) for score in inside}
    return found


def _apart(inside: Tensor, outside: Tensor) -> dict[str, float]:
    score = torch.cat([inside, outside])
    out = torch.arange(len(score)) >= len(inside)
    return {
        "auroc": 100 * ood_auroc(score, out).item(),
        "fpr95": 100 * false_positive_rate(score, out).item(),
    }


def _doubts(
    predictor: Predictor, inputs: Tensor, predictions: Mapping[str, Prediction]
) -> dict[str, Tensor]:
    """Scores that should be large for unknown inputs."""
    plain, sampled, _, several = (predictions[name] for name in METHODS)
    return {
        BASELINE: 1 - plain.mean.amax(1),
        "energy": energy_score(predictor.logits(inputs)),
        "entropy, one pass": entropy(plain.mean),
        "entropy, MC": sampled.total,
        "mutual information, MC": sampled.epistemic,
        "entropy, ensemble": several.total,
        "mutual information, ensemble": several.epistemic,
    }


def _shifted(predictor: Predictor, change: Any, strength: float) -> dict[str, Any]:
    case: Case = predictor.case
    rows = Rows(case.test.inputs[: case.shifted], case.test.target[: case.shifted])
    inputs = rows.inputs if strength == 0 else change(rows.inputs, strength)
    found = predictor.all(inputs)
    return {name: scores(one, rows.target) for name, one in found.items()}


def measure(case: str, run: Run) -> dict[str, Any]:
    """Every seed, and what their pairs say."""
    jobs = {
        f"seed {seed}": Job(one_seed, {"case": case, "root": run.root, "seed": seed})
        for seed in range(run.seeds)
    }
    return {"case": case, "seeds": list(run.all(jobs).values())}


def table(measured: Mapping[str, Any]) -> str:
    """Means over the seeds, and paired differences to the baseline."""
    seeds = measured["seeds"]
    lines = [_scores_table(seeds), _unknown_table(seeds)]
    lines += [_shift_table(seeds, kind) for kind in ("rotation", "noise")]
    return "\n\n".join(lines)


def _row(cells: list[str], widths: tuple[int, int]) -> str:
    first, other = widths
    return cells[0].ljust(first) + "".join(cell.rjust(other) for cell in cells[1:])


def _scores_table(seeds: list[Any]) -> str:
    widths = (16, 28)
    lines = [_row(["", *SCORES], widths)]
    for method in METHODS:
        each = {name: [seed["scores"][method][name] for seed in seeds] for name in SCORES}
        lines.append(_row([method, *(f"{interval(v).mean:.4g}" for v in each.values())], widths))
    lines.append("\npaired differences to one pass, with 95% intervals")
    plain = {name: [seed["scores"][METHODS[0]][name] for seed in seeds] for name in SCORES}
    for method in METHODS[1:]:
        cells = [
            _written(differences([seed["scores"][method][name] for seed in seeds], plain[name]))
            for name in SCORES
        ]
        lines.append(_row([method, *cells], widths))
    return "\n".join(lines)


def _unknown_table(seeds: list[Any]) -> str:
    widths = (32, 28)
    lines = []
    for name in seeds[0]["unknown"]:
        plain = {
            what: [seed["unknown"][name][BASELINE][what] for seed in seeds]
            for what in ("auroc", "fpr95")
        }
        cells = ["AUROC", "- max-softmax", "FPR95", "- max-softmax"]
        lines += ["", _row([name, *cells], widths)]
        for score in seeds[0]["unknown"][name]:
            cells = []
            for what, base in plain.items():
                values = [seed["unknown"][name][score][what] for seed in seeds]
                cells += [f"{interval(values).mean:.1f}", _written(differences(values, base))]
            lines.append(_row([score, *cells], widths))
    return "\n".join(lines).lstrip("\n")


def _shift_table(seeds: list[Any], kind: str) -> str:
    strengths = (0, *(ROTATIONS if kind == "rotation" else NOISES))
    widths = (24, 9)
    lines = []
    for what in ("accuracy", "nll", "ece"):
        lines += ["", _row([f"{kind}: {what}", *map(str, strengths)], widths)]
        for method in METHODS:
            cells = [
                f"{interval([seed[kind][place][method][what] for seed in seeds]).mean:.3g}"
                for place in range(len(strengths))
            ]
            lines.append(_row([method, *cells], widths))
    return "\n".join(lines).lstrip("\n")


def _written(found: Any) -> str:
    return f"{found.mean:+.3g} [{found.low:.2g}, {found.high:.2g}]"
