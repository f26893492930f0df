"""The same numbers from torch-uncertainty and lightning-uq-box: how far apart, and how long.

Both are optional: in an environment of its own, ``pip install torch-uncertainty lightning-uq-box
rich`` beside this package. lightning-uq-box evaluates regressions by uncertainty-toolbox, which it
brings. A package that is missing is passed over. Every contender gets the same tensors in the same
batches, in turn, on one thread; a time is the CPU's for a fresh metric, all batches and the result.

Where a peer's definition differs by a term that the data gives, ours is converted, and the row says
so: their areas are trapezoids that begin at the first row and are divided by 1 - 1/N, and the
levels of their quantile calibration error hold 0 and 1, where every forecast is right.

Not compared are conformal sets: the peer's threshold is an interpolated quantile of the scores
without the correction for a finite number of rows, which is another, and does not promise what
these do.
"""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from stablelightning import metrics
from stablelightning.functional import uncertainty as ours
from stablelightning.functional.calibrate import fit_temperature
from stablelightning.functional.intervals import pinball_loss
from stablelightning.functional.selective import risk_coverage_curve
from tests.benchmarks.record import Run

TITLE = "Equal numbers from torch-uncertainty and lightning-uq-box, and time"
NEEDS_ROOT = False

ROWS, CLASSES, SAMPLES, BATCH = 10_000, 10, 16, 1000

#: Equal is a difference of at most so much, on numbers of about one.
EQUAL = 1e-6

_ROUNDS = 15

_LEVELS = (0.05, 0.5, 0.95)

#: uncertainty-toolbox's 99 levels without 0 and 1, where every forecast is right.
_LEVELS_INSIDE = tuple(torch.linspace(0, 1, 99, dtype=torch.float64)[1:-1].tolist())

Call = Callable[[], Any]


@dataclass(frozen=True)
class Case:
    """One number, computed by several.

    Args:
        peer: the package to compare with.
        theirs: gives their number.
        exact: gives ours, by the same definition.
        usual: what a user would write, if that is something else: binned in constant memory.
        note: what the reader must know.
    """

    peer: str
    theirs: Call
    exact: Call
    usual: Call | None = None
    note: str = ""


def measure(run: Run) -> dict[str, Any]:
    """Values and seconds of every case whose package is installed."""
    del run  # one draw of the data is enough: the numbers are equal or they are not
    rows = []
    for name, case in _cases(_data()).items():
        contenders = {"theirs": case.theirs, "exact": case.exact}
        if case.usual is not None:
            contenders["usual"] = case.usual
        values = {who: float(call()) for who, call in contenders.items()}
        times = _cpu_seconds(contenders)
        rows.append(
            {
                "name": name,
                "peer": case.peer,
                "note": case.note,
                "values": values,
                "difference": abs(values["exact"] - values["theirs"]),
                "milliseconds": {who: 1e3 * seconds for who, seconds in times.items()},
            }
        )
    return {"rows": rows, "size": {"rows": ROWS, "classes": CLASSES, "samples": SAMPLES}}


def _cpu_seconds(contenders: Mapping[str, Call]) -> dict[str, float]:
    """Median over rounds of turns; of CPU time, to which waiting for a busy machine adds little."""
    taken: dict[str, list[float]] = {who: [] for who in contenders}
    for _ in range(_ROUNDS):
        for who, call in contenders.items():
            start = time.process_time()
            call()
            taken[who].append(time.process_time() - start)
    return {who: statistics.median(each) for who, each in taken.items()}


def table(result: Mapping[str, Any]) -> str:
    """As Markdown."""
    if not result["rows"]:
        return "Neither package is installed."
    lines = [
        "| quantity | peer | theirs | difference | their ms | ours, ms | in constant memory, ms |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        ms = row["milliseconds"]
        usual = f"{ms['usual']:.2f}" if "usual" in ms else ""
        lines.append(
            f"| {row['name']}{' (' + row['note'] + ')' if row['note'] else ''} | {row['peer']} "
            f"| {row['values']['theirs']:.7f} | {row['difference']:.1e} | {ms['theirs']:.2f} "
            f"| {ms['exact']:.2f} | {usual} |"
        )
    equal = sum(row["difference"] <= EQUAL for row in result["rows"])
    lines.append("")
    lines.append(f"{equal} of {len(result['rows'])} within {EQUAL:g}.")
    return "\n".join(lines)


def _data() -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g)

    logits = 3 * normal(ROWS, CLASSES)
    out = torch.rand(ROWS, generator=g) < 0.3
    return {
        "logits": logits,
        "p": logits.softmax(1),
        "y": torch.multinomial((0.5 * logits).softmax(1), 1, generator=g).squeeze(1),
        "sampled": (logits[:, None] + normal(ROWS, SAMPLES, CLASSES)).softmax(-1),
        "score": normal(ROWS) + 1.5 * out,
        "out": out.long(),
        "mean": normal(ROWS),
        "std": normal(ROWS).abs() + 0.3,
        "value": 1.3 * normal(ROWS),
        "means": normal(ROWS, SAMPLES),
        "stds": normal(ROWS, SAMPLES).abs() + 0.3,
        "quantiles": normal(ROWS, len(_LEVELS)).sort(1).values,
    }


