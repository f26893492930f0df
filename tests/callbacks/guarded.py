"""Models and runs for the tests of the guard: bad batches, and the same data without them."""

import copy
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchmetrics import MeanMetric

from tests.callbacks.modules import quiet_trainer

FEATURES, ROWS = 4, 8

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.01),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "adamw fused": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
    "sgd fused": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, fused=True),
    "nadam": lambda p: torch.optim.NAdam(p, lr=0.01),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.5),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.05),
}


def batches(number: int, *, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(ROWS, FEATURES, generator=generator) for _ in range(number)]


def poisoned(good: list[Tensor], places: dict[int, float]) -> list[Tensor]:
    """The same batches with bad ones put in before those at ``places``."""
    given = []
    for number, batch in enumerate(good):
        if number in places:
            bad = torch.ones(ROWS, FEATURES) * 0.3
            bad[0, 0] = places[number]
            given.append(bad)
        given.append(batch)
    return given


class Guarded(L.LightningModule):
    """Batch norm, dropout, a schedule by steps, logged means and a metric."""

    def __init__(self, data: list[Tensor], optimizer: str = "adam") -> None:
        super().__init__()
        torch.manual_seed(3)
        self.net = nn.Sequential(
            nn.Linear(FEATURES, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.3), nn.Linear(6, 1)
        )
        self.data = data
        self.optimizer = optimizer
        self.metric = MeanMetric(nan_strategy="disable")
        self.means: list[dict[str, Tensor]] = []

    def loss(self, batch: Any) -> Tensor:
        return F.mse_loss(self.net(batch), batch.sum(1, keepdim=True))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = self.loss(batch)
        self.log("mean", loss, on_epoch=True, on_step=True)
        self.log("largest", loss, on_epoch=True, on_step=False, reduce_fx="max")
        self.metric.update(loss)
        self.log("metric", self.metric, on_step=False, on_epoch=True)
        return loss

    def on_train_epoch_end(self) -> None:
        self.means.append({})

    def configure_optimizers(self) -> Any:
        optimizer = OPTIMIZERS[self.optimizer](self.parameters())
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, 0.05, total_steps=200, cycle_momentum=False
        )
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    def train_dataloader(self) -> Any:
        return DataLoader(self.data, batch_size=None)  # type: ignore[arg-type]


def fit(model: L.LightningModule, *callbacks: L.Callback, **settings: Any) -> L.Trainer:
    torch.manual_seed(11)
    trainer = quiet_trainer(*callbacks, **{"max_epochs": 2, **settings})
    trainer.fit(model)
    model.draw = torch.rand(2)
    return trainer


def outcome(trainer: L.Trainer) -> dict[str, Any]:
    """All that must be as if the bad batches had not been."""
    model = trainer.lightning_module
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return copy.deepcopy(
        {
            "weights": dict(model.state_dict()),
            "optimizers": [o.state_dict() for o in trainer.optimizers],
            "schedules": [c.scheduler.state_dict() for c in trainer.lr_scheduler_configs],
            "scaler": None if scaler is None else scaler.state_dict(),
            "metrics": dict(trainer.callback_metrics),
            "global_step": trainer.global_step,
            "draw": model.draw,
        }
    )


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def different(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    """Names of what differs; an empty list is the proof."""
    return [name for name in a if not same(a[name], b[name])]
