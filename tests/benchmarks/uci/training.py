"""Train a stack of networks, each on rows of its own."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tests.benchmarks.uci.data import Floats, Problem, Rows, Scaling
from tests.benchmarks.uci.network import Candidate, Masks, Stack

_BETAS, _EPSILON = (0.9, 0.999), 1e-8  # Adam's own
#: Orders are drawn for so many steps at once: few small tensors, and little memory.
_STEPS_AT_ONCE = 256


@dataclass(frozen=True)
class Course:
    """How a stack is trained.

    Args:
        steps: of Adam.
        batch: rows of a step, from each network's own rows.
        rate: the learning rate's height.
        warm: steps of the linear rise to it.
        fall: whether it falls to 0, by half a cosine.
    """

    steps: int
    batch: int
    rate: float = 1e-3
    warm: int = 0
    fall: bool = False

    def factor(self, step: int) -> float:
        """Of the learning rate at a step, counted from 1."""
        rise = min(1.0, step / self.warm) if self.warm else 1.0
        return rise * (0.5 + 0.5 * math.cos(math.pi * step / self.steps) if self.fall else 1.0)


@dataclass(frozen=True)
class Track:
    """One network's part: the split it belongs to, its rows, and those it is scored on.

    Tracks of one split and one ``fold`` are scored on the same rows. ``scales`` are factors on the
    predicted variance, each of which is scored; of a homoscedastic network, they are the variances
    themselves, in the target's units.
    """

    split: int
    fold: int
    fit: Rows
    asked: Rows
    scales: tuple[float, ...]
    seed: int


@dataclass(frozen=True)
class Job:
    """A stack to train and to score: what a process is handed."""

    problem: Problem
    tracks: tuple[Track, ...]
    candidate: Candidate
    course: Course
    samples: int


def trained(job: Job, scalings: list[Scaling]) -> Stack:
    """A stack after its course; the same whatever runs beside it."""
    parts = [s.scaled(job.problem, t.fit) for s, t in zip(scalings, job.tracks, strict=True)]
    inputs = with_ones(np.concatenate([part[0] for part in parts]))
    target = torch.tensor(np.concatenate([part[1] for part in parts]), dtype=torch.float32)
    stack = Stack(len(parts), inputs.shape[1], job.candidate)
    for number, track in enumerate(job.tracks):
        stack.draw_(number, track.seed)
    adam = _Adam(stack, job.course)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(job.tracks[0].seed)
        for rows in _batches([len(part[1]) for part in parts], job.course):
            rows = rows.repeat(1, job.candidate.together)
            masks = Masks.drawn((rows.shape[1],), stack.features, job.candidate)
            # Whole rows are copied, which is many times as fast as indexing by a matrix.
            batch = inputs.index_select(0, rows.flatten()).view(*rows.shape, -1)
            stack.backward_(batch, target.index_select(0, rows.flatten()).view_as(rows), masks)
            adam.step_()
    return stack


def with_ones(inputs: Floats) -> Tensor:
    """As a stack takes them: single precision, and a last column of ones."""
    ones = np.ones((len(inputs), 1))
    return torch.tensor(np.concatenate([inputs, ones], 1), dtype=torch.float32)


def _batches(lengths: list[int], course: Course) -> Iterator[Tensor]:
    """Rows of each step, ``(networks, batch)``: each network goes through its own in turn."""
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    left = course.steps
    pieces = [torch.empty(0, dtype=torch.long) for _ in lengths]
    while left:
        steps = min(left, _STEPS_AT_ONCE)
        for number, (start, length) in enumerate(zip(starts, lengths, strict=True)):
            short = steps * course.batch - len(pieces[number])
            orders = [torch.randperm(length) + int(start) for _ in range(-(-short // length))]
            pieces[number] = torch.cat((pieces[number], *orders))
        rows = torch.stack([piece[: steps * course.batch] for piece in pieces])
        pieces = [piece[steps * course.batch :] for piece in pieces]
        yield from rows.view(len(lengths), steps, course.batch).unbind(1)
        left -= steps


class _Adam:
    """Adam on the one flat tensor of a stack; decay is of the weights and not of the gradient."""

    def __init__(self, stack: Stack, course: Course) -> None:
        self.stack, self.course, self.taken = stack, course, 0
        self.mean, self.square = torch.zeros_like(stack.flat), torch.zeros_like(stack.flat)

    def step_(self) -> None:
        self.taken += 1
        gradient, (first, second) = self.stack.gradient, _BETAS
        rate = self.course.rate * self.course.factor(self.taken)
        if self.stack.candidate.decay:
            for weights in self.stack.weights():
                weights.mul_(1 - rate * self.stack.candidate.decay)
        self.mean.lerp_(gradient, 1 - first)
        self.square.mul_(second).addcmul_(gradient, gradient, value=1 - second)
        unbiased = math.sqrt(1 - second**self.taken)
        torch.sqrt(self.square, out=gradient).add_(_EPSILON * unbiased)
        step = rate * unbiased / (1 - first**self.taken)
        self.stack.flat.addcdiv_(self.mean, gradient, value=-step)
