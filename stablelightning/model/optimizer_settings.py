"""Settings of optimizers that are known to hurt, whatever is trained with them."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import nn
from torch.optim import Adagrad, Optimizer

from stablelightning.model.structure import weight_layers

#: Momentum m remembers 1 / (1 - m) steps. Beyond a few hundred the direction of a step is older
#: than what it should correct; at 10 000 it overshoots for longer than most trainings last.
LONG_MOMENTUM = 0.995
ENDLESS_MOMENTUM = 0.9999
#: Layers with weights from which AdaGrad, whose rates only ever fall, is told not to be the choice.
#: Measured on digits with the best of seven rates, 12 epochs: up to ten layers it is as good as
#: Adam; at twenty and thirty it lost 3 points and more.
DEEP_FOR_ADAGRAD = 10
#: Gradients of a network that trains are smaller: an epsilon beyond it decides the steps alone.
LARGE_EPSILON = 1e-2
#: Optimizers whose ``eps`` is added to the root of a mean square that can be exactly zero.
_DIVIDES_BY_A_MEAN_SQUARE = ("Adam", "AdamW", "NAdam", "RAdam", "RMSprop", "Adagrad", "MuonAdamW")
#: Whose decay is ``weight *= 1 - lr * weight_decay``, apart from the gradient.
_DECOUPLED = ("AdamW", "Muon", "MuonAdamW")


@dataclass(frozen=True)
class HarmfulSetting:
    """One setting that hurts.

    Args:
        code: as in the doctor's findings.
        severity: ``"error"``: nothing good can come of it; ``"warning"``: it is seldom meant.
        message: what was set and what follows from it.
        remedy: what to set instead.
        evidence: the numbers.
    """

    code: str
    severity: Literal["warning", "error"]
    message: str
    remedy: str
    evidence: dict[str, float] = field(default_factory=dict)


def harmful_settings(optimizer: Optimizer, model: nn.Module) -> list[HarmfulSetting]:
    """Look for settings of an optimizer that are known to hurt the training of a model.

    Momentum that remembers longer than most trainings last; Adam's betas and epsilon where its
    steps are not bounded or divide by zero; a decay that turns weights around; AdaGrad on deep
    networks.

    Args:
        optimizer: only its settings are read.
        model: what it trains.

    Returns:
        Each kind once, for the worst of the groups; empty if all is well.

    Source:
        Reddi, Kale, Kumar 2018, arXiv:1904.09237, and Zhang et al. 2022, arXiv:2208.09632 (the
        first beta below the root of the second); Zeiler 2012, arXiv:1212.5701, and Goodfellow,
        Bengio, Courville 2016, Deep Learning, section 8.5.1 (AdaGrad's rates fall too far).

    Example:
        >>> net = nn.Linear(2, 1)
        >>> sgd = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.99999)
        >>> [(found.code, found.severity) for found in harmful_settings(sgd, net)]
        [('extreme-momentum', 'error')]
    """
    rules = (_momentum, _betas, _epsilon, _decay)
    found = [setting for rule in rules for setting in rule(optimizer)]
    return [*found, *_adagrad(optimizer, model)]


def _momentum(optimizer: Optimizer) -> Iterator[HarmfulSetting]:
    momenta = []
    for group in optimizer.param_groups:
        betas = group.get("betas")
        momentum = betas[0] if isinstance(betas, tuple | list) else group.get("momentum")
        momenta.append(float(momentum or 0.0))
    largest = max(momenta, default=0.0)
    if largest <= LONG_MOMENTUM:
        return
    steps = math.inf if largest >= 1 else 1 / (1 - largest)
    yield HarmfulSetting(
        "extreme-momentum",
        "error" if largest >= ENDLESS_MOMENTUM else "warning",
        f"momentum {largest:g} averages over the last {steps:,.0f} steps: it overshoots, and "
        "swings for as long.",
        "take 0.9, or 0.99 for very noisy gradients.",
        {"momentum": largest, "steps": steps},
    )


def _betas(optimizer: Optimizer) -> Iterator[HarmfulSetting]:
    for group in optimizer.param_groups:
        betas = group.get("betas")
        if not isinstance(betas, tuple | list) or len(betas) < 2:
            continue
        first, second = float(betas[0]), float(betas[1])
        if first <= 0.0 or first < math.sqrt(second):
            continue
        yield HarmfulSetting(
            "adam-betas",
            "warning",
            f"betas ({first:g}, {second:g}) remember the gradient for longer than its square: "
            "steps are no longer bounded by the rate, and the loss can blow up.",
            "take (0.9, 0.999); the first must be below the root of the second.",
            {"beta1": first, "beta2": second},
        )
        return


def _epsilon(optimizer: Optimizer) -> Iterator[HarmfulSetting]:
    if type(optimizer).__name__ not in _DIVIDES_BY_A_MEAN_SQUARE:
        return
    for group in optimizer.param_groups:
        if group.get("muon", False) or not isinstance(group.get("eps"), int | float):
            continue
        epsilon = float(group["eps"])
        # In half precision the default of 1e-8 is zero.
        dtypes = {p.dtype for p in group["params"]}
        vanishes = [d for d in dtypes if float(torch.tensor(epsilon, dtype=d)) == 0.0]
        if vanishes:
            what = "" if epsilon == 0 else f" in {str(vanishes[0]).removeprefix('torch.')}"
            yield HarmfulSetting(
                "adam-epsilon",
                "error" if epsilon == 0 else "warning",
                f"eps {epsilon:g} is zero{what}: a parameter whose gradient has been zero so far "
                "gets 0 / 0, which is NaN.",
                "take 1e-8, or 1e-4 for parameters in float16.",
                {"eps": epsilon},
            )
            return
        if epsilon > LARGE_EPSILON:
            yield HarmfulSetting(
                "adam-epsilon",
                "warning",
                f"eps {epsilon:g} is larger than the gradients of most networks: steps are then "
                f"those of momentum at a rate of lr / eps = {float(group['lr']) / epsilon:.2g}.",
                "take 1e-8.",
                {"eps": epsilon},
            )
            return


def _decay(optimizer: Optimizer) -> Iterator[HarmfulSetting]:
    decoupled = type(optimizer).__name__ in _DECOUPLED
    shares = [
        float(group["lr"]) * float(group.get("weight_decay") or 0.0)
        for group in optimizer.param_groups
        if decoupled or group.get("decoupled_weight_decay")
    ]
    largest = max(shares, default=0.0)
    if largest < 1.0:
        return
    yield HarmfulSetting(
        "decay-beyond-zero",
        "error",
        f"lr * weight_decay is {largest:.3g}: each step takes more than all of every weight, and "
        "turns its sign.",
        "take a weight_decay of 0.01 to 0.1.",
        {"decayed": largest},
    )


def _adagrad(optimizer: Optimizer, model: nn.Module) -> Iterator[HarmfulSetting]:
    if not isinstance(optimizer, Adagrad):
        return
    layers = len(weight_layers(model))
    if layers <= DEEP_FOR_ADAGRAD:
        return
    yield HarmfulSetting(
        "adagrad-on-deep-net",
        "warning",
        f"AdaGrad's rates only ever fall, since it divides by the sum of all squared gradients: "
        f"a network of {layers} layers has its largest at the beginning, and stops early.",
        "take AdamW, or RMSprop, which forget old gradients.",
        {"layers": float(layers)},
    )
