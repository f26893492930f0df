"""Choosing an activation by measurement: first by its signal, then by a short race."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, median, stdev
from typing import Any, Protocol

import torch
from torch import nn

from stablelightning.errors import StableLightningError
from stablelightning.model.activation_ranking import (
    ActivationRanking,
    CandidateResult,
    CandidateSignal,
)
from stablelightning.model.attribution import attribute
from stablelightning.model.generators import preserved_generators
from stablelightning.model.measurement import Measurement
from stablelightning.model.race import Contestant, Heat, run_heat
from stablelightning.model.signals import measure
from stablelightning.model.step import TrainingStep

#: What is tried where nobody says otherwise: the common ones, and slopes from nearly none to many.
CANDIDATES = (
    "relu",
    "leaky_relu(0.01)",
    "leaky_relu(0.1)",
    "leaky_relu(0.2)",
    "elu",
    "selu",
    "gelu",
    "silu",
    "tanh",
)

#: A signal or a gradient that changes by more than this factor through the network is lost to
#: float32 and to every optimizer's epsilon. Smaller changes cost places in the order, no more.
_LARGEST_CHANGE = 1e6
#: Shares of dead units and of saturated values from which on a network hardly learns.
_MOST_DEAD = 0.4
_MOST_SATURATED = 0.5


class Racer(Contestant, Protocol):
    """A contestant whose module can be looked at."""

    @property
    def module(self) -> nn.Module:
        """What trains."""

    def prepared(self, batch: Any) -> Any:
        """A batch where the module is, and in its precision."""


@dataclass(frozen=True)
class RaceData:
    """What every candidate gets alike.

    Args:
        batches: learned from, in this order.
        held_out: the loss is read on these.
    """

    batches: Sequence[Any]
    held_out: Sequence[Any]


@dataclass(frozen=True)
class RaceSettings:
    """How long the race is.

    Args:
        steps: optimizer steps of each run, >= 1.
        seeds: runs of each candidate, >= 1.
        finalists: candidates that race, the incumbent not counted, >= 1.
        seed: the first of the seeds, >= 0.
    """

    steps: int = 100
    seeds: int = 3
    finalists: int = 4
    seed: int = 0


def select_activation(
    build: Callable[[str], Racer],
    candidates: Sequence[str],
    data: RaceData,
    settings: RaceSettings | None = None,
    *,
    agree: Callable[[Any], Any] = lambda found: found,
) -> ActivationRanking:
    """Rank activations by how signals fare in them, and by a short training race.

    Each candidate is built, one training step of it is watched, and those whose signal or gradient
    would be lost are out. The best of the others race: equal seeds, equal batches, the loss on
    batches that nobody learns from. The first candidate, the activation in use, races in any case,
    and stays unless another is better by more than one standard error of the paired differences.

    Args:
        build: makes a fresh contestant with an activation, swapped in and initialized; called under
            a seed, so that it may draw.
        candidates: names; the first is the one in use.
        data: the batches.
        settings: the length of the race; ``None`` for the defaults.
        agree: given what this process found, returns what all go by; for several processes.

    Returns:
        An :class:`~stablelightning.model.activation_ranking.ActivationRanking`. Random number
        generators are afterwards as they were.

    Example:
        >>> from stablelightning.model.activation import swap_activations
        >>> from stablelightning.model.race import PlainContestant
        >>> def build(name):
        ...     net = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 2))
        ...     swap_activations(net, name)
        ...     return PlainContestant(
        ...         net, nn.CrossEntropyLoss(), torch.optim.Adam(net.parameters())
        ...     )
        >>> batch = (torch.randn(32, 4), torch.randint(2, (32,)))
        >>> ranking = select_activation(
        ...     build, ["tanh", "relu"], RaceData([batch], [batch]), RaceSettings(steps=5, seeds=2)
        ... )
        >>> sorted(result.name for result in ranking.results)
        ['relu', 'tanh']
    """
    settings = settings or RaceSettings()
    results = [_judged(build, name, data.batches[0], settings.seed) for name in candidates]
    incumbent = results[0]
    fit = sorted((r for r in results[1:] if not r.signal.fault), key=lambda r: r.signal.badness)
    names = agree([r.name for r in fit[: settings.finalists]])
    racers = [incumbent, *(r for r in results[1:] if r.name in names)]
    for result in racers:
        heats = [_heat(build, result.name, data, settings, i) for i in range(settings.seeds)]
        _record(result, heats)
    for result in fit:
        if result not in racers:
            result.verdict = "not raced: others keep the signal better"
    _measure_against(incumbent, racers)
    return agree(_ranked(incumbent, racers, results, settings))  # type: ignore[no-any-return]


# ---- the signal ---------------------------------------------------------------------------------


def _judged(build: Callable[[str], Racer], name: str, batch: Any, seed: int) -> CandidateResult:
    try:
        with preserved_generators(seed):
            racer = build(name)
            signal = signal_of(racer.module, racer.prepared(batch))
    except (StableLightningError, RuntimeError, TypeError, ValueError, AttributeError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        signal = CandidateSignal(fault=f"it cannot be built: {lines[0]}")
    verdict = f"not raced: {signal.fault}" if signal.fault else ""
    return CandidateResult(name, signal, verdict=verdict)


def signal_of(module: nn.Module, batch: Any) -> CandidateSignal:
    """Watch one training step of a module, which it changes (buffers, gradients), and judge it.

    Args:
        module: a LightningModule with its own step, or any module.
        batch: ``(inputs, target)``.

    Raises:
        DataError: the batch does not fit.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> signal = signal_of(net, (torch.randn(32, 4), torch.randint(2, (32,))))
        >>> 0.3 < signal.off_centre < 0.9, signal.fault
        (True, '')
    """
    step = TrainingStep(module.train(), batch)
    try:
        attribution = attribute(module, step.inputs)
    except (StableLightningError, NotImplementedError):
        attribution = None  # slopes then go by the order of execution
    seen = measure(module.train(), step, attribution)
    activations = [x.activation for x in seen.layers if x.activation is not None]
    signal = CandidateSignal(
        forward_slope=_number(seen.forward_slope()),
        gradient_slope=_number(seen.gradient_slope()),
        depth=max([x.depth for x in seen.layers], default=0) + 1,
        dead=_mean([a.dead for a in activations]),
        saturated=_mean([a.saturated for a in activations if a.flat_sides == 2]),
        off_centre=_mean([a.mean_share for a in activations]),
    )
    return _with_fault(signal, seen)


def _with_fault(signal: CandidateSignal, seen: Measurement) -> CandidateSignal:
    forward = abs(signal.forward_slope) * signal.depth
    backward = abs(signal.gradient_slope) * signal.depth
    most = math.log(_LARGEST_CHANGE)
    fault = ""
    if seen.fault is not None or not math.isfinite(seen.loss):
        fault = "its numbers are not finite"
    elif forward > most:
        fault = f"its signal changes by a factor of {math.exp(min(forward, 99)):.0e}"
    elif backward > most:
        fault = f"its gradient changes by a factor of {math.exp(min(backward, 99)):.0e}"
    elif signal.dead > _MOST_DEAD:
        fault = f"{signal.dead:.0%} of its units are dead"
    elif signal.saturated > _MOST_SATURATED:
        fault = f"{signal.saturated:.0%} of its values are saturated"
    return CandidateSignal(**{**vars(signal), "fault": fault})


def _number(value: float) -> float:
    return value if math.isfinite(value) else 0.0


def _mean(values: list[float]) -> float:
    known = [v for v in values if math.isfinite(v)]
    return fmean(known) if known else 0.0


# ---- the race -----------------------------------------------------------------------------------


def _heat(
    build: Callable[[str], Racer], name: str, data: RaceData, settings: RaceSettings, number: int
) -> Heat:
    with preserved_generators(settings.seed + number):
        try:
            contestant = build(name)
        except (StableLightningError, RuntimeError, TypeError, ValueError) as error:
            return Heat(failure=str(error).strip().partition("\n")[0])
        # From the same state whatever building drew: PReLU draws nothing, maxout twice as much.
        torch.manual_seed(settings.seed + number)
        return run_heat(contestant, data.batches, data.held_out, steps=settings.steps)


def _record(result: CandidateResult, heats: list[Heat]) -> None:
    failures = [h.failure for h in heats if h.failure]
    result.losses = [h.final for h in heats]
    times = [h.milliseconds for h in heats if math.isfinite(h.milliseconds)]
    result.milliseconds = median(times) if times else None
    result.verdict = f"failed: {failures[0]}" if failures else ""
    if failures:
        return
    steps = [step for step, _ in heats[0].curve]
    result.curve = [(s, fmean(h.curve[i][1] for h in heats)) for i, s in enumerate(steps)]


def _measure_against(incumbent: CandidateResult, racers: list[CandidateResult]) -> None:
    if not math.isfinite(incumbent.loss):
        return
    for result in racers:
        reached = (step for step, loss in result.curve if loss <= incumbent.loss)
        result.steps_to_target = next(reached, None)


def _ranked(
    incumbent: CandidateResult,
    racers: list[CandidateResult],
    results: list[CandidateResult],
    settings: RaceSettings,
) -> ActivationRanking:
    order = sorted(racers, key=lambda r: r.loss)
    best = order[0]
    chosen = incumbent if _within_noise(best, incumbent) else best
    for result in racers:
        if result is chosen:
            result.verdict = "chosen"
        elif not result.verdict:
            result.verdict = _compared(result, chosen)
    rest = [r for r in results if r not in racers]
    rest.sort(key=lambda r: r.signal.badness)
    return ActivationRanking(
        chosen=chosen.name,
        incumbent=incumbent.name,
        results=[*order, *rest],
        target=incumbent.loss if math.isfinite(incumbent.loss) else None,
        steps=settings.steps,
        seeds=settings.seeds,
    )


def _within_noise(best: CandidateResult, incumbent: CandidateResult) -> bool:
    """Whether the best is better by no more than one standard error of the paired differences."""
    if not math.isfinite(incumbent.loss):
        return not math.isfinite(best.loss)
    gains = [a - b for a, b in zip(incumbent.losses, best.losses, strict=True)]
    error = stdev(gains) / math.sqrt(len(gains)) if len(gains) > 1 else 0.0
    return fmean(gains) <= error


def _compared(result: CandidateResult, chosen: CandidateResult) -> str:
    if not math.isfinite(result.loss):
        return "diverged"
    difference = result.loss - chosen.loss
    if difference < 0:
        return "lower loss, but within the noise between seeds"
    also = f"; {result.signal.fault}" if result.signal.fault else ""
    return f"loss higher by {difference:.3g}{also}"