def _fed(metric: Any, *inputs: Any) -> Any:
    for start in range(0, ROWS, BATCH):
        metric.update(*(_cut(value, start) for value in inputs))
    return metric.compute()


def _cut(value: Any, start: int) -> Any:
    if isinstance(value, tuple):
        return tuple(_cut(part, start) for part in value)
    if isinstance(value, Tensor):
        return value[start : start + BATCH]
    return value(start)  # made for every batch, such as a distribution


def _cases(d: dict[str, Tensor]) -> dict[str, Case]:
    cases: dict[str, Case] = {}
    if find_spec("torch_uncertainty") is not None:
        cases |= _classification(d) | _selective(d) | _samples(d) | _regression(d)
    if find_spec("lightning_uq_box") is not None:
        cases |= _uq_box(d)
    return cases


def _classification(d: dict[str, Tensor]) -> dict[str, Case]:
    from torch_uncertainty.metrics import classification as tu

    inputs, peer = (d["p"], d["y"]), "torch-uncertainty"

    def case(theirs: Callable[[], Any], mine: Callable[[], Any], **more: Any) -> Case:
        return Case(peer, lambda: _fed(theirs(), *inputs), lambda: _fed(mine(), *inputs), **more)

    adaptive = metrics.AdaptiveCalibrationError
    return {
        "Brier score": case(lambda: tu.BrierScore(CLASSES), metrics.BrierScore),
        "NLL": case(tu.CategoricalNLL, metrics.NegativeLogLikelihood),
        "adaptive ECE": case(
            lambda: tu.AdaptiveCalibrationError(
                task="multiclass", num_classes=CLASSES, num_bins=20
            ),
            lambda: adaptive(bins=20, exact=True),
            usual=lambda: _fed(adaptive(bins=20), *inputs),
        ),
        "classwise ECE": case(
            lambda: tu.ClasswiseCalibrationError(CLASSES, num_bins=15),
            lambda: metrics.ClasswiseCalibrationError(CLASSES, bins=15),
        ),
        "NLL at the fitted temperature": Case(
            peer,
            lambda: _tempered(d, _their_temperature(d)),
            lambda: _tempered(d, fit_temperature(*inputs)),
        ),
    }


def _tempered(d: dict[str, Tensor], temperature: float) -> Tensor:
    return torch.nn.functional.cross_entropy(d["logits"].double() / temperature, d["y"])


def _their_temperature(d: dict[str, Tensor]) -> float:
    import logging

    from torch.utils.data import DataLoader, TensorDataset
    from torch_uncertainty.post_processing import TemperatureScaler

    logging.disable(logging.WARNING)
    scaler = TemperatureScaler()
    loader = DataLoader(TensorDataset(d["logits"], d["y"]), batch_size=ROWS)
    scaler.fit(loader, progress=False)
    return float(scaler.temperature[0])


def _selective(d: dict[str, Tensor]) -> dict[str, Case]:
    from torch_uncertainty.metrics import classification as tu

    inputs, peer = (d["p"], d["y"]), "torch-uncertainty"

    def case(theirs: Any, mine: Callable[..., Any], convert: Any = None, note: str = "") -> Case:
        def exact() -> Any:
            value = _fed(mine(exact=True), *inputs)
            return value if convert is None else convert(d, value)

        usual = lambda: _fed(mine(), *inputs)  # noqa: E731
        return Case(peer, lambda: _fed(theirs(), *inputs), exact, usual, note)

    detection = (d["score"], d["out"])
    return {
        "AURC": case(tu.AURC, metrics.AURC, _their_aurc, "converted"),
        "AUGRC": case(tu.AUGRC, metrics.AUGRC, _their_augrc, "converted"),
        "coverage at 20 % risk": case(
            lambda: tu.CovAtxRisk(0.2), lambda **k: metrics.CoverageAtRisk(0.2, **k)
        ),
        "risk at 80 % coverage": case(
            lambda: tu.RiskAtxCov(0.8), lambda **k: metrics.RiskAtCoverage(0.8, **k)
        ),
        "FPR at 95 % recall of the known": Case(
            peer,
            lambda: _fed(tu.FPRx(0.95, pos_label=0), -d["score"], d["out"]),
            lambda: _fed(metrics.FalsePositiveRate(0.95, exact=True), *detection),
            lambda: _fed(metrics.FalsePositiveRate(0.95), *detection),
        ),
    }


