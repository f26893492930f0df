"""When a step is undone, when training goes back, and when it is given up."""

from collections.abc import Callable
from functools import wraps
from typing import Any, ClassVar

import lightning as L
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer

from stablelightning.callbacks.base import StableCallback
from stablelightning.callbacks.batch_record import BatchRecord
from stablelightning.callbacks.guard_batch import BatchGuard, Trip
from stablelightning.callbacks.guard_events import Scene, event_of, sizes, tell
from stablelightning.callbacks.guard_readings import Judge
from stablelightning.callbacks.guard_settings import (
    check_cut,
    check_flag,
    check_threshold,
)
from stablelightning.callbacks.guard_snapshots import Snapshots, scale_all_learning_rates
from stablelightning.callbacks.guard_undo import is_by_steps
from stablelightning.callbacks.resume import checkpoint_to_load
from stablelightning.callbacks.shards import refuse_shards
from stablelightning.callbacks.steps import replace_method
from stablelightning.checks import check_whole
from stablelightning.errors import DivergedError, StableLightningWarning
from stablelightning.report.events import (
    DROPPED,
    GAVE_UP,
    ROLLED_BACK,
    SKIPPED,
    EventLog,
    report_of_giving_up,
)

#: The cause is looked for of so many undone batches, and of the first of each window after them.
#: It costs a few more passes over the batch.
_EXPLAINED = 20


