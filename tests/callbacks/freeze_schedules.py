"""One small training under any scheduler of torch, with its rates written down at every step."""

from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from stablelightning.callbacks.freeze_base import Freezing
from tests.callbacks.modules import quiet_trainer
from tests.contracts.models import Seeded
from tests.model.test_learning_rate import SCHEDULERS

#: Six batches an epoch; one more of the four groups is open in each.
EPOCHS, STEPS = 4, 24


class Scheduled(Seeded):
    """Four depth groups with a batch norm, two parameter groups, and a scheduler by its name."""

    def __init__(self, schedule: str) -> None:
        super().__init__()
        self.net = nn.Sequential(
            *(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh()),
            *(nn.Dropout(0.2), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3)),
        )
        self.schedule = schedule

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.log("flat", 1.0)  # never better: a plateau
        return 0.1 * super().training_step(batch, batch_idx)

    def optimized(self) -> list[nn.Parameter]:
        return list(self.parameters())

    def configure_optimizers(self) -> Any:
        weights = [p for p in self.optimized() if p.ndim > 1]
        others = [p for p in self.optimized() if p.ndim == 1]
        groups = [{"params": weights, "lr": 0.5, "weight_decay": 0.01}]
        optimizer = torch.optim.SGD([*groups, {"params": others, "lr": 0.05}], momentum=0.9)
        schedule = SCHEDULERS[self.schedule](optimizer)
        config = {"scheduler": schedule, "interval": "step", "monitor": "flat"}
        return {"optimizer": optimizer, "lr_scheduler": config}


class Watch(L.Callback):
    """At each step: the rate of each parameter by name, and which are trained."""

    def __init__(self) -> None:
        self.rates: dict[int, dict[str, float]] = {}
        self.trained: dict[int, set[str]] = {}

    def on_before_optimizer_step(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        optimizer: torch.optim.Optimizer,
    ) -> None:
        names = {id(p): name for name, p in pl_module.named_parameters()}
        held = [(p, group) for group in optimizer.param_groups for p in group["params"]]
        assert len(held) == len({id(p) for p, _ in held})
        step = trainer.global_step
        self.rates[step] = {names[id(p)]: float(group["lr"]) for p, group in held}
        self.trained[step] = {n for n, p in pl_module.named_parameters() if p.requires_grad}


def trained(
    schedule: str,
    *callbacks: L.Callback,
    resume: Path | None = None,
    keep: Path | None = None,
    kind: type[Scheduled] = Scheduled,
) -> tuple[Scheduled, Watch]:
    """Train, and keep a checkpoint of every step, or go on from one."""
    torch.manual_seed(0 if resume is None else 1)
    model, watch = kind(schedule), Watch()
    every = {"every_n_train_steps": 1, "save_top_k": -1}
    saves = [] if keep is None else [ModelCheckpoint(keep, "{step}", **every)]
    trainer = quiet_trainer(
        *callbacks, watch, *saves, max_epochs=EPOCHS, enable_checkpointing=bool(saves)
    )
    trainer.fit(model, ckpt_path=resume, weights_only=None if resume is None else True)
    assert trainer.global_step == STEPS
    return model, watch


def factors_by_name(plan: Freezing) -> dict[str, float]:
    """The factor of each parameter, by the depth group that it is in."""
    factors = plan.factors(len(plan.found)) or [1.0] * len(plan.found)
    pairs = zip(plan.found, factors, strict=True)
    return {name: factor for group, factor in pairs for name in group.parameters}


def weights(model: nn.Module) -> list[torch.Tensor]:
    return [value.detach().clone() for value in model.state_dict().values()]
