"""Short runs at a few learning rates, from one start and on the same batches."""

import math
from dataclasses import asdict, dataclass
from itertools import repeat
from typing import Any

import torch

from stablelightning.callbacks.rehearsal import Rehearsal
from stablelightning.functional.learning_rate import divergence

#: From one tried rate to the next: half a decade, which is how far good rates reach.
_FACTOR = 3.0
#: Runs of one search: from a valley that is wrong by a factor of a hundred to the best and beyond.
_MOST_RUNS = 8
#: The smallest rate is taken among runs that are within this share of the best one's fall. A
#: hundred steps like larger rates than a whole training does.
_AS_GOOD = 0.02


@dataclass(frozen=True)
class Run:
    """What came of one rate.

    Args:
        rate: the same in every step.
        losses: of each step, ``None`` where not finite; fewer where it broke.
        score: mean loss of the last third; ``None`` where it broke.
    """

    rate: float
    losses: list[float | None]
    score: float | None

    @property
    def stable(self) -> bool:
        """Whether it came to its end."""
        return self.score is not None


class Trials:
    """A search among learning rates by short runs.

    A first run at a rate of zero tells what the same batches cost the untrained model: whether a
    rate learns is seen beside that, and not beside other batches.

    Args:
        rehearsal: makes the runs.
        steps: of each run.

    Attributes:
        runs: those made so far.
        words: what was found, to follow a rate.
    """

    def __init__(self, rehearsal: Rehearsal, *, steps: int) -> None:
        self._rehearsal = rehearsal
        self._steps = steps
        losses = [loss for _, loss in rehearsal.run(repeat(0.0, steps))]
        self._untrained = torch.tensor(losses, dtype=torch.float64)
        self._level = _end(losses)
        self.runs: list[Run] = []
        self.words = ""

    def around(self, rate: float, *, below: float | None) -> float | None:
        """The best rate among neighbours of a first guess, each a third or three times another.

        Args:
            rate: the guess.
            below: rates from here on are known to break, ``None`` for none.

        Returns:
            ``None`` where no run came to its end with a lower loss than the untrained model's.
        """
        ceiling = math.inf if below is None else below
        tried = {place: self._run(rate * _FACTOR**place) for place in (-1, 0)}
        while len(self.runs) < _MOST_RUNS:
            best = self._best(tried)
            upper, lower = max(tried) + 1, min(tried) - 1
            if best is not None and best == max(tried) and rate * _FACTOR**upper < ceiling:
                tried[upper] = self._run(rate * _FACTOR**upper)
            elif best is None or best == min(tried):
                tried[lower] = self._run(rate * _FACTOR**lower)
            else:
                break
        best = self._best(tried)
        if best is None:
            self.words = f"none of {len(self.runs)} runs of {self._steps} steps learned anything"
            return None
        return self._as_good(tried[best])

    def halved(self, rate: float, *, halvings: int) -> float | None:
        """The first of a rate, its half, its quarter and so on, whose run comes to its end."""
        for number in range(halvings + 1):
            run = self._run(rate / 2**number)
            if run.stable:
                halved = f"after {number} halving{'s' if number > 1 else ''}"
                how = halved if number else "without halving"
                self.words = f"the loss held for {self._steps} steps {how}"
                return run.rate
        self.words = f"it diverged at every rate from {rate:.2g} down to {run.rate:.2g}"
        return None

    def to_list(self) -> list[dict[str, Any]]:
        """The runs in plain types, from the smallest rate to the largest."""
        ordered = sorted(self.runs, key=lambda run: run.rate)
        return [asdict(run) | {"stable": run.stable} for run in ordered]

    def _run(self, rate: float) -> Run:
        def breaks(losses: list[float]) -> bool:
            return divergence(torch.tensor(losses), self._untrained) is not None

        steps = self._rehearsal.run(repeat(rate, self._steps), until=breaks)
        losses = [loss for _, loss in steps]
        score = None if not losses or breaks(losses) else _end(losses)
        plain = [loss if math.isfinite(loss) else None for loss in losses]
        self.runs.append(Run(rate, plain, score))
        return self.runs[-1]

    def _best(self, tried: dict[int, Run]) -> int | None:
        """Where the lowest score is, ``None`` where none is below the untrained model's loss."""
        scores = {place: run.score for place, run in tried.items() if run.score is not None}
        place = min(scores, key=lambda place: scores[place], default=None)
        return None if place is None or scores[place] >= self._level else place

    def _as_good(self, best: Run) -> float:
        lowest = best.score or 0.0
        enough = lowest + _AS_GOOD * (self._level - lowest)
        good = [run.rate for run in self.runs if run.score is not None and run.score <= enough]
        # A table of the runs stands beside these words, in which another one may be lower.
        alike = "as good as " if min(good) < best.rate else ""
        self.words = f"{alike}the best of {len(self.runs)} runs of {self._steps} steps"
        return min(good)


def _end(losses: list[float]) -> float:
    """Mean loss of the last third."""
    last = losses[-max(1, len(losses) // 3) :]
    return sum(last) / len(last) if last else math.nan
