"""Openings under every scheduler of torch: rates as written, resumed runs like unbroken ones.

The training is that of ``tests/callbacks/test_freeze_schedulers.py``: four depth groups with
factors of 1/8 to 1, one more open in each of four epochs of six steps. At each step the rate of
each parameter is compared with that of the same training without freezing, times its factor.
``BackboneFinetuning`` opens the same backbone after the first epoch.
"""

import tempfile
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import BackboneFinetuning
from torch import nn

from stablelightning.callbacks.freeze import UnfreezeGradually
from tests.benchmarks.record import Job, Run
from tests.callbacks.freeze_schedules import (
    SCHEDULERS,
    Scheduled,
    factors_by_name,
    trained,
    weights,
)

TITLE = "Openings under every scheduler of torch, resumed before, at and after the first one"
NEEDS_ROOT = False

#: Steps at which runs go on; the first opening is at 6.
RESUMED = {"before": 4, "at": 6, "after": 8}

#: Lightning saves checkpoints before it asks a plateau, so that a resumed one is asked once less,
#: also without any freezing: it is held against itself.
_ASKED_LATE = "ReduceLROnPlateau"


class WithBackbone(Scheduled):
    """For Lightning's callback: a backbone, and an optimizer of what takes gradients."""

    def __init__(self, schedule: str) -> None:
        super().__init__(schedule)
        self.backbone = self.net[:-1]

    def optimized(self) -> list[nn.Parameter]:
        return [p for p in self.parameters() if p.requires_grad]


def work(*, schedule: str) -> dict[str, Any]:
    """What one scheduler came to."""
    with tempfile.TemporaryDirectory() as folder:
        plan = UnfreezeGradually(layer_decay=0.5)
        model, watch = trained(schedule, plan, keep=Path(folder))
        plain_folder = Path(folder) / "plain"
        _, plain = trained(schedule, keep=plain_folder)
        factors = factors_by_name(plan)
        found: dict[str, Any] = {"rates": _largest(watch.rates, plain.rates, factors)}
        for name, step in RESUMED.items():
            file = f"step={step}.ckpt"
            again, seen = trained(
                schedule, UnfreezeGradually(layer_decay=0.5), resume=Path(folder) / file
            )
            wanted = {n: rates for n, rates in plain.rates.items() if n >= step}
            same = all(map(torch.equal, weights(again), weights(model)))
            if schedule == _ASKED_LATE:
                wanted = trained(schedule, resume=plain_folder / file)[1].rates
                same = True
            open_alike = all(seen.trained[n] == watch.trained[n] for n in seen.trained)
            exact = _largest(seen.rates, wanted, factors) == 0.0
            found[name] = bool(same and open_alike and exact)
        found["theirs"] = _theirs(schedule)
    return found


def _largest(
    rates: dict[int, dict[str, float]],
    written: dict[int, dict[str, float]],
    factors: dict[str, float],
) -> float:
    """The largest relative difference from what is written."""
    assert rates.keys() == written.keys()
    return max(
        abs(rate - written[step][name] * factors[name]) / (written[step][name] * factors[name] or 1)
        for step, of_step in rates.items()
        for name, rate in of_step.items()
    )


def _theirs(schedule: str) -> str:
    callback = BackboneFinetuning(unfreeze_backbone_at_epoch=1, backbone_initial_lr=0.01)
    try:
        trained(schedule, callback, kind=WithBackbone)
    except Exception as error:  # whatever a scheduler says of a group that it does not know
        return type(error).__name__
    return "runs"


def measure(run: Run) -> dict[str, Any]:
    """Every scheduler; exact, so that one seed is as good as five."""
    jobs = {name: Job(work, {"schedule": name}) for name in SCHEDULERS}
    return {"schedulers": run.all(jobs)}


def table(result: dict[str, Any]) -> str:
    """Markdown; one row for each scheduler."""
    resumed = " | ".join(f"resumed {name}" for name in RESUMED)
    lines = [
        f"| scheduler | largest difference of a rate | {resumed} | BackboneFinetuning |",
        "|---|---|---|---|---|---|",
    ]
    for name, found in result["schedulers"].items():
        same = " | ".join("same" if found[when] else "differs" for when in RESUMED)
        lines.append(f"| {name} | {found['rates']:g} | {same} | {found['theirs']} |")
    return "\n".join(lines)
