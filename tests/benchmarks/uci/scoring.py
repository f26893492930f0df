"""Score every network of a stack on rows it has not seen, as the mixture of its samples."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from stablelightning.functional.uncertainty import gaussian_mixture_log_likelihood
from stablelightning.nn.heads import VARIANCE_FLOOR
from tests.benchmarks.uci.data import Floats, Scaling
from tests.benchmarks.uci.network import ACTIVATIONS, Masks, Stack
from tests.benchmarks.uci.training import Job, Track, trained, with_ones

#: Hidden activations of one piece of a prediction: 8 MB, however many rows and samples there are.
_ACTIVATIONS_AT_ONCE = 2**21


@dataclass(frozen=True)
class Score:
    """Of one track: ``(N,)`` means and ``(scales, N)`` log-densities, in the target's units."""

    mean: Floats
    log_density: Floats

    @classmethod
    def joined(cls, pieces: list["Score"]) -> "Score":
        """Of several lots of rows."""
        return cls(
            np.concatenate([piece.mean for piece in pieces]),
            np.concatenate([piece.log_density for piece in pieces], axis=1),
        )


@torch.no_grad()
def run(job: Job) -> list[Score]:
    """Train a stack, and score each of its networks on the rows that its track asks for."""
    scalings = [Scaling.of(job.problem, job.problem.splits[t.split].train) for t in job.tracks]
    stack = trained(job, scalings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(job.tracks[0].seed)
        return [_score(job, stack, number, scaling) for number, scaling in enumerate(scalings)]


def _score(job: Job, stack: Stack, number: int, scaling: Scaling) -> Score:
    track = job.tracks[number]
    inputs, target = scaling.scaled(job.problem, track.asked)
    middle, width = scaling.target
    dropout = stack.candidate.rate or stack.candidate.input_rate
    samples = job.samples if dropout else 1
    rows = max(1, _ACTIVATIONS_AT_ONCE // (samples * stack.first.shape[2]))
    pieces = []
    for at in range(0, len(target), rows):
        part = slice(at, at + rows)
        means, variances = _sampled(stack, number, inputs=inputs[part], samples=samples)
        if variances is None:
            variances = torch.full_like(means, width**-2)
        pieces.append(_scored(means, variances, target[part], track))
    # Scored in parts of the spread and moved to the target's units afterwards: there, the floor
    # that the package puts under a variance may be larger than any.
    whole = Score.joined(pieces)
    return Score(whole.mean * width + middle, whole.log_density - math.log(width))


def _sampled(
    stack: Stack, number: int, *, inputs: Floats, samples: int
) -> tuple[Tensor, Tensor | None]:
    """Means and variances ``(samples, N)`` of one network; none where it predicts none."""
    candidate, rows = stack.candidate, len(inputs)
    given = with_ones(inputs)
    masks = Masks.drawn((samples, rows), stack.features, candidate)
    if masks.inputs is not None:
        given = given * masks.inputs
    hidden = ACTIVATIONS[candidate.activation](given @ stack.first[number])
    if masks.hidden is not None:
        hidden = hidden * masks.hidden
    outputs = hidden @ stack.last[number].T + stack.last_bias[number].T
    outputs = outputs.view(samples, rows, -1)
    if not candidate.heteroscedastic:
        return outputs[..., 0], None
    return outputs[..., 0], F.softplus(outputs[..., 1]) + VARIANCE_FLOOR


def _scored(means: Tensor, variances: Tensor, target: Floats, track: Track) -> Score:
    wanted = torch.tensor(target, dtype=torch.float32)
    each = [
        gaussian_mixture_log_likelihood(means, variances * scale, wanted) for scale in track.scales
    ]
    return Score(means.mean(0).double().numpy(), torch.stack(each).double().numpy())
