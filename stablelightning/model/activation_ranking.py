"""The outcome of a measured choice among activations: every candidate with its evidence."""

import math
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import Any

COLUMNS = [
    "activation",
    "verdict",
    "loss",
    "standard error",
    "steps to target",
    "ms per step",
    "forward slope",
    "gradient slope",
    "dead",
    "saturated",
    "off centre",
]


@dataclass(frozen=True)
class CandidateSignal:
    """How a signal fares through a network with one activation, before training.

    Args:
        forward_slope: slope of ln std over depth, per layer; 0 keeps the scale.
        gradient_slope: slope of ln gradient over depth, per layer; 0 keeps the scale.
        depth: layers that the slopes are over.
        dead: mean share of units without derivative on every input, in [0, 1].
        saturated: mean share of values where the activation is flat, in [0, 1].
        off_centre: mean share of the power that is in the means of the activations, in [0, 1]; 0
            is centred.
        fault: why the candidate cannot be trained, in words; empty if it can.
    """

    forward_slope: float = 0.0
    gradient_slope: float = 0.0
    depth: int = 1
    dead: float = 0.0
    saturated: float = 0.0
    off_centre: float = 0.0
    fault: str = ""

    @property
    def badness(self) -> float:
        """What the order of the candidates before the race goes by; 0 is perfect.

        The change of scale through all layers, forward and backward, in e-folds, and the shares.
        """
        if self.fault:
            return math.inf
        change = (abs(self.forward_slope) + abs(self.gradient_slope)) * self.depth
        return change + self.dead + self.saturated + self.off_centre


@dataclass
class CandidateResult:
    """One candidate.

    Args:
        name: of the activation.
        signal: how it fared before the race.
        losses: held-out loss towards the end, for each seed; empty if it did not race.
        curve: pairs of steps and the mean held-out loss over the seeds.
        steps_to_target: steps until the mean loss is that at which the activation in use ended;
            ``None`` if it never is.
        milliseconds: of one step; ``None`` if it did not race.
        verdict: ``"chosen"``, or why not, in words.
    """

    name: str
    signal: CandidateSignal
    losses: list[float] = field(default_factory=list)
    curve: list[tuple[int, float]] = field(default_factory=list)
    steps_to_target: int | None = None
    milliseconds: float | None = None
    verdict: str = ""

    @property
    def loss(self) -> float:
        """Mean over the seeds; infinite if it did not race or did not get there."""
        return fmean(self.losses) if self.losses else math.inf

    @property
    def standard_error(self) -> float | None:
        """Of the mean over the seeds; ``None`` for one seed, or where a loss is infinite."""
        if len(self.losses) < 2 or not math.isfinite(self.loss):
            return None
        return stdev(self.losses) / math.sqrt(len(self.losses))

    def row(self) -> list[Any]:
        """The cells of :data:`COLUMNS`; ``None`` where there is no finite number."""
        s = self.signal
        numbers = [self.loss, self.standard_error, self.steps_to_target, self.milliseconds]
        numbers += [s.forward_slope, s.gradient_slope, s.dead, s.saturated, s.off_centre]
        return [self.name, self.verdict, *map(_finite, numbers)]


@dataclass
class ActivationRanking:
    """Every candidate, best first, and which one was chosen; ``print`` shows the table.

    Args:
        chosen: name of the activation to use.
        incumbent: name of the one in use before.
        results: best first; those that did not race last.
        target: the loss at which the incumbent ended; ``None`` if it did not get there.
        steps: length of the race in optimizer steps.
        seeds: number of seeds.
    """

    chosen: str
    incumbent: str
    results: list[CandidateResult]
    target: float | None
    steps: int
    seeds: int

    def __getitem__(self, name: str) -> CandidateResult:
        """The candidate of that name."""
        for result in self.results:
            if result.name == name:
                return result
        raise KeyError(name)

    def rows_for_table(self) -> list[list[Any]]:
        """A row for each candidate, in the columns of :data:`COLUMNS`."""
        return [result.row() for result in self.results]

    def to_dict(self) -> dict[str, Any]:
        """Plain types; no number that is not finite."""
        return {
            "chosen": self.chosen,
            "incumbent": self.incumbent,
            "target": self.target,
            "steps": self.steps,
            "seeds": self.seeds,
            "columns": list(COLUMNS),
            "rows": self.rows_for_table(),
            "curves": {
                r.name: [[step, _finite(loss)] for step, loss in r.curve] for r in self.results
            },
        }

    def __str__(self) -> str:
        cells = [COLUMNS, *([_text(cell) for cell in row] for row in self.rows_for_table())]
        # The words come last, where they may be long.
        cells = [[line[0], *line[2:], line[1]] for line in cells]
        widths = [max(len(line[i]) for line in cells) for i in range(len(COLUMNS))]
        text = [
            "  ".join(
                [line[0].ljust(widths[0]), *map(str.rjust, line[1:-1], widths[1:-1]), line[-1]]
            )
            for line in cells
        ]
        change = "kept" if self.chosen == self.incumbent else f"in place of {self.incumbent}"
        raced = sum(bool(r.losses) for r in self.results)
        told = f"{self.chosen}, {change}: {raced} raced, {self.steps} steps, {self.seeds} seeds."
        return "\n".join([*text, told])


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else value


def _text(cell: Any) -> str:
    if cell is None:
        return "-"
    return f"{cell:.4g}" if isinstance(cell, float) else str(cell)
