"""A short race between plans of fine-tuning: learned on training batches, judged on validation."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from statistics import fmean, stdev
from typing import Any

import lightning as L
import torch

from stablelightning.callbacks.contestant import (
    LightningContestant,
    copy_of,
    loop_left_alone,
    unlogged,
)
from stablelightning.callbacks.first_batches import first_batches
from stablelightning.callbacks.labelled_rows import validation_batches
from stablelightning.errors import DataError
from stablelightning.model.depth import DepthGroup
from stablelightning.model.discriminative import split_groups_
from stablelightning.model.freeze import open_last
from stablelightning.model.generators import preserved_generators
from stablelightning.model.race import Heat, run_heat
from stablelightning.model.redraw import redraw
from stablelightning.model.transfer_choice import TransferChoice

#: Runs of each plan: two tell how far chance alone moves the loss.
_SEEDS = 2
#: Batches that are learned from, over and over, and rows that the loss is read on.
_MOST_BATCHES, _MOST_ROWS = 32, 512
#: Factor on the rate of all but the head, of the plan that trains everything slowly.
_SLOWLY = 0.1


@dataclass
class RacedPlan:
    """One plan of a race.

    Args:
        name: in a word.
        plan: in words.
        losses: on validation data towards the end, of each run; infinite where one failed.
        failure: of a run, in one line.
    """

    name: str
    plan: str
    losses: list[float] = field(default_factory=list)
    failure: str = ""

    @property
    def loss(self) -> float:
        """Mean of the runs."""
        return fmean(self.losses) if self.losses else math.inf

    def to_dict(self) -> dict[str, Any]:
        """Plain types; a loss that is no number is ``None``."""
        losses = [loss if math.isfinite(loss) else None for loss in self.losses]
        return asdict(self) | {"losses": losses}


def rivals(choice: TransferChoice) -> dict[str, TransferChoice]:
    """The rule's own plan first, and those that others would try, each that is another plan once.

    Args:
        choice: what the rule says.

    Example:
        >>> list(rivals(TransferChoice(5, 4, 3, False, None, "")))
        ['rule', 'head', 'gradual', 'all', 'all slowly', 'lower half']
        >>> list(rivals(TransferChoice(2, 1, 2, True, None, "")))
        ['rule', 'head', 'gradual', 'all slowly']
    """
    groups = choice.groups
    body = groups - 1
    half = -(-body // 2)
    found = {
        "rule": choice,
        "head": TransferChoice(groups, body, 1, True, None, ""),
        "gradual": TransferChoice(groups, body, groups, False, None, ""),
        "all": TransferChoice(groups, body, groups, True, None, ""),
        "all slowly": TransferChoice(groups, body, groups, False, None, "", _SLOWLY),
        "lower half": TransferChoice(groups, half, groups, True, None, ""),
    }
    different: dict[str, TransferChoice] = {}
    for name, each in found.items():
        if all(each.plan != other.plan for other in different.values()):
            different[name] = each
    return different


def race_plans(
    trainer: L.Trainer,
    pl_module: L.LightningModule,
    groups: Sequence[DepthGroup],
    choice: TransferChoice,
    *,
    steps: int,
    example: Any,
) -> tuple[TransferChoice, list[RacedPlan]]:
    """Let the rule's plan run against others, on copies, and keep it unless another is better.

    Each plan trains copies of the module for ``steps`` optimizer steps, as if they were the whole
    training, from the same two seeds and on the same batches; then its loss is read on validation
    data. Another plan wins where it is better by more than the standard error of the difference.

    Args:
        trainer: about to fit; its loaders and generators are left as they were.
        pl_module: its module, which is copied and not changed.
        groups: its depth groups.
        choice: what the rule says.
        steps: of each run, >= 1.
        example: inputs, for layers that are drawn anew.

    Returns:
        The plan that won, its reason completed, and what was measured, the best first.

    Raises:
        DataError: there is no validation data, or no training data.
        ModelError: the module cannot be copied, or optimizes by itself.
    """
    held_out = validation_batches(trainer, pl_module, _MOST_ROWS)
    if not held_out:
        raise DataError(
            "plans race on validation data, and there is none; give some, or race=false"
        )
    batches = first_batches(trainer, pl_module, min(steps, _MOST_BATCHES))
    plans = rivals(choice)
    raced = []
    with loop_left_alone(trainer), unlogged(trainer):
        for name, plan in plans.items():
            result = RacedPlan(name, plan.plan)
            for seed in range(_SEEDS):
                with preserved_generators(seed):
                    racer = _Racer(trainer, pl_module, groups, plan, steps=steps, example=example)
                    torch.manual_seed(seed)  # whatever was drawn anew
                    heat: Heat = run_heat(racer, batches, held_out, steps=steps)
                result.losses.append(heat.final)
                result.failure = result.failure or heat.failure
            raced.append(result)
    first, *others = raced
    best = min(others, key=lambda result: result.loss, default=first)
    won = best if _clearly_better(best, first) else first
    why = f"its loss on validation data after {steps} steps was {won.loss:.3g}"
    if won is first:
        why += f", and that of {best.name!r} {best.loss:.3g}" if best is not first else ""
    else:
        why += f", and that of the rule's plan ({first.plan}) {first.loss:.3g}"
    chosen = plans[won.name]
    settings = chosen.to_dict() | {"reason": f"{choice.reason}; {won.name!r} won the race: {why}"}
    return TransferChoice(**settings), sorted(raced, key=lambda result: result.loss)


def _clearly_better(best: RacedPlan, first: RacedPlan) -> bool:
    if not math.isfinite(first.loss):
        return math.isfinite(best.loss)
    if not math.isfinite(best.loss):
        return False
    gains = [a - b for a, b in zip(first.losses, best.losses, strict=True)]
    return fmean(gains) > stdev(gains) / math.sqrt(len(gains))


class _Racer(LightningContestant):
    """A copy of the module that follows a plan, its steps being the whole training."""

    def __init__(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        groups: Sequence[DepthGroup],
        plan: TransferChoice,
        *,
        steps: int,
        example: Any,
    ) -> None:
        module = copy_of(pl_module, trainer)
        redraw(module, groups[plan.keep_layers : -1], example=example)
        super().__init__(module, trainer)
        self._groups, self._plan, self._steps = groups, plan, steps
        self._open = 0
        factors = plan.factors()
        if factors is not None:
            named = dict(module.named_parameters())
            parts = [[named[name] for name in group.parameters] for group in groups]
            split_groups_(self._optimizer, self._schedulers, parts, factors=factors)

    def learn(self, batch: Any, index: int) -> None:
        """Open what is due, and take one step."""
        due = self._plan.open_at(index / self._steps)
        if due != self._open:
            self._open = due
            open_last(self.module, self._groups, due)
        super().learn(batch, index)
