"""Paired timing: every contender in turn, round after round, so that a drift of the machine cancels."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

#: Rounds in which every contender runs once. A slow one sits out rounds once it has enough.
_FEWEST = 3


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
    """Time contenders in turn for about ``seconds``.

    Returns:
        Per contender its seconds in every round, ``None`` where it sat out.
    """
    first = {name: (function(), once(function, device))[1] for name, function in contenders.items()}
    round_seconds = sum(min(t, seconds / 20) for t in first.values())
    rounds = int(max(_FEWEST + 2, min(200, seconds / max(round_seconds, 1e-6))))
    times: dict[str, list[float | None]] = {name: [] for name in contenders}
    for number in range(rounds):
        order = list(contenders)
        shift = number % len(order)
        for name in order[shift:] + order[:shift]:
            slow = first[name] > seconds / 20 and number >= _FEWEST
            times[name].append(None if slow else once(contenders[name], device))
    return times


def ratio(times: dict[str, list[float | None]], name: str, to: str) -> float:
    """Median over the rounds of the ratio of two contenders."""
    pairs = zip(times[name], times[to], strict=True)
    return statistics.median(a / b for a, b in pairs if a is not None and b is not None)


def median(times: list[float | None]) -> float:
    """Median seconds."""
    return statistics.median(t for t in times if t is not None)
