"""Which dropout rate makes the sampled predictions of a trained model most likely."""

import math
from collections.abc import Callable, Iterable
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from stablelightning.errors import DataError
from stablelightning.functional.scores import (
    binary_negative_log_likelihood,
    gaussian_negative_log_likelihood,
    negative_log_likelihood,
)
from stablelightning.model.prediction import Prediction
from stablelightning.model.sample import mc_dropout

#: The rates that are tried. Below the first, sampling says next to nothing; above the last, a
#: network that was trained without dropout loses too much of its input.
RATES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5)

#: Samples per rate: enough to rank the rates, since all of them see the same seed.
SAMPLES = 20

#: Share of the targets' variance that the noise of a regression is never taken to be below.
_SMALLEST_NOISE = 1e-6


def score_rates(
    model: nn.Module,
    batches: Iterable[Any],
    set_rate: Callable[[float], None],
    *,
    task: str = "auto",
    rates: tuple[float, ...] = RATES,
) -> dict[float, float]:
    """Score dropout rates by the negative log-likelihood of MC dropout, in one pass over the data.

    A regression without a variance head says nothing about the noise of its targets. It is then
    given, for each rate, the constant noise that explains the squared errors beyond the epistemic
    variance, so that all rates are compared at their best.

    Args:
        model: has dropout whose rate ``set_rate`` sets.
        batches: ``(inputs, target)`` each; moved to the model's device.
        set_rate: called with each rate in turn; the last one called stays set.
        task: as in :func:`mc_dropout`.
        rates: the rates to try, in (0, 1).

    Returns:
        Mean negative log-likelihood per target value, in nats, by rate.

    Raises:
        DataError: the targets do not fit the predictions, or a likelihood is not finite.

    Source:
        Gal, Ghahramani 2016, arXiv:1506.02142, appendix (a grid over rates, scored by validation
        likelihood).

    Example:
        >>> dropout = nn.Dropout(0.1)
        >>> net = nn.Sequential(dropout, nn.Linear(4, 3))
        >>> batch = (torch.randn(8, 4), torch.randint(3, (8,)))
        >>> list(score_rates(net, [batch], lambda p: setattr(dropout, "p", p), rates=(0.1, 0.5)))
        [0.1, 0.5]
    """
    scored: dict[float, list[Tensor]] = {rate: [] for rate in rates}
    moments: dict[float, list[Tensor]] = {rate: [] for rate in rates}
    for number, batch in enumerate(batches):
        inputs, target = on_device_of(model, _pair(batch))
        for rate in rates:
            set_rate(rate)
            predicted = mc_dropout(model, inputs, samples=SAMPLES, seed=number, task=task)
            if predicted.task == "regression" and not predicted.aleatoric.any():
                moments[rate].append(_errors_and_variances(predicted, target))
            else:
                scored[rate].append(_likelihood(predicted, target).flatten().cpu())
    table = {}
    for rate in rates:
        rows = scored[rate] or [_with_constant_noise(torch.cat(moments[rate], dim=1))]
        table[rate] = torch.cat(rows).double().mean().item()
    if not all(math.isfinite(value) for value in table.values()):
        raise DataError(
            f"the likelihood of the data must be finite to choose a rate by it, got {table}; "
            "look for NaN or infinity in the targets and in the model's output."
        )
    return table


def checked_batches(data: Iterable[Any]) -> tuple[Any, Iterable[Any]]:
    """The inputs of the first batch, and all batches; a generator loses none.

    Raises:
        DataError: no batch, or one that is not ``(inputs, target)``.
    """
    batches = iter(data)
    for first in batches:
        return _pair(first)[0], chain([first], batches)
    raise DataError("data must hold at least one batch (inputs, target), and it is empty.")


def on_device_of(model: nn.Module, tree: Any) -> Any:
    """The same tree with its tensors on the device of the model's first parameter."""
    device = next((p.device for p in model.parameters()), None)
    return tree_map(lambda x: x.to(device) if isinstance(x, Tensor) else x, tree)


def _pair(batch: Any) -> tuple[Any, Tensor]:
    if isinstance(batch, tuple | list) and len(batch) == 2 and isinstance(batch[1], Tensor):
        return batch[0], batch[1]
    got = f"{type(batch).__name__} of {len(batch)}" if hasattr(batch, "__len__") else type(batch)
    raise DataError(
        f"each batch of data must be (inputs, target) with a tensor as target, got {got}; "
        "map your loader to pairs."
    )


def _likelihood(predicted: Prediction, target: Tensor) -> Tensor:
    if predicted.task == "classification":
        return negative_log_likelihood(predicted.mean, target)
    target = _like(predicted.mean, target)
    if predicted.task == "multilabel":
        return binary_negative_log_likelihood(predicted.mean, target)
    return gaussian_negative_log_likelihood(predicted.mean, predicted.total, target)


def _errors_and_variances(predicted: Prediction, target: Tensor) -> Tensor:
    """Error, epistemic variance and target of every value, ``(3, M)``."""
    target = _like(predicted.mean, target)
    rows = (target - predicted.mean, predicted.epistemic, target)
    return torch.stack([row.flatten().double().cpu() for row in rows])


def _with_constant_noise(moments: Tensor) -> Tensor:
    error, epistemic, target = moments
    smallest = _SMALLEST_NOISE * target.var(correction=0).clamp(min=_SMALLEST_NOISE)
    noise = torch.maximum((error.square() - epistemic).mean(), smallest)
    return gaussian_negative_log_likelihood(target - error, epistemic + noise, target)


def _like(mean: Tensor, target: Tensor) -> Tensor:
    """``(N,)`` targets for ``(N, 1)`` predictions; any other misfit is the score's to refuse."""
    return target.reshape(mean.shape) if target.numel() == mean.numel() else target
