"""Ten optimizers under seven schedules on digits, every cell trained for real.

One procedure for the rate of each optimizer: of nine rates, half a power of ten apart, at a
constant rate, the one with the best mean validation accuracy over three seeds (where that is a tie,
the smaller validation loss). Those seeds are not used again, and neither is the rate changed: every
schedule starts from it, and 1cycle has it as its largest. All other settings are torch's defaults,
but for momentum 0.9. The test split is looked at once, after the last step; steps to 95% are
counted on the validation split, at every tenth step. Within a seed all cells begin from the same
weights and see the same batches.
"""

import math
import statistics
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stablelightning.data import DigitsData
from stablelightning.model.muon import MuonAdamW, muon_groups
from stablelightning.model.schedules import (
    ExponentialDecay,
    OneCycle,
    PiecewiseConstant,
    PowerDecay,
    ReduceOnPlateau,
    WarmupCosine,
    WarmupStableDecay,
)

TITLE = "Ten optimizers, seven schedules, digits"

EPOCHS = 15
BATCH = 64
RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)
#: Seeds that choose rates, far from those of the cells.
TUNING = (1000, 1001, 1002)
ENOUGH = 0.95
EVERY = 10  # steps between looks at the validation split

Make = Callable[[nn.Module, float], torch.optim.Optimizer]


def _of(kind: Any, **settings: Any) -> Make:
    return lambda net, lr: kind(net.parameters(), lr=lr, **settings)


OPTIMIZERS: dict[str, Make] = {
    "SGD": _of(torch.optim.SGD),
    "momentum": _of(torch.optim.SGD, momentum=0.9),
    "Nesterov": _of(torch.optim.SGD, momentum=0.9, nesterov=True),
    "AdaGrad": _of(torch.optim.Adagrad),
    "RMSprop": _of(torch.optim.RMSprop),
    "Adam": _of(torch.optim.Adam),
    "AdaMax": _of(torch.optim.Adamax),
    "NAdam": _of(torch.optim.NAdam),
    "AdamW": _of(torch.optim.AdamW),
    "Muon": lambda net, lr: MuonAdamW(muon_groups(net), lr=lr),
}

CONSTANT = "constant"
SCHEDULES: dict[str, Any] = {
    CONSTANT: None,
    "power": PowerDecay,
    "exponential": ExponentialDecay,
    "piecewise": PiecewiseConstant,
    "plateau": partial(ReduceOnPlateau, patience=2),
    "1cycle": OneCycle,
    "cosine": WarmupCosine,
    "WSD": WarmupStableDecay,
}


def measure(seeds: int) -> dict[str, Any]:
    parts = _digits()
    rates, tried = {}, {}
    for name, make in OPTIMIZERS.items():
        tried[name] = {rate: _tuned(make, rate, parts) for rate in RATES}
        rates[name] = min(RATES, key=lambda rate, name=name: tried[name][rate])
    cells = {
        name: {
            schedule: _cell([_train(make, rates[name], kind, parts, s) for s in range(seeds)])
            for schedule, kind in SCHEDULES.items()
        }
        for name, make in OPTIMIZERS.items()
    }
    return {"rates": rates, "cells": cells, "steps": _steps(parts), "tuning": _plain(tried)}


def table(result: dict[str, Any]) -> str:
    lines = [f"{'':10}{'rate':>7}  " + "".join(f"{name:>14}" for name in SCHEDULES)]
    for name, row in result["cells"].items():
        cells = "".join(f"{_shown(row[schedule]):>14}" for schedule in SCHEDULES)
        lines.append(f"{name:10}{result['rates'][name]:>7g}  {cells}")
    return "\n".join(
        [
            *lines,
            "",
            f"test accuracy in percent after {result['steps']} steps (mean of the seeds), and the "
            f"steps to {ENOUGH:.0%} of the validation split (median; - where half never got there)",
        ]
    )


def _shown(cell: dict[str, Any]) -> str:
    steps = cell["steps"]
    return f"{100 * cell['accuracy']:.1f} {'-' if steps is None else f'{steps:.0f}':>4}"


def _cell(runs: list[dict[str, float]]) -> dict[str, Any]:
    steps = statistics.median(run["steps"] for run in runs)
    return {
        "accuracy": statistics.mean(run["test"] for run in runs),
        "accuracies": [run["test"] for run in runs],
        "steps": steps if math.isfinite(steps) else None,
    }


def _plain(tried: dict[str, dict[float, tuple[float, float]]]) -> dict[str, Any]:
    return {
        name: {f"{rate:g}": [-worse, loss] for rate, (worse, loss) in of.items()}
        for name, of in tried.items()
    }


# ---- one training -------------------------------------------------------------------------------

Parts = dict[str, tuple[Tensor, Tensor]]


def _digits() -> Parts:
    data = DigitsData(held_out=(), batch_size=BATCH, seed=0)
    data.setup()
    return {name: _whole(data.part(name)) for name in ("train", "val", "test")}


def _whole(dataset: Any) -> tuple[Tensor, Tensor]:
    rows = [dataset[n] for n in range(len(dataset))]
    return torch.stack([x for x, _ in rows]), torch.tensor([int(y) for _, y in rows])


def _steps(parts: Parts) -> int:
    return EPOCHS * math.ceil(len(parts["train"][1]) / BATCH)


def _tuned(make: Make, rate: float, parts: Parts) -> tuple[float, float]:
    """Minus the mean validation accuracy, then the loss: the smallest is the best."""
    runs = [_train(make, rate, None, parts, seed) for seed in TUNING]
    loss = statistics.mean(run["loss"] for run in runs)
    return -statistics.mean(run["val"] for run in runs), loss if math.isfinite(loss) else math.inf


def _train(make: Make, rate: float, schedule: Any, parts: Parts, seed: int) -> dict[str, float]:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
    net.append(nn.Linear(64, 10))
    optimizer = make(net, rate)
    plateau = isinstance(schedule, partial)
    settings = {} if plateau else {"total_steps": _steps(parts)}
    scheduler = None if schedule is None else schedule(optimizer, **settings)
    done, reached = 0, math.inf
    for rows in _epochs(len(parts["train"][1]), seed):
        for batch in rows.split(BATCH):
            optimizer.zero_grad()
            x, y = parts["train"]
            F.cross_entropy(net(x[batch]), y[batch]).backward()
            optimizer.step()
            done += 1
            if scheduler is not None and not plateau:
                scheduler.step()
            if done % EVERY == 0 and reached == math.inf:
                reached = done if _look(net, parts["val"])[0] >= ENOUGH else math.inf
        if plateau:
            scheduler.step(_look(net, parts["val"])[1])
    accuracy, loss = _look(net, parts["val"])
    return {"val": accuracy, "loss": loss, "test": _look(net, parts["test"])[0], "steps": reached}


def _epochs(rows: int, seed: int) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(EPOCHS):
        yield torch.randperm(rows, generator=generator)


@torch.no_grad()
def _look(net: nn.Module, part: tuple[Tensor, Tensor]) -> tuple[float, float]:
    x, y = part
    output = net(x)
    right = (output.argmax(1) == y).float().mean().item()
    return right, F.cross_entropy(output, y).item()
