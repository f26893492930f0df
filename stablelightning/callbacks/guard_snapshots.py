"""Which good state of a training to come back to."""

import copy
from dataclasses import dataclass, field
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor, nn

from stablelightning.callbacks.guard_undo import loss_scaler
from stablelightning.model.learning_rate import scale_learning_rates
from stablelightning.model.snapshot import Snapshot


@dataclass
class _Kept:
    """A snapshot, and what was so when it was taken.

    Args:
        age: good steps since.
        factor: what rates had been multiplied by, in all.
        usual: what losses and norms were usual.
        content: of a snapshot that comes from a checkpoint, until it is bound to the training.
        snapshot: bound to the training.
    """

    factor: float
    usual: dict[str, Any]
    age: int = 0
    content: dict[str, Any] = field(default_factory=dict)
    snapshot: Snapshot | None = None

    def state_dict(self) -> dict[str, Any]:
        content = self.content if self.snapshot is None else self.snapshot.state_dict()
        return {"age": self.age, "factor": self.factor, "usual": self.usual, "content": content}


class Snapshots:
    """Two snapshots at most: the newest is used once enough good steps have confirmed it.

    Args:
        every: good steps between two snapshots; half as many confirm one.
        host: whether they are kept in host memory.
    """

    def __init__(self, every: int, *, host: bool) -> None:
        self._every = every
        self._host = host
        self._kept: list[_Kept] = []

    @property
    def is_due(self) -> bool:
        """Whether it is time to take one."""
        return not self._kept or self._kept[-1].age >= self._every

    @property
    def is_empty(self) -> bool:
        """Whether there is none."""
        return not self._kept

    @property
    def is_fresh(self) -> bool:
        """Whether there is one alone, of the present state."""
        return len(self._kept) == 1 and self._kept[0].age == 0

    def count_good_step(self) -> None:
        """All get older by one good step."""
        for kept in self._kept:
            kept.age += 1

    def take(self, trainer: L.Trainer, *, factor: float, usual: dict[str, Any]) -> None:
        """Take one now, and keep the newest of those before it."""
        new = _Kept(factor, copy.deepcopy(usual), snapshot=_snapshot(trainer, self._host))
        self._kept = [*self._kept[-1:], new]

    def weights(self) -> dict[str, Tensor]:
        """Weights of the one that would be brought back, by their names."""
        chosen = self._chosen()
        return chosen.content["weights"] if chosen.snapshot is None else chosen.snapshot.weights

    def _chosen(self) -> _Kept:
        confirmed = [kept for kept in self._kept if 2 * kept.age >= self._every]
        return (confirmed or self._kept[:1])[-1]

    def restore(self, trainer: L.Trainer) -> tuple[float, dict[str, Any]]:
        """Bring back the newest confirmed one, or the oldest if none is; the newer ones are gone.

        Returns:
            The factor on rates, and what was usual, when it was taken.
        """
        chosen = self._chosen()
        self._bound(chosen, trainer).restore()
        # What confirmed it was undone with what came after it.
        self._kept = self._kept[: self._kept.index(chosen) + 1]
        return chosen.factor, copy.deepcopy(chosen.usual)

    def complete(self, trainer: L.Trainer) -> None:
        """Take up weights that were frozen and are trained from now on."""
        for kept in self._kept:
            self._bound(kept, trainer).complete()

    def _bound(self, kept: _Kept, trainer: L.Trainer) -> Snapshot:
        if kept.snapshot is None:
            kept.snapshot = _snapshot(trainer, self._host)
            kept.snapshot.load_state_dict(kept.content)
            kept.content = {}
        return kept.snapshot

    def drop(self, *, all_but_newest: bool = False) -> None:
        """Forget all, or all but the newest."""
        self._kept = self._kept[-1:] if all_but_newest else []

    def state_dict(self) -> list[dict[str, Any]]:
        """All of them, as tensors and plain types."""
        return [kept.state_dict() for kept in self._kept]

    def load_state_dict(self, state: list[dict[str, Any]]) -> None:
        """Go on with those; they are bound to the training when they are needed."""
        self._kept = [_Kept(**kept) for kept in state]


def scale_all_learning_rates(trainer: L.Trainer, factor: float) -> None:
    """Multiply the rates of all optimizers, and what their schedules will make of them."""
    schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
    for optimizer in trainer.optimizers:
        scale_learning_rates(optimizer, schedulers, factor)


def _snapshot(trainer: L.Trainer, host: bool) -> Snapshot:
    return Snapshot(
        trainer.lightning_module,
        trainer.optimizers,
        [config.scheduler for config in trainer.lr_scheduler_configs],
        scaler=loss_scaler(trainer),
        followers=_averages(trainer),
        host=host,
    )


def _averages(trainer: L.Trainer) -> list[nn.Module]:
    """The averages of weights that Lightning keeps: what was averaged on the way off is in them."""
    callbacks: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    kept = [c._average_model for c in callbacks if isinstance(c, WeightAveraging)]
    return [average for average in kept if average is not None]
