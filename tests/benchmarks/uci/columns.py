"""The columns of the table: four ways to predict, each with its own choice of settings."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from tests.benchmarks.uci import tuning
from tests.benchmarks.uci.data import Problem, precisions_of
from tests.benchmarks.uci.network import Candidate
from tests.benchmarks.uci.scoring import Score
from tests.benchmarks.uci.training import Course, Job, Track
from tests.benchmarks.uci.tuning import Choice, Runner

HEADLINE = "heteroscedastic_mc"

_LITTLE, _SOME, _STRONG = 1e-3, 0.01, 0.3
#: With dropout: from hardly any, for targets without noise, to a lot, with a decay that fits it.
_WITH_DROPOUT = (
    *(Candidate("relu", rate, decay=_LITTLE) for rate in (0.005, 0.01, 0.05)),
    Candidate("relu", 0.02, decay=_LITTLE, length=2),
    Candidate("relu", 0.2, decay=_STRONG),
    Candidate("relu", 0.2, decay=_STRONG, together=8),
    *(Candidate("silu", 0.002, decay=decay) for decay in (_LITTLE, _SOME)),
    Candidate("silu", 0.005, decay=_SOME, length=2),
    Candidate("tanh", 0.4, decay=_LITTLE),
)
#: Without: the decay of the weights takes its place, in more settings.
_WITHOUT_DROPOUT = (
    *(Candidate("relu", decay=decay) for decay in (0.0, 0.01, 0.1, 0.3, 1.0)),
    Candidate("relu", decay=_LITTLE, length=2),
    *(Candidate("silu", decay=decay) for decay in (0.0, 1e-3, 0.01, 0.1)),
    Candidate("silu", decay=_LITTLE, length=2),
    *(Candidate("tanh", decay=decay) for decay in (1e-3, 0.1, 0.3)),
)
#: Learning rates: SiLU's small slopes bear larger steps.
_LEARNING_RATES = {"relu": 0.01, "silu": 0.03, "tanh": 0.01}
_WARM = 100
#: Of the training rows, and the least and the most: from 64 below 4,500 rows to 512 above 18,000.
_BATCH_SHARE, _BATCHES = 0.02, (64, 512)
#: Copies of each network in the ensemble.
_MEMBERS = 5

_PUBLISHED_BATCH, _PUBLISHED_MULTIPLIER = 128, 100
#: The published length scale, which sets the decay of the weights.
_LENGTH_SCALE = 1e-2


@dataclass(frozen=True)
class Effort:
    """How much is spent; the tests spend less.

    Args:
        steps: of the heteroscedastic networks.
        published_steps: of the homoscedastic ones at most; the published epochs are fewer on sets
            of up to 8,000 rows.
        samples: of the predictions on test rows.
    """

    steps: int = 20_000
    published_steps: int = 250_000
    samples: int = 2_000
    published_samples: int = 10_000

    def course(self, problem: Problem, candidate: Candidate) -> Course:
        """Of a heteroscedastic stack: the setting's share of the steps, of more rows on large sets.

        Where several masks are fitted together, half the steps of half the rows: each row stands
        for several.
        """
        rows = len(problem.splits[0].train)
        batch = 2 ** round(math.log2(rows * _BATCH_SHARE))
        batch = min(max(batch, _BATCHES[0]), _BATCHES[1])
        steps = candidate.length * self.steps
        if candidate.together > 1:
            steps, batch = max(1, steps // 2), batch // 2
        rate = _LEARNING_RATES[candidate.activation]
        return Course(steps, batch=batch, rate=rate, warm=_WARM, fall=True)

    def for_any(self, problem: Problem) -> Callable[[Candidate, int], Course]:
        """:meth:`course`, which asks for no number of rows."""
        return lambda candidate, _rows: self.course(problem, candidate)

    def published(self, problem: Problem) -> Callable[[int], Course]:
        """Of a homoscedastic stack: the published epochs over its rows."""

        def course(rows: int) -> Course:
            steps = problem.epochs * _PUBLISHED_MULTIPLIER * math.ceil(rows / _PUBLISHED_BATCH)
            return Course(min(steps, self.published_steps), batch=_PUBLISHED_BATCH)

        return course


@dataclass(frozen=True)
class Column:
    """Numbers of one way to predict, one per split, and what it chose for them."""

    rmse: list[float]
    log_likelihood: list[float]
    seconds: float
    choices: list[Choice]


def heteroscedastic_mc(problem: Problem, effort: Effort, runner: Runner) -> Column:
    """A head for the variance, and dropout that goes on at prediction."""
    return _tuned(problem, _WITH_DROPOUT, effort, runner)


def heteroscedastic(problem: Problem, effort: Effort, runner: Runner) -> Column:
    """A head for the variance, no dropout."""
    return _tuned(problem, _WITHOUT_DROPOUT, effort, runner)


def _tuned(
    problem: Problem, candidates: Sequence[Candidate], effort: Effort, runner: Runner
) -> Column:
    began = time.perf_counter()
    tracks = tuning.held_out_tracks(problem)
    jobs = [Job(problem, tracks, c, effort.course(problem, c), tuning.SAMPLES) for c in candidates]
    choices = tuning.chosen(jobs, runner)
    final = tuning.final_tracks(problem, choices)
    jobs = tuning.grouped(problem, final, effort.for_any(problem), effort.samples)
    return _column(jobs, runner(jobs), choices=choices, began=began)


def mc_ensemble(problem: Problem, effort: Effort, runner: Runner, *, headline: Column) -> Column:
    """Five of the headline's networks from other starts: the mixture of all their samples.

    Only the factor on the variance is chosen anew: a mixture is wider than its parts.
    """
    began = time.perf_counter()
    settings = [choice.candidate for choice in headline.choices]
    tracks = [
        (settings[track.split], replace(track, seed=track.seed + tuning.FOLDS * member))
        for track in tuning.held_out_tracks(problem)
        for member in range(_MEMBERS)
    ]
    jobs = tuning.grouped(problem, tracks, effort.for_any(problem), tuning.SAMPLES)
    choices = tuning.rescaled(jobs, runner, settings)
    final = tuning.final_tracks(problem, choices, members=_MEMBERS)
    jobs = tuning.grouped(problem, final, effort.for_any(problem), effort.samples)
    return _column(jobs, runner(jobs), choices=choices, began=began)


def homoscedastic_mc(problem: Problem, effort: Effort, runner: Runner) -> Column:
    """The published experiment: one variance for all rows, its inverse and the rate chosen.

    Networks of one rate differ by the precision in the decay of their weights only, and that is
    too weak to matter (1e-6): each rate is trained once, with the middle precision's.
    """
    began = time.perf_counter()
    tracks = []
    for number, split in enumerate(problem.splits):
        fit, held = tuning.folds(split.train)[0]
        scales = tuple(1 / precision for precision in precisions_of(problem, split.train))
        tracks.append(Track(number, 0, fit, held, scales, tuning.seed_of(number, 0)))
    course = effort.published(problem)
    rows = len(tracks[0].fit)
    jobs = [
        Job(problem, tuple(tracks), c, course(rows), effort.samples)
        for c in _published_candidates(problem)
    ]
    choices = tuning.chosen(jobs, runner)
    final = tuning.final_tracks(problem, choices)
    jobs = tuning.grouped(problem, final, lambda _c, n: course(n), effort.published_samples)
    return _column(jobs, runner(jobs), choices=choices, began=began)


def _published_candidates(problem: Problem) -> list[Candidate]:
    rows = problem.splits[0].train
    precisions = precisions_of(problem, rows)
    precision = precisions[len(precisions) // 2]
    return [
        Candidate(
            rate=rate,
            input_rate=rate,
            penalty=_LENGTH_SCALE**2 * (1 - rate) / (2 * len(rows) * precision),
            heteroscedastic=False,
        )
        for rate in problem.rates
    ]


def _column(
    jobs: Sequence[Job],
    scores: Sequence[Sequence[Score]],
    *,
    choices: Sequence[Choice],
    began: float,
) -> Column:
    """Pool the scores of each split's networks: the mixture of all their samples."""
    rmse, log_likelihood = [], []
    problem = jobs[0].problem
    for number, mixed in tuning.mixtures(jobs, scores).items():
        error = mixed.mean - problem.target[problem.splits[number].test]
        rmse.append(float(np.sqrt(np.mean(error**2))))
        log_likelihood.append(float(mixed.log_density[0].mean()))
    return Column(rmse, log_likelihood, time.perf_counter() - began, list(choices))