class GuardTraining(StableCallback):
    """Keep training on the road during ``fit``: undo bad steps, go back, and give up in words.

    A ladder:

    1. A step whose loss or gradients are not finite is undone, exactly. Parameters, optimizers,
       schedules by steps, the loss scaler, buffers, metrics, logged means, random numbers and
       ``global_step`` are as if the batch had not been. While batches accumulate, only the bad one
       is dropped, as if ``training_step`` had returned ``None`` for it. An overflow that the loss
       scaler of fp16 finds is no trouble: the scaler sees to it.
    2. So is a step whose loss, gradient norm or inputs are a spike: they stand out of all before.
    3. After ``max_trips`` of these within ``window`` batches, training goes back to a good state
       (weights and Lightning's averages of them, buffers, optimizers, schedules, scaler), with the
       learning rate cut.
    4. After ``max_rollbacks`` of those, the last good state is brought back and training ends with
       :class:`~stablelightning.errors.DivergedError`, which says what happened.

    Every decision is an event with its cause, in ``events.jsonl``; loggers get ``guard/skipped``,
    ``guard/rollbacks``, ``guard/learning_rate_factor``. All processes decide alike. Without trouble
    training is the same to the bit.

    In manual optimization, the steps of a batch from the bad one on are undone, and gradients that
    were accumulated over several batches are dropped with the bad one. Only steps through
    Lightning are seen (``self.manual_backward``, ``self.optimizers()``). What is kept outside of
    the model cannot be undone, NumPy's random numbers included.

    Args:
        threshold: robust standard deviations above which a finite value may be a spike, > 0;
            ``inf`` skips only what is not finite.
        window: number of batches within which trips are counted, and of good steps between two
            snapshots, >= 1. Half as many good steps confirm a snapshot.
        max_trips: number of trips in the window at which training goes back, >= 1.
        max_rollbacks: number of times that it goes back in a run, >= 0.
        cut: what the learning rate is multiplied by each time, in (0, 1].
        host_memory: whether the two snapshots are kept in host memory, and not on the device;
            each takes as much as the weights and the optimizers' states.

    Attributes:
        skipped: number of steps and accumulated batches that were undone.
        rollbacks: number of times that training went back.
        learning_rate_factor: what learning rates were multiplied by since the start.
        events: all decisions, as :class:`~stablelightning.report.events.EventLog`.

    Raises:
        RecipeError: a setting is out of its range; the strategy shards the model.
        ModelError: no gradient flows from the loss.
        DivergedError: training was given up.

    Source:
        Chowdhery et al. 2022, arXiv:2204.02311, section 5.1 (going back behind loss spikes).

    Example:
        >>> import warnings
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> class Poisoned(BoringModel):
        ...     def training_step(self, batch, batch_idx):
        ...         return self.loss(self(batch)) * (float("nan") if batch_idx == 3 else 1.0)
        >>> guard = GuardTraining()
        >>> trainer = L.Trainer(
        ...     accelerator="cpu", enable_progress_bar=False, enable_model_summary=False,
        ...     fast_dev_run=8, callbacks=[guard],
        ... )
        >>> with warnings.catch_warnings(action="ignore"):  # it says which batch, and why
        ...     trainer.fit(Poisoned())
        >>> guard.skipped, trainer.global_step
        (1, 7)
    """

    rank: ClassVar[int | None] = 10

    def __init__(
        self,
        threshold: float = 6.0,
        *,
        window: int = 100,
        max_trips: int = 5,
        max_rollbacks: int = 3,
        cut: float = 0.5,
        host_memory: bool = False,
    ) -> None:
        check_threshold(threshold)
        check_whole("window", window, least=1)
        check_whole("max_trips", max_trips, least=1)
        check_whole("max_rollbacks", max_rollbacks, least=0)
        check_cut(cut)
        check_flag("host_memory", host_memory)
        self.threshold = threshold
        self.window = window
        self.max_trips = max_trips
        self.max_rollbacks = max_rollbacks
        self.cut = cut
        self.host_memory = host_memory
        self._restore: list[Callable[[], None]] = []
        self._batch: BatchGuard | None = None
        self._record = BatchRecord()
        self._forget_run()

    def _forget_run(self) -> None:
        self.events = EventLog()
        self.learning_rate_factor = 1.0
        self._judge = Judge(self.threshold)
        self._snapshots = Snapshots(self.window, host=self.host_memory)
        self._batches = 0  # that have ended
        self._trips: list[list[int]] = []  # of the window: batch, whether a spike, whether the data
        self._good_steps = 0  # since training began, or went back last
        self._since_saved = 0  # good steps since a checkpoint made a snapshot needless to keep
        self._usual: list[float] = []  # sizes of a good batch

    @property
    def skipped(self) -> int:
        """Number of steps and accumulated batches that were undone."""
        return self.events.counts[SKIPPED] + self.events.counts[DROPPED]

    @property
    def has_undone(self) -> bool:
        """Whether the batch that is ending is as if it had not been."""
        return self._batch is not None and self._batch.trip is not None

    @property
    def rollbacks(self) -> int:
        """Number of times that training went back."""
        return self.events.counts[ROLLED_BACK]

    # ---- hooks ----------------------------------------------------------------------------------

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Check what cannot be guarded, and begin anew unless this Trainer goes on."""
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        refuse_shards(
            trainer,
            needs="GuardTraining needs whole weights and gradients",
            remedy="use strategy='ddp', or remove GuardTraining",
        )
        if trainer.global_step == 0:
            self._forget_run()
        self._record.attach(trainer)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stand behind every step of the optimizer and of its schedules."""
        if self.learning_rate_factor != 1 and not checkpoint_to_load(trainer):  # a second fit
            scale_all_learning_rates(trainer, self.learning_rate_factor)  # of new optimizers
        batch = self._batch = BatchGuard(trainer, pl_module, self._judge)
        usual_step, usual_schedule = pl_module.optimizer_step, pl_module.lr_scheduler_step

        @wraps(usual_step)
        def optimizer_step(*args: Any, **kwargs: Any) -> None:
            usual_step(*args, **kwargs)
            batch.after_step()  # before schedules, counters and other callbacks see it

        @wraps(usual_schedule)
        def lr_scheduler_step(scheduler: Any, *args: Any, **kwargs: Any) -> None:
            if not (batch.has_skipped and is_by_steps(trainer, scheduler)):
                usual_schedule(scheduler, *args, **kwargs)

        self._restore = [
            replace_method(pl_module, "optimizer_step", optimizer_step),
            replace_method(pl_module, "lr_scheduler_step", lr_scheduler_step),
        ]
        if not pl_module.automatic_optimization:
            by_hand = batch.ending(pl_module.training_step)
            self._restore.append(replace_method(pl_module, "training_step", by_hand))

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Look for modules that were added or taken away."""
        if self._batch is not None:
            self._batch.relist()

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Remember what this batch may change."""
        if self._batch is None:
            return
        if self._snapshots.is_empty:
            self._take_snapshot(trainer)
        elif batch_idx == 0:  # layers are unfrozen between epochs
            self._snapshots.complete(trainer)
        self._batch.start(batch, batch_idx)

    def on_before_backward(
        self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor
    ) -> None:
        """Note the loss."""
        if self._batch is not None:
            self._batch.before_backward(loss)

    def on_after_backward(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Drop a bad batch from those that accumulate."""
        if self._batch is not None:
            self._batch.after_backward()

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer
    ) -> None:
        """Look at the loss and the gradients; where they are bad, no gradient is left."""
        if self._batch is not None:
            self._batch.before_step(optimizer)

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Count the step as good, or as bad with all that follows from it."""
        guard = self._batch
        if guard is None or batch is None:  # of which Lightning says only that it ended
            return
        guard.end()
        self._batches += 1
        if guard.trip is not None:
            rows = self._record.rows(trainer, batch)
            self._on_trip(Scene(trainer, pl_module, batch, batch_idx, rows), guard.trip)
        elif guard.stepped:
            self._on_good_step(trainer, guard.loss, batch)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Tell what has not been told."""
        self.events.tell(trainer)

    def leave(self) -> None:
        """Leave the module's methods as they were, and free the snapshots."""
        while self._restore:
            self._restore.pop()()
        self._record.detach()
        self._batch = None
        self._snapshots.drop()

    # ---- the ladder -----------------------------------------------------------------------------

    def _on_good_step(self, trainer: L.Trainer, loss: float | None, batch: Any) -> None:
        self._trips = [trip for trip in self._trips if not trip[2]]  # bad data tells no rate
        self._good_steps += 1
        self._since_saved += 1
        self._snapshots.count_good_step()
        if loss is not None:
            self.events.keep_loss(trainer.global_step, loss)
        if self._good_steps == 1 or self._snapshots.is_due:
            self._usual = trainer.strategy.broadcast(sizes(batch))
        if self._snapshots.is_due:
            self._take_snapshot(trainer)

    def _take_snapshot(self, trainer: L.Trainer) -> None:
        usual = self._judge.state_dict()
        self._snapshots.take(trainer, factor=self.learning_rate_factor, usual=usual)

    def _on_trip(self, scene: Scene, trip: Trip) -> None:
        oldest = self._batches - self.window
        self._trips = [kept for kept in self._trips if kept[0] > oldest]
        explained = self.skipped < _EXPLAINED or not self._trips
        self._trips.append([self._batches, int(trip.is_spike), int(trip.is_of_the_data)])
        earlier = self._snapshots.weights() if explained else None
        event = event_of(trip, scene, earlier=earlier, usual=self._usual)
        self._tell(scene, event)
        if self.skipped == 1:
            what = "step" if trip.whole_step else "accumulated batch"
            why = f"{trip.verdict}; {event['cause']}: {event['message']}".rstrip(": ")
            rank_zero_warn(
                f"GuardTraining undid the {what} of batch {scene.batch_idx} ({why}). This and what "
                "follows is told in guard/skipped and events.jsonl.",
                category=StableLightningWarning,
            )
        if len(self._trips) >= self.max_trips and not self._is_new_level():
            self._go_back(scene)

    def _is_new_level(self) -> bool:
        """Whether finite losses stand out although training has just gone back.

        Weights for which losses were usual are there again, so it is the data that changed; the
        judge takes what it sees again and again as usual before long.
        """
        only_spikes = all(is_spike for _, is_spike, _ in self._trips)
        return only_spikes and self.rollbacks > 0 and self._good_steps == 0

    def _go_back(self, scene: Scene) -> None:
        trainer = scene.trainer
        factor, usual = self._snapshots.restore(trainer)
        self._judge.load_state_dict(usual)
        self._good_steps = 0
        why = f"{len(self._trips)} trips within {self.window} batches"
        self._trips = []
        gives_up = self.rollbacks >= self.max_rollbacks
        wanted = self.learning_rate_factor * (1.0 if gives_up else self.cut)
        scale_all_learning_rates(trainer, wanted / factor)
        self.learning_rate_factor = wanted
        decision = GAVE_UP if gives_up else ROLLED_BACK
        self._tell(scene, {"decision": decision, "message": why})
        if gives_up:
            self.events.tell(trainer)
            raise DivergedError(
                f"GuardTraining gave up after {self.rollbacks} rollbacks and {why}, with the last "
                f"good state brought back: {report_of_giving_up(self.events.events)}"
            )
        rank_zero_warn(
            f"GuardTraining went back to a good state after {why}, and multiplied the learning "
            f"rate by {self.cut:g} ({self.rollbacks} of at most {self.max_rollbacks} times).",
            category=StableLightningWarning,
        )

    def _tell(self, scene: Scene, event: dict[str, Any]) -> None:
        tell(self.events, scene, event, learning_rate_factor=self.learning_rate_factor)

    # ---- state ----------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything that decides what will happen; plain types and tensors.

        Snapshots are in it only if trouble was near: else the checkpoint itself is one, to which
        both the run that wrote it and one that goes on from it will come back.
        """
        alone = self._checkpoint_is_enough()
        return {
            "events": self.events.state_dict(),
            "learning_rate_factor": self.learning_rate_factor,
            "judge": self._judge.state_dict(),
            "batches": self._batches,
            "trips": [list(trip) for trip in self._trips],
            "good_steps": self._good_steps,
            "usual": list(self._usual),
            "since_saved": 0 if alone else self._since_saved,
            "snapshots": [] if alone else self._snapshots.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there, to train."""
        if not self.goes_on:
            return
        self.events.load_state_dict(state_dict["events"])
        self.learning_rate_factor = state_dict["learning_rate_factor"]
        self._judge.load_state_dict(state_dict["judge"])
        self._batches = state_dict["batches"]
        self._trips = [list(trip) for trip in state_dict["trips"]]
        self._good_steps = state_dict["good_steps"]
        self._usual = list(state_dict["usual"])
        self._since_saved = state_dict["since_saved"]
        self._snapshots.load_state_dict(state_dict["snapshots"])

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Take the state that is being saved as the snapshot, if the checkpoint counts on it."""
        if self._batch is not None and self._checkpoint_is_enough():
            self._take_snapshot(trainer)
            self._snapshots.drop(all_but_newest=True)
            self._since_saved = 0

    def _checkpoint_is_enough(self) -> bool:
        """Whether a snapshot of the present state can stand for all that are there.

        Not with a trip in the window, nor where checkpoints are so frequent that one could be of a
        state in which trouble has begun.
        """
        calm = all(kept[0] <= self._batches - self.window for kept in self._trips)
        return calm and (self._snapshots.is_fresh or self._since_saved >= self.window)
