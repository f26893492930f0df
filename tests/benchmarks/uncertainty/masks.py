"""Balanced masks against independent ones: samples for equal error, and what it does to spreads.

Every network is sampled again and again at each number of samples T, and compared with the mean of
8,192 independent samples. With independent masks the squared error falls as 1/T, so the samples
that they need for the error of balanced ones are T times the ratio of the two errors.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from sklearn.datasets import load_diabetes, load_digits
from torch import Tensor, nn

import stablelightning as sl
from stablelightning.model.masks import Masks
from stablelightning.model.prediction import Prediction
from stablelightning.nn import MLP, ConvNet, Gaussian
from tests.benchmarks.paired import interval
from tests.benchmarks.record import Job, Run

TITLE = "Balanced masks: samples for equal error of the mean, bias of the spreads"
NEEDS_ROOT = False

COUNTS = (8, 16, 32, 64)
KINDS: tuple[Masks, ...] = ("independent", "balanced")

#: Samples of the mean that counts as exact, and times that each T is drawn.
REFERENCE = 8192
REPEATS = 20

#: Rounds in which the time of one prediction is taken, at so many samples.
_ROUNDS, _TIMED = 15, 32

_TESTED = 64


@dataclass(frozen=True)
class Case:
    """A network, and what it is trained and sampled on."""

    network: Callable[[], nn.Module]
    rows: Callable[[], tuple[Tensor, Tensor]]
    task: str
    epochs: int = 20


class Encoder(nn.Module):
    """A Transformer over the eight rows of a digit, with dropout in ten places."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 32)
        self.place = nn.Parameter(0.1 * torch.randn(8, 32))
        layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.1, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.drop = nn.Dropout(0.1)
        self.head = nn.Linear(32, 10)

    def forward(self, images: Tensor) -> Tensor:
        steps = self.layers(self.drop(self.embed(images.squeeze(1)) + self.place))
        return self.head(self.drop(steps.mean(1)))


def _digits() -> tuple[Tensor, Tensor]:
    found = load_digits()
    pixels = torch.tensor(found.images, dtype=torch.float32)[:, None]
    return (pixels - pixels.mean()) / pixels.std(), torch.tensor(found.target)


def _diabetes() -> tuple[Tensor, Tensor]:
    found = load_diabetes()
    inputs = torch.tensor(found.data, dtype=torch.float32)
    target = torch.tensor(found.target, dtype=torch.float32)
    return inputs / inputs.std(0), (target - target.mean()) / target.std()


def _dense() -> nn.Module:
    return nn.Sequential(nn.Flatten(), MLP(64, 10, hidden=[128, 128], dropout=0.3))


CASES: Mapping[str, Case] = {
    "MLP, digits": Case(_dense, _digits, "classification"),
    "ConvNet, digits": Case(partial(ConvNet, 1, 10, dropout=0.2), _digits, "classification"),
    "Gaussian MLP, diabetes": Case(
        partial(MLP, 10, hidden=[64, 64], dropout=0.2, variance=True),
        _diabetes,
        "regression",
        epochs=60,
    ),
    "Transformer, digits": Case(Encoder, _digits, "classification", epochs=30),
}


# ---- one network -------------------------------------------------------------------------------


def compare(case: str, seed: int) -> dict[str, Any]:
    """All numbers of one network.

    Returns:
        ``error``, ``variance``, ``epistemic`` and ``stated`` by kind of masks, a number for each
        of :data:`COUNTS`: squared error of the mean; bias of the variance and of the epistemic part
        (mutual information, or variance of the means) as a share of the exact one; the stated
        standard error over the real one. ``seconds`` of a prediction, by kind.
    """
    chosen = CASES[case]
    network, inputs = _trained(chosen, seed)
    draw = partial(sl.mc_dropout, network, inputs, task=chosen.task)
    exact = draw(samples=REFERENCE, seed=1_000_000 + seed)
    found: dict[str, Any] = {name: {} for name in ("error", "variance", "epistemic", "stated")}
    for masks in KINDS:
        rows = [_scores(draw, masks, count, exact, seed) for count in COUNTS]
        for name, values in zip(found, zip(*rows, strict=True), strict=True):
            found[name][masks] = list(values)
    return found | {"seconds": _seconds(draw)}


