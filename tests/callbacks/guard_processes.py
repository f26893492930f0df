"""What two processes saw of guarded runs; started once for all tests."""

import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
from torch import Tensor

from stablelightning.callbacks.guard import GuardTraining
from stablelightning.errors import DivergedError
from tests.callbacks.guarded import Guarded, batches, fit, outcome
from tests.processes import WORLD, reports_of

NAN, INF = math.nan, math.inf

#: Row 0 of a batch that this process, or any, must leave out begins with this.
LEFT_OUT = 7.0

#: First and last of two accumulated batches; gradients meet in the last.
PLACES = (0, 3)


class OnRanks(Guarded):
    """Every process has batches of its own."""

    def __init__(self, data: list[list[Tensor]], optimizer: str = "adam") -> None:
        super().__init__([], optimizer)
        self.all_data = data

    def train_dataloader(self) -> Any:
        self.data = self.all_data[self.global_rank]
        return super().train_dataloader()


class LeavesOut(OnRanks):
    """What dropping a batch means, with the collectives of DDP."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if batch[0, 0] == LEFT_OUT:
            # Through DDP's own bookkeeping, but not through the forward.
            return sum(p.sum() for p in self.parameters()) * 0.0
        return super().training_step(batch, batch_idx)


class Manual(OnRanks):
    def __init__(self, data: list[list[Tensor]], optimizer: str = "adam") -> None:
        super().__init__(data, optimizer)
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(self.loss(batch))
        optimizer.step()


def own(number: int) -> list[list[Tensor]]:
    return [batches(number, seed=rank) for rank in range(WORLD)]


def with_bad(data: list[list[Tensor]], place: int, value: float, *, ranks: tuple[int, ...]) -> Any:
    """Put a batch in on every process, which is bad on some."""
    given = []
    for rank, good in enumerate(data):
        extra = good[0].clone()
        if rank in ranks:
            extra[0, 0] = value
        given.append([*good[:place], extra, *good[place:]])
    return given


def scenarios() -> dict[str, Callable[[], dict[str, Any]]]:
    good = own(6)
    one_bad = {place: with_bad(good, place, NAN, ranks=(1,)) for place in range(4)}
    left_out = {place: with_bad(good, place, LEFT_OUT, ranks=(0, 1)) for place in range(4)}
    long = own(60)
    spike = [[b * (3e4 if n == 50 and r == 1 else 1) for n, b in enumerate(d)]
             for r, d in enumerate(with_bad(long, 50, 1.0, ranks=()))]  # fmt: skip
    trouble = with_bad(with_bad(with_bad(good, 5, INF, ranks=(0,)), 5, NAN, ranks=(1,)), 5, NAN,
                       ranks=(0, 1))  # fmt: skip
    runs: dict[str, Callable[[], dict[str, Any]]] = {
        "clean": lambda: _run(OnRanks(good)),
        "guarded": lambda: _run(OnRanks(good), GuardTraining(window=2)),
        "one bad": lambda: _run(OnRanks(one_bad[3]), GuardTraining()),
        "spike": lambda: _run(OnRanks(spike), GuardTraining()),
        "without spike": lambda: _run(OnRanks(long)),
        "manual clean": lambda: _run(Manual(good)),
        "manual one bad": lambda: _run(Manual(one_bad[2]), GuardTraining()),
        "gone back": lambda: _run(OnRanks(trouble), GuardTraining(window=4, max_trips=3)),
        "gave up": lambda: _run(
            OnRanks(trouble), GuardTraining(window=4, max_trips=2, max_rollbacks=0)
        ),
    }
    accumulated = {"accumulate_grad_batches": 2}
    for place in PLACES:
        runs[f"accumulated {place}"] = lambda d=one_bad[place]: _run(  # type: ignore[misc]
            OnRanks(d), GuardTraining(), **accumulated
        )
        runs[f"left out {place}"] = lambda d=left_out[place]: _run(  # type: ignore[misc]
            LeavesOut(d), **accumulated
        )
    return runs


def _run(model: OnRanks, *callbacks: L.Callback, **settings: Any) -> dict[str, Any]:
    error = ""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            trainer = fit(
                model, *callbacks, max_epochs=1, strategy="ddp", devices=WORLD,
                use_distributed_sampler=False, **settings,
            )  # fmt: skip
        except DivergedError as diverged:
            error = str(diverged)
            trainer = model.trainer
            model.draw = None
    seen = outcome(trainer)
    guard = callbacks[0] if callbacks else None
    if isinstance(guard, GuardTraining):
        seen["guard"] = guard.state_dict()
        seen["skipped"] = guard.skipped
    return {**seen, "error": error}


def run_on_two_processes(folder: Path) -> list[dict[str, Any]]:
    """What each process reports, by rank."""
    return reports_of(_report, folder)


def _report(rank: int) -> dict[str, Any]:
    return {name: run() for name, run in scenarios().items()}
