"""Choose a setting for every split, on its training rows alone; the same way for every set."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from tests.benchmarks.uci.data import Floats, Problem, Rows
from tests.benchmarks.uci.network import Candidate
from tests.benchmarks.uci.scoring import Score
from tests.benchmarks.uci.training import Course, Job, Track

#: Runs jobs, beside each other or in turn, and gives their scores in the order of the jobs.
Runner = Callable[[Sequence[Job]], list[list[Score]]]

#: A fold is a fifth of the training rows, the share that the published experiment holds out.
FOLDS = 5
#: Folds are held out in turn until so many rows have been: few rows cannot tell settings apart.
_ROWS_HELD_OUT = 700
#: A setting may be chosen if its held-out root mean square error is at most so many times the
#: least of all.
_WORST_MEAN = 1.03
#: Factors on the predicted variance that are tried, evenly spaced in their logarithm.
SCALES = tuple(np.exp(np.linspace(-1.25, 1.75, 25)).tolist())
#: Samples of a held-out prediction; choosing needs fewer than the final number does.
SAMPLES = 100


@dataclass(frozen=True)
class Choice:
    """What a split's training rows chose: a setting, and the factor on its variance."""

    candidate: Candidate
    scale: float
    held_out: float
    """Mean log-density of the held-out rows, in the target's units."""


def folds(rows: Rows) -> list[tuple[Rows, Rows]]:
    """Training and held-out rows; the last fifth first, as the published experiment has it.

    Rows of a split come in random order.
    """
    parts = np.array_split(rows, min(FOLDS, len(rows)))[::-1]
    wanted = max(1, math.ceil(_ROWS_HELD_OUT / max(1, len(parts[0]))))
    return [(np.concatenate([p for p in parts if p is not held]), held) for held in parts[:wanted]]


def held_out_tracks(problem: Problem) -> tuple[Track, ...]:
    """A track for every fold of every split, scored at every scale."""
    return tuple(
        Track(number, fold, fit, held, scales=SCALES, seed=seed_of(number, fold))
        for number, split in enumerate(problem.splits)
        for fold, (fit, held) in enumerate(folds(split.train))
    )


def chosen(jobs: Sequence[Job], runner: Runner) -> list[Choice]:
    """The best job's setting and scale for each split, by the log-density of held-out rows.

    Of the settings whose mean is about as good as the best one's: densities can be sharpened at
    its expense. The jobs differ in their setting only: all folds of all splits are one stack.
    """
    mixed = [mixtures([job], [scores]) for job, scores in zip(jobs, runner(jobs), strict=True)]
    settings = [job.candidate for job in jobs]
    problem, tracks = jobs[0].problem, jobs[0].tracks
    choices = []
    for number in sorted({track.split for track in tracks}):
        own = [track for track in tracks if track.split == number]
        target = problem.target[np.concatenate([track.asked for track in own])]
        scores = [of_job[number] for of_job in mixed]
        errors = np.array([np.sqrt(np.mean((score.mean - target) ** 2)) for score in scores])
        curves = np.stack([score.log_density.mean(1) for score in scores])
        curves[~(errors <= _WORST_MEAN * np.nanmin(errors))] = -np.inf
        choices.append(_best(settings, own[0].scales, curves))
    return choices


def rescaled(jobs: Sequence[Job], runner: Runner, settings: Sequence[Candidate]) -> list[Choice]:
    """The best scale for the mixture of each split's networks, its setting being given."""
    mixed = mixtures(jobs, runner(jobs))
    return [
        _best([setting], SCALES, [mixed[number].log_density.mean(1)])
        for number, setting in enumerate(settings)
    ]


def mixtures(jobs: Sequence[Job], scores: Sequence[Sequence[Score]]) -> dict[int, Score]:
    """Of each split: its networks of one fold mixed row by row, and the folds joined."""
    lots: dict[int, dict[int, list[Score]]] = {}
    for job, of_job in zip(jobs, scores, strict=True):
        for track, score in zip(job.tracks, of_job, strict=True):
            lots.setdefault(track.split, {}).setdefault(track.fold, []).append(score)
    return {
        number: Score.joined([mixture(members) for members in folds.values()])
        for number, folds in sorted(lots.items())
    }


def mixture(scores: Sequence[Score]) -> Score:
    """Several networks of equally many samples as one, row by row."""
    mean = np.mean([score.mean for score in scores], axis=0)
    each = np.stack([score.log_density for score in scores])
    return Score(mean, np.logaddexp.reduce(each, axis=0) - math.log(len(each)))


def _best(
    candidates: Sequence[Candidate], scales: Sequence[float], curves: Sequence[Floats]
) -> Choice:
    table = np.nan_to_num(np.stack(curves), nan=-np.inf)  # a network that diverged is not chosen
    which, scale = np.unravel_index(int(table.argmax()), table.shape)
    return Choice(candidates[which], scales[scale], float(table[which, scale]))


def seed_of(split: int, member: int) -> int:
    """A seed of its own for each network of a split; the same for every setting."""
    return 10_000 * split + member


def grouped(
    problem: Problem,
    tracks: Sequence[tuple[Candidate, Track]],
    course: Callable[[Candidate, int], Course],
    samples: int,
) -> list[Job]:
    """A job for each setting: tracks that share one are one stack.

    Args:
        problem: theirs.
        tracks: with their settings.
        course: for a setting and a number of training rows.
        samples: of each prediction.
    """
    by_setting: dict[Candidate, list[Track]] = {}
    for candidate, track in tracks:
        by_setting.setdefault(candidate, []).append(track)
    return [
        Job(problem, tuple(same), candidate, course(candidate, len(same[0].fit)), samples)
        for candidate, same in by_setting.items()
    ]


def final_tracks(
    problem: Problem, choices: Sequence[Choice], members: int = 1
) -> list[tuple[Candidate, Track]]:
    """Tracks over all training rows of each split, scored on its test rows."""
    return [
        (
            choice.candidate,
            Track(
                number, 0, split.train, split.test, (choice.scale,), seed_of(number, FOLDS + member)
            ),
        )
        for number, (split, choice) in enumerate(zip(problem.splits, choices, strict=True))
        for member in range(members)
    ]