def _ends(d: dict[str, Tensor]) -> tuple[float, float]:
    """The risk of the surest row alone, and that of all."""
    confidence, chosen = d["p"].double().max(1)
    risk = risk_coverage_curve(1 - confidence, (chosen != d["y"]).double()).risk
    return risk[0].item(), risk[-1].item()


def _their_aurc(d: dict[str, Tensor], value: Tensor) -> float:
    first, last = _ends(d)
    return (ROWS * value.item() - (first + last) / 2) / (ROWS - 1)


def _their_augrc(d: dict[str, Tensor], value: Tensor) -> float:
    first, _ = _ends(d)
    return (value.item() - first / ROWS**2 / 2) / (1 - 1 / ROWS)


def _samples(d: dict[str, Tensor]) -> dict[str, Case]:
    from torch_uncertainty.metrics import classification as tu

    sampled, peer = d["sampled"], "torch-uncertainty"

    def information() -> Tensor:
        return ours.mutual_information(sampled.mean(1), ours.entropy(sampled, dim=-1).mean(1))

    return {
        "entropy": Case(
            peer, lambda: _fed(tu.Entropy(), d["p"]), lambda: ours.entropy(d["p"]).mean()
        ),
        "mutual information": Case(
            peer, lambda: _fed(tu.MutualInformation(), sampled), lambda: information().mean()
        ),
    }


def _regression(d: dict[str, Tensor]) -> dict[str, Case]:
    from torch.distributions import Normal
    from torch_uncertainty.metrics import regression as tu

    peer, value = "torch-uncertainty", d["value"]
    ends = (d["mean"] - 2 * d["std"], d["mean"] + 2 * d["std"])
    moments = (d["mean"], d["std"].square())

    def normal(start: int) -> Normal:
        return Normal(d["mean"][start : start + BATCH], d["std"][start : start + BATCH])

    return {
        "Gaussian NLL": Case(
            peer,
            lambda: _fed(tu.DistributionNLL(), normal, value),
            lambda: _fed(metrics.GaussianNegativeLogLikelihood(), moments, value),
        ),
        "interval coverage": Case(
            peer,
            lambda: _fed(tu.IntervalCoverage(), *ends, value),
            lambda: _fed(metrics.IntervalCoverage(), ends, value),
        ),
        "interval width": Case(
            peer,
            lambda: _fed(tu.MeanIntervalWidth(), *ends),
            lambda: _fed(metrics.IntervalWidth(), ends),
        ),
        "interval score": Case(
            peer,
            lambda: _fed(tu.IntervalScore(0.95), *ends, value),
            lambda: _fed(metrics.IntervalScore(0.95), ends, value),
        ),
    }


def _uq_box(d: dict[str, Tensor]) -> dict[str, Case]:
    import math

    import uncertainty_toolbox as toolbox
    from lightning_uq_box.eval_utils import uq_computation as box
    from lightning_uq_box.uq_methods.loss_functions import NLL
    from lightning_uq_box.uq_methods.loss_functions import PinballLoss as TheirPinball

    peer, value, moments = "lightning-uq-box", d["value"], (d["mean"], d["std"].square())
    arrays = [d[key].double().numpy() for key in ("mean", "std", "value")]
    heads = torch.stack([d["mean"], d["std"].square().log()], 1)
    constant = math.log(2 * math.pi) / 2

    def variances(part: int) -> Tensor:
        split = ours.law_of_total_variance(d["means"], d["stds"].square(), dim=1)
        return split[part].sqrt().mean()

    return {
        "predictive deviation": Case(
            peer,
            lambda: box.compute_predictive_uncertainty(d["means"], d["stds"]).mean(),
            lambda: variances(0),
        ),
        "aleatoric deviation": Case(
            peer, lambda: box.compute_aleatoric_uncertainty(d["stds"]).mean(), lambda: variances(1)
        ),
        "epistemic deviation": Case(
            peer, lambda: box.compute_epistemic_uncertainty(d["means"]).mean(), lambda: variances(2)
        ),
        "pinball loss": Case(
            peer,
            lambda: TheirPinball(list(_LEVELS))(d["quantiles"], value[:, None]),
            lambda: pinball_loss(d["quantiles"], value, _LEVELS).mean(),
        ),
        "Gaussian NLL of a head": Case(
            peer,
            lambda: NLL()(heads, value[:, None]) + constant,
            lambda: _fed(metrics.GaussianNegativeLogLikelihood(), moments, value),
            note="their constant added",
        ),
        "quantile calibration error": Case(
            peer,
            lambda: toolbox.mean_absolute_calibration_error(
                *arrays, num_bins=99, vectorized=True, prop_type="quantile"
            ),
            lambda: (
                _fed(metrics.QuantileCalibrationError(_LEVELS_INSIDE), moments, value) * 97 / 99
            ),
            note="converted",
        ),
        "sharpness": Case(
            peer,
            lambda: toolbox.sharpness(arrays[1]),
            lambda: _fed(metrics.Sharpness(), moments),
        ),
    }
