"""Paired timing: contenders in turn, round after round, so that a drift of the machine cancels."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

#: A contender that takes more than this share of a case's time runs once, without a warm-up.
_SLOW = 0.1

#: So many of the fastest are timed in every round whatever they take.
_NEVER_SLOW = 4

#: Rounds of the others.
_FEWEST, _MOST = 5, 200


def once(function: Callable[[], Any], device: torch.device) -> float:
    """Seconds of one call."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def paired(
    contenders: dict[str, Callable[[], Any]], *, device: torch.device, seconds: float
) -> dict[str, list[float | None]]:
    """Time contenders in turn for about ``seconds``, not counting the slow ones.

    Returns:
        Per contender its seconds in every round, ``None`` where it sat out. The first call of a
        fast contender is its warm-up, and not among them.
    """
    first = {name: once(function, device) for name, function in contenders.items()}
    by_speed = sorted(first, key=lambda name: first[name])
    slow = {name for name in by_speed[_NEVER_SLOW:] if first[name] > seconds * _SLOW}
    fast = [name for name in contenders if name not in slow]
    rounds = int(seconds / max(sum(first[name] for name in fast), 1e-6))
    rounds = max(_FEWEST, min(_MOST, rounds))
    times: dict[str, list[float | None]] = {name: [] for name in contenders}
    for number in range(rounds):
        shift = number % len(fast)
        for name in fast[shift:] + fast[:shift]:
            times[name].append(once(contenders[name], device))
        for name in slow:
            times[name].append(first[name] if number == 0 else None)
    return times


def ratio(times: dict[str, list[float | None]], name: str, to: str) -> float:
    """Median over the rounds of the ratio of two contenders; of the medians, where one ran once."""
    pairs = [(a, b) for a, b in zip(times[name], times[to], strict=True) if a and b]
    if len(pairs) < _FEWEST:
        return median(times[name]) / median(times[to])
    return statistics.median(a / b for a, b in pairs)


def median(times: list[float | None]) -> float:
    """Median seconds."""
    return statistics.median(t for t in times if t is not None)
