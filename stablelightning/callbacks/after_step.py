"""What acts on weights right after each step of an optimizer, whoever takes it."""

from collections.abc import Iterable, Sequence
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.optim import Optimizer

from stablelightning.callbacks.base import StableCallback
from stablelightning.callbacks.shards import refuse_shards
from stablelightning.errors import RecipeError, StableLightningWarning
from stablelightning.model.groups import decayed_parameters


class RegularizeWeights(StableCallback):
    """Base of what acts on weights right after a step of the optimizer that holds them.

    A step is seen by a hook on the optimizer itself, so that it does not matter who calls it: the
    Trainer, or your own ``training_step`` in manual optimization, with any number of optimizers and
    accumulated batches. What got no gradient is left alone: frozen weights, and everything where
    the step was skipped (by the loss scaler, by the guard, by a ``training_step`` that returns
    ``None``).

    A subclass says what it does to one weight (:meth:`act_`) and what it tells (:meth:`told`).

    Example:
        >>> class HalveWeights(RegularizeWeights):
        ...     def act_(self, weight, learning_rate):
        ...         weight.mul_(0.5)
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> model = BoringModel()
        >>> trainer = L.Trainer(
        ...     accelerator="cpu", logger=False, enable_progress_bar=False, max_steps=20,
        ...     enable_checkpointing=False, enable_model_summary=False, callbacks=[HalveWeights()],
        ... )
        >>> trainer.fit(model)
        >>> bool(model.layer.weight.abs().max() < 0.1)
        True
    """

    #: Whether the amount is scaled by the learning rate of the weight's group.
    needs_learning_rate = True
    #: Whether what it does is also done by an optimizer's ``weight_decay``.
    decays = False

    def __init__(self) -> None:
        self._handles: list[Any] = []
        self._weights: dict[int, nn.Parameter] = {}

    def act_(self, weight: nn.Parameter, learning_rate: float | Tensor) -> None:
        """Change one weight after its step, without a gradient; every process does the same.

        Args:
            weight: one that the penalty is meant for.
            learning_rate: of its group at this step; a tensor where the optimizer keeps one.
        """
        raise NotImplementedError

    def told(self, weights: Sequence[nn.Parameter]) -> dict[str, Tensor]:
        """What is logged as ``regularize/<name>``, of the weights as they are now."""
        return {}

    def weights_of(self, model: nn.Module) -> Iterable[nn.Parameter]:
        """The weights that are acted on, read when training starts."""
        return decayed_parameters(model).values()

    # ---- when -----------------------------------------------------------------------------------

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuse strategies that do not leave a weight in one piece."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            name = type(self).__name__
            refuse_shards(
                trainer,
                needs=f"{name} needs whole weights",
                remedy=f"use strategy='ddp', or remove {name} and use the optimizer's weight_decay",
            )

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Watch every optimizer for its steps."""
        self.leave()
        self._weights = {id(weight): weight for weight in self.weights_of(pl_module)}
        self._warn(pl_module, trainer.optimizers)
        for optimizer in trainer.optimizers:
            if self.needs_learning_rate and any("lr" not in g for g in optimizer.param_groups):
                raise RecipeError(
                    f"{type(self).__name__} is scaled by the learning rate of each group, and "
                    f"{type(optimizer).__name__} has a group without 'lr'; use another optimizer."
                )
            self._handles.append(optimizer.register_step_post_hook(self._after_step))

    def _after_step(self, optimizer: Optimizer, *_: Any) -> None:
        # A fused optimizer is called even where the scaler found an overflow, and does nothing.
        found_inf = getattr(optimizer, "found_inf", None)
        if found_inf is not None and bool(found_inf):
            return
        with torch.no_grad():
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    if parameter.grad is not None and id(parameter) in self._weights:
                        self.act_(parameter, group.get("lr", 1.0))

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Log, at the steps at which Lightning logs."""
        if trainer.barebones or not trainer._logger_connector.should_update_logs:
            return
        weights = list(self._weights.values())
        if weights:
            with torch.no_grad():
                told = self.told(weights)
            pl_module.log_dict({f"regularize/{name}": value for name, value in told.items()})

    def leave(self) -> None:
        """Leave the optimizers as they were."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._weights = [], {}

    # ---- what is told before --------------------------------------------------------------------

    def _warn(self, pl_module: L.LightningModule, optimizers: Sequence[Optimizer]) -> None:
        name = type(self).__name__
        if not self._weights:
            _say(f"{name} found no weights to act on in {type(pl_module).__name__}.")
        if self.needs_learning_rate and any(
            weight.dtype in (torch.float16, torch.bfloat16) for weight in self._weights.values()
        ):
            _say(
                f"{name} moves weights by a small part of themselves, and half precision rounds "
                "that away; keep them in float32 with precision='bf16-mixed' or '16-mixed'."
            )
        decay = max(
            (g.get("weight_decay") or 0 for o in optimizers for g in o.param_groups), default=0
        )
        if self.decays and decay > 0:
            _say(
                f"{name} adds to the optimizer's own weight_decay of {float(decay):g}; set one of "
                "the two to 0 unless you want both."
            )


def _say(message: str) -> None:
    rank_zero_warn(message, category=StableLightningWarning)
