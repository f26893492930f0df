"""Masks that hold pruned weights at zero through a training, whatever happens in between."""

from collections.abc import Iterable
from typing import Any, ClassVar

import lightning as L
import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn
from torch.optim import Optimizer

from stablelightning.callbacks.base import StableCallback
from stablelightning.callbacks.shards import refuse_shards
from stablelightning.callbacks.standings import forget_best_checkpoints, hold_early_stopping
from stablelightning.errors import CheckpointError, RecipeError, StableLightningWarning
from stablelightning.functional.sparsity import check_sparsity, pack_mask, unpack_mask
from stablelightning.model.prune import (
    LayerSparsity,
    PrunableWeight,
    layer_sparsity,
    masks_of,
    prunable_weights,
    total_sparsity,
)
from stablelightning.report.wandb import log_table

#: Names of layers in one warning.
_NAMED = 4


class PruneWeights(StableCallback):
    """Base of what prunes during ``fit``: a subclass says when, and how much.

    Weights stay plain parameters under their own names: checkpoints, copies and averages of the
    model need not know of pruning. Held at zero they are by three things, which together do what
    ``weight * mask`` in the forward pass would do: gradients of pruned weights are zero before
    anybody measures or clips them, pruned weights are set to zero after every step of an optimizer
    (momentum and weight decay would move them), and again before every batch (somebody may have
    restored older weights).

    While pruning is under way, early stopping waits; when it is complete, checkpoints are compared
    anew, so that the best one is the best *sparse* one.

    Args:
        sparsity: share of the prunable weights that is zero in the end, in (0, 1).
        per_layer: that share of every weight tensor, instead of all of them together.
        exclude: dotted names of modules in which nothing is pruned; ``None`` for none.

    Attributes:
        changes: ``step`` and ``sparsity`` of each change of the masks.
        validations: ``step``, ``sparsity`` and ``scores`` of each validation in this process.
        layers: exact sparsity of each layer when training ended.

    Raises:
        RecipeError: a setting is out of its range.
    """

    # Its hook on a step is the optimizer's own; among ours it is the last to touch weights.
    rank: ClassVar[int | None] = 40

    def __init__(self, sparsity: float, *, per_layer: bool, exclude: list[str] | None) -> None:
        check_sparsity(sparsity)
        if isinstance(exclude, str):
            raise RecipeError(f"exclude must be a list of names, got {exclude!r}; put it in one.")
        self.sparsity = sparsity
        self.per_layer = per_layer
        self.exclude = exclude
        self._handles: list[Any] = []
        self._own_run = True
        self._forget_run()
        self.leave()

    def _forget_run(self) -> None:
        self.changes: list[dict[str, Any]] = []
        self.validations: list[dict[str, Any]] = []
        self.before: dict[str, float] = {}  # scores of the last validation of the dense model
        self.layers: list[LayerSparsity] = []
        self._masks: dict[str, Tensor] = {}
        self._steps = 0  # batches after which an optimizer was due
        self._seen = -1  # the step at which pruning was last asked for
        self._asked = 0.0  # sparsity that was asked for then
        self._share = 0.0  # sparsity of the masks, exactly

    def leave(self) -> None:
        """Nothing of ours stays in an optimizer, and no module is kept alive."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._weights: list[PrunableWeight] = []
        self._ours: set[int] = set()
        self._dropped: dict[int, tuple[nn.Parameter, Tensor]] = {}

    # ---- what a subclass says ------------------------------------------------------------------

    def plan(self, trainer: L.Trainer) -> None:
        """Settle on which steps to prune; called before the first one."""

    def asked(self, step: int) -> float | None:
        """Sparsity wanted after so many steps; ``None`` leaves it as it is."""
        raise NotImplementedError

    def shrink_(self, weight: nn.Parameter, learning_rate: float | Tensor) -> None:
        """Change a prunable weight after its optimizer's step."""

    # ---- when -----------------------------------------------------------------------------------

    @property
    def is_complete(self) -> bool:
        """Whether the whole sparsity has been reached."""
        return self._asked >= self.sparsity

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuse strategies that shard weights, and begin anew unless this Trainer goes on."""
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        name = type(self).__name__
        refuse_shards(
            trainer,
            needs=f"{name} needs whole weights",
            remedy=f"use strategy='ddp', or remove {name} and prune the trained model",
        )
        others = [c for c in trainer.callbacks if isinstance(c, PruneWeights)]  # type: ignore[attr-defined]
        if len(others) > 1:
            raise RecipeError(
                f"a model is pruned by one callback, got {len(others)} "
                f"({', '.join(type(c).__name__ for c in others)}); remove all but one."
            )
        if trainer.global_step == 0:
            self._forget_run()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Find the weights, plan, take up masks of a checkpoint, and watch every optimizer."""
        self.leave()
        self._weights = prunable_weights(pl_module, exclude=self.exclude or ())
        self.plan(trainer)
        self._take_up_masks()
        for optimizer in trainer.optimizers:
            self._handles.append(optimizer.register_step_post_hook(self._after_step))
        self._advance(trainer)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keep early stopping from comparing a sparser model with a denser one."""
        if not self.is_complete:
            hold_early_stopping(trainer)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Hold pruned weights at zero, also those of a snapshot that was restored."""
        self._hold(self._dropped.values())

    def on_after_backward(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take the gradients of pruned weights away, before their norm is measured or clipped."""
        with torch.no_grad():
            for parameter, dropped in self._dropped.values():
                if parameter.grad is not None:
                    parameter.grad.masked_fill_(dropped, 0)

    def _after_step(self, optimizer: Optimizer, *_: Any) -> None:
        # A fused optimizer is called where the scaler found an overflow, too, and does nothing.
        found_inf = getattr(optimizer, "found_inf", None)
        stepped = found_inf is None or not bool(found_inf)
        held = []
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if id(parameter) in self._ours:
                    if stepped and parameter.grad is not None:
                        with torch.no_grad():
                            self.shrink_(parameter, group.get("lr", 1.0))
                    if id(parameter) in self._dropped:
                        held.append(self._dropped[id(parameter)])
        self._hold(held)

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Prune where it is due, and hold what a guard that went back has just brought back."""
        self._hold(self._dropped.values())  # before validation and checkpoints see it
        if not trainer.fit_loop.epoch_loop._should_accumulate():
            self._steps += 1
            self._advance(trainer)
        if not trainer.barebones and trainer._logger_connector.should_update_logs:
            pl_module.log("sparse/sparsity", self._share)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keep early stopping from comparing a sparser model with a denser one."""
        if trainer.state.fn != TrainerFn.FITTING:
            return
        self._hold_averages(trainer)
        if not self.is_complete:
            hold_early_stopping(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keep the scores, with the sparsity at which they were measured."""
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            scores = {
                key: float(value)
                for key, value in trainer.callback_metrics.items()
                if key.startswith("val") and value.numel() == 1
            }
            # Scores that were not averaged are each process's own, and states must not differ.
            scores = trainer.strategy.broadcast(scores)
            entry = {"step": self._steps, "sparsity": self._share, "scores": scores}
            self.validations.append(entry)
            if not self._share:
                self.before = scores

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Say what was reached: exact sparsity of each layer, scores before and after."""
        self._hold(self._dropped.values())  # early stopping may have gone back to older weights
        self.layers = layer_sparsity(self._weights)
        if not self.is_complete:
            _say(
                f"{type(self).__name__} was to prune {self.sparsity:.1%} of the weights, and "
                f"training ended at {self._share:.1%}; let it train on, or set an earlier end."
            )
        self._tell(trainer)

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Say it if what is tested is a checkpoint from before the model was sparse."""
        if not self._masks or not self.is_complete:
            return
        layers = layer_sparsity(prunable_weights(pl_module, exclude=self.exclude or ()))
        found, held = total_sparsity(layers), self._share
        if found < held:
            _say(
                f"the model that is tested has {found:.1%} zeros, not the {held:.1%} that "
                f"{type(self).__name__} reached: its weights are from before. Validate after "
                "pruning has ended, so that there is a best sparse checkpoint."
            )

    # ---- masks ----------------------------------------------------------------------------------

    def _advance(self, trainer: L.Trainer) -> None:
        step = self._steps
        if trainer.max_steps > 0:  # counts the steps of every optimizer, and may end a run earlier
            step = max(step, trainer.global_step)
        if step == self._seen:
            return
        self._seen = step
        share = self.asked(step)
        if share is None or share <= self._asked:
            return
        self._asked = share
        kept = [self._masks[w.name] for w in self._weights] if self._masks else None
        masks = masks_of(self._weights, share, per_layer=self.per_layer, masks=kept)
        self._masks = {w.name: mask for w, mask in zip(self._weights, masks, strict=True)}
        self._use_masks()
        self._hold_averages(trainer)
        self.changes.append({"step": self._steps, "sparsity": self._share})
        if self.is_complete:
            self._settle(trainer)

    def _settle(self, trainer: L.Trainer) -> None:
        """The model is as sparse as it will be: what was measured before is of another model."""
        forget_best_checkpoints(trainer)
        hold_early_stopping(trainer)
        empty = [w.layer for w in self._weights if not self._masks[w.name].any()]
        if empty:
            _say(
                f"{type(self).__name__} left no weight in {', '.join(empty[:_NAMED])}"
                f"{' and others' if len(empty) > _NAMED else ''}: nothing passes there. Begin "
                "later if its weights started at zero, exclude it, or ask for less."
            )
        rank_zero_info(
            f"{type(self).__name__}: {self._share:.2%} of the weights are zero from step "
            f"{self._steps} on; checkpoints and early stopping compare anew."
        )

    def _take_up_masks(self) -> None:
        shapes = {w.name: w.parameter.shape for w in self._weights}
        if self._masks and {name: mask.shape for name, mask in self._masks.items()} != shapes:
            raise CheckpointError(
                "a resumed run keeps its masks, and those of the checkpoint are of another model "
                f"or another exclude ({len(self._masks)} masks, {len(shapes)} prunable weights); "
                "resume with the settings of the first run, or start anew from its weights."
            )
        self._use_masks()

    def _use_masks(self) -> None:
        self._ours = {id(w.parameter) for w in self._weights}
        self._dropped = {}
        for weight in self._weights if self._masks else ():
            parameter = weight.parameter
            dropped = ~self._masks[weight.name].to(parameter.device)
            if dropped.any():
                self._dropped[id(parameter)] = (parameter, dropped)
        self._count()
        self._hold(self._dropped.values())

    def _hold(self, held: Iterable[tuple[nn.Parameter, Tensor]]) -> None:
        with torch.no_grad():
            for parameter, dropped in held:
                parameter.masked_fill_(dropped, 0)

    def _hold_averages(self, trainer: L.Trainer) -> None:
        """An average that has a zero here and averages zeros from now on, keeps it.

        Unless a guard goes back, and brings an older average back with the weights.
        """
        if not self._dropped:
            return
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            average = getattr(callback, "_average_model", None)
            if isinstance(average, nn.Module):
                own = dict(average.named_parameters())
                for name, mask in self._masks.items():
                    parameter = own.get(f"module.{name}", own.get(name))
                    if parameter is not None:
                        self._hold([(parameter, ~mask.to(parameter.device))])

    def _count(self) -> None:
        weights = sum(mask.numel() for mask in self._masks.values())
        pruned = weights - sum(int(mask.sum()) for mask in self._masks.values())
        self._share = pruned / weights if weights else 0.0

    # ---- what is told ---------------------------------------------------------------------------

    @property
    def after(self) -> dict[str, float]:
        """Scores of the last validation of the model at its whole sparsity."""
        whole = [entry for entry in self.validations if entry["sparsity"] == self._share]
        return dict(whole[-1]["scores"]) if whole and self.is_complete else {}

    def _tell(self, trainer: L.Trainer) -> None:
        if trainer.barebones:
            return
        numbers = {f"sparse/{key}_before": value for key, value in self.before.items()}
        numbers |= {f"sparse/{key}_after": value for key, value in self.after.items()}
        numbers["sparse/sparsity"] = total_sparsity(self.layers)
        for logger in trainer.loggers:
            logger.log_metrics(numbers, step=self._steps)
        rows = [[a.layer, str(a.shape), a.weights, a.zeros, a.sparsity] for a in self.layers]
        columns = ["layer", "shape", "weights", "zeros", "sparsity"]
        log_table(trainer.loggers, "sparse/layers", columns, rows)

    # ---- state ----------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Masks in bits, and where the schedule stands; plain types and tensors.

        Validations stay behind: where a run goes on from the end of an epoch, Lightning leaves one
        out, and the state would not be that of the unbroken run.
        """
        return {
            "steps": self._steps,
            "seen": self._seen,
            "asked": self._asked,
            "masks": {
                name: {"shape": list(mask.shape), "bits": pack_mask(mask)}
                for name, mask in self._masks.items()
            },
            "changes": [dict(change) for change in self.changes],
            "before": dict(self.before),
        }

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Hold averages, too, which are saved in the place of the weights."""
        self._hold_averages(trainer)

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Tell a run that goes on from a test of one of its checkpoints, which ends no training."""
        self._own_run = trainer.state.fn == TrainerFn.FITTING or not self.changes

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there; a test of an earlier checkpoint leaves what was reached since."""
        own_run, self._own_run = self._own_run, True
        if not own_run:
            return
        self._steps = state_dict["steps"]
        self._seen = state_dict["seen"]
        self._asked = state_dict["asked"]
        self._masks = {
            name: unpack_mask(mask["bits"], mask["shape"])
            for name, mask in state_dict["masks"].items()
        }
        self.changes = [dict(change) for change in state_dict["changes"]]
        self.before = dict(state_dict["before"])
        self._count()


def _say(message: str) -> None:
    rank_zero_warn(message, category=StableLightningWarning)