def _scores(
    draw: Callable[..., Prediction], masks: Masks, count: int, exact: Prediction, seed: int
) -> tuple[float, ...]:
    error = variance = epistemic = stated = 0.0
    for repeat in range(REPEATS):
        found = draw(samples=count, seed=1000 * seed + repeat, masks=masks)
        error += float((found.mean - exact.mean).square().mean()) / REPEATS
        stated += float(found.standard_error.square().mean()) / REPEATS
        variance += _variance(found) / REPEATS
        epistemic += float(found.epistemic.mean()) / REPEATS
    error -= float(exact.standard_error.square().mean())  # what the reference is off by itself
    return (
        error,
        variance / _variance(exact) - 1,
        epistemic / float(exact.epistemic.mean()) - 1,
        (stated / error) ** 0.5,
    )


def _variance(prediction: Prediction) -> float:
    """Variance of the sampled means over the T samples, their squares summed and divided by T."""
    return float(prediction.standard_error.square().mean()) * (prediction.samples_used - 1)


def _seconds(draw: Callable[..., Prediction]) -> dict[str, float]:
    times: dict[str, list[float]] = {masks: [] for masks in KINDS}
    for _ in range(_ROUNDS):
        for masks in KINDS:
            began = time.perf_counter()
            draw(samples=_TIMED, seed=0, masks=masks)
            times[masks].append(time.perf_counter() - began)
    return {masks: statistics.median(values[1:]) for masks, values in times.items()}


def _trained(case: Case, seed: int) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(seed)
    network = case.network()
    inputs, target = case.rows()
    order = torch.randperm(len(inputs))
    tested, trained = order[:_TESTED], order[_TESTED:]
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=0.01)
    for _ in range(case.epochs):
        for rows in trained[torch.randperm(len(trained))].split(64):
            optimizer.zero_grad()
            _loss(network(inputs[rows]), target[rows]).backward()
            optimizer.step()
    return network.eval(), inputs[tested]


def _loss(output: Any, target: Tensor) -> Tensor:
    if isinstance(output, Gaussian):
        means, variances = (each.reshape(target.shape) for each in output)
        return nn.functional.gaussian_nll_loss(means, target, variances)
    return nn.functional.cross_entropy(output, target)


# ---- all of them -------------------------------------------------------------------------------


def measure(run: Run) -> dict[str, Any]:
    jobs = {
        f"{case}, seed {seed}": Job(compare, {"case": case, "seed": seed})
        for case in CASES
        for seed in range(run.seeds)
    }
    found = run.all(jobs)
    return {case: [found[f"{case}, seed {seed}"] for seed in range(run.seeds)] for case in CASES}


def worth(network: Mapping[str, Any]) -> list[float]:
    """Independent samples that have the error of T balanced ones, for each T."""
    error = network["error"]
    pairs = zip(COUNTS, error["independent"], error["balanced"], strict=True)
    return [count * mine / its for count, mine, its in pairs]


def table(measured: Mapping[str, Any]) -> str:
    lines = ["Independent samples that have the error of T balanced ones (95% interval, networks)"]
    lines.append(f"{'':26}" + "".join(f"{f'T = {count}':>18}" for count in COUNTS) + "      time")
    for case, networks in _cases(measured):
        each = zip(*map(worth, networks), strict=True)
        cells = "".join(f"{_rounded(values):>18}" for values in each)
        slower = [n["seconds"]["balanced"] / n["seconds"]["independent"] for n in networks]
        lines.append(f"{case:26}{cells}{statistics.median(slower):9.2f}x")
    for name, title in (
        ("variance", "Bias of the variance over the samples, in percent"),
        ("epistemic", "Bias of the epistemic part (mutual information, variance), in percent"),
        ("stated", "Stated standard error over the real one"),
    ):
        lines += ["", title, f"{'':42}" + "".join(f"{f'T = {count}':>10}" for count in COUNTS)]
        if name != "stated":
            bound = "".join(f"{-100 / (count - 1):10.2f}" for count in COUNTS)
            lines.append(f"{'-1/(T-1)':42}{bound}")
        for case, networks in _cases(measured):
            lines += [f"{case:26}{m:16}{_means(networks, name, m)}" for m in KINDS]
    return "\n".join(lines)


def _rounded(values: Sequence[float]) -> str:
    found = interval(values)
    return f"{found.mean:.0f} [{found.low:.0f}, {found.high:.0f}]"


def _means(networks: list[Any], name: str, masks: str) -> str:
    scale = 1 if name == "stated" else 100
    each = zip(*(network[name][masks] for network in networks), strict=True)
    return "".join(f"{scale * statistics.fmean(values):10.2f}" for values in each)


def _cases(measured: Mapping[str, Any]) -> list[tuple[str, list[Any]]]:
    return [(case, measured[case]) for case in CASES if case in measured]
