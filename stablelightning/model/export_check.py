"""Whether an exported model gives what the model gives: its outputs, or their distribution."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from stablelightning.errors import ModelError, NothingRandomError
from stablelightning.functional.fold import relative_difference
from stablelightning.model.generators import preserved_generators
from stablelightning.words import reason_of

#: Seeds of the two sides: equal ones would hide that they draw in another order.
_SEEDS = 0, 1
#: So many standard errors off, one right number in a million lies by chance.
_APART = 5.0

Run = Callable[[Any], list[Tensor]]


def check_outputs(model: Run, exported: Run, inputs: list[Any], *, tolerance: float) -> float:
    """Compare outputs on several inputs, such as batches of other sizes.

    Args:
        model: gives the tensors of the model's output, in eval.
        exported: gives those of the exported one.
        inputs: what both are given.
        tolerance: largest relative difference, > 0.

    Returns:
        The largest relative difference.

    Raises:
        ModelError: it is above the tolerance, or the exported one does not run.

    Example:
        >>> double = lambda x: [2 * x]
        >>> check_outputs(double, double, [torch.ones(2)], tolerance=1e-5)
        0.0
    """
    worst = 0.0
    for given in inputs:
        expected = model(given)
        found = _run(exported, given)
        if len(found) != len(expected):
            raise ModelError(
                f"an export must give what the model gives, {len(expected)} tensors, got "
                f"{len(found)}; export the network inside."
            )
        pairs = zip(found, expected, strict=True)
        worst = max([worst, *(relative_difference(a, b) for a, b in pairs)])
    if worst > tolerance:
        raise ModelError(
            f"an export must give what the model gives, to {tolerance:g} of the largest output, "
            f"got a difference of {worst:.3g}; the forward does something that the export takes "
            "for constant (a branch on values, a list that grows), so rewrite that part."
        )
    return worst


def check_distribution(
    model: Run, exported: Run, inputs: Any, *, samples: int
) -> tuple[float, float]:
    """Compare mean and spread of many calls with dropout live.

    Args:
        model: gives the tensors of one sample.
        exported: likewise.
        inputs: what both are given.
        samples: calls of each, >= 2.

    Returns:
        How far the means are apart (root mean square over all outputs, in standard errors), and
        the ratio of the spreads (of root mean square standard deviations).

    Raises:
        NothingRandomError: the exported one gives the same numbers on every call.
        ModelError: the distributions differ.

    Example:
        >>> noise = lambda x: [x + torch.randn(3)]
        >>> apart, ratio = check_distribution(noise, noise, torch.ones(3), samples=64)
        >>> 0.5 < ratio < 2
        True
    """
    drawn = []
    for run, seed in zip((model, exported), _SEEDS, strict=True):
        with preserved_generators(seed):
            calls = [_flat(_run(run, inputs)) for _ in range(samples)]
        drawn.append(torch.stack(calls))
    (mean, variance, spread), (other_mean, other_variance, other_spread) = map(_moments, drawn)
    if not bool(other_variance.any()):
        raise NothingRandomError(
            f"an export with dropout live must draw on every call, and all {samples} calls gave "
            "the same numbers; export it without, or keep dropout in nn.Dropout modules."
        )
    error = ((variance + other_variance) / samples).sqrt()
    moved = error > 0
    apart = float(((mean - other_mean)[moved] / error[moved]).square().mean().sqrt())
    # The variance over all outputs is known as well as single samples agree on it.
    spreads = torch.stack([spread, other_spread])
    known_to = (spreads.var(1).sum() / samples).sqrt()
    off = float((spread.mean() - other_spread.mean()).abs() / known_to.clamp(min=1e-300))
    ratio = float((other_spread.mean() / spread.mean().clamp(min=1e-300)).sqrt())
    if max(apart, off) > _APART:
        raise ModelError(
            f"an export with dropout live must give the model's distribution, and over {samples} "
            f"samples its means are {apart:.3g} standard errors apart and its spread is "
            f"{ratio:.3g} times the model's; export it without, or keep dropout in modules."
        )
    return apart, ratio


def _moments(drawn: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and variance of every output, and of every sample its mean squared deviation."""
    mean, variance = drawn.mean(0), drawn.var(0)
    return mean, variance, (drawn - mean).square().mean(1)


def _flat(outputs: list[Tensor]) -> Tensor:
    numbers = [t.detach().cpu().double().flatten() for t in outputs if t.is_floating_point()]
    return torch.cat(numbers)


def _run(run: Run, inputs: Any) -> list[Tensor]:
    try:
        return run(inputs)
    except Exception as error:
        reason = reason_of(error)
        raise ModelError(
            f"an export must run as the model does, and it raised {type(error).__name__}: {reason}."
        ) from error
