"""A small module and a trainer that leaves nothing behind, for the tests of the data modules."""

from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

TRAINER = {
    "accelerator": "cpu",
    "max_epochs": 1,
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


class Linear(L.LightningModule):
    """A linear model of the flattened inputs, for classes or for one number."""

    def __init__(self, features: int, outputs: int) -> None:
        super().__init__()
        self.net = nn.Linear(features, outputs)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.net(inputs.flatten(1)).squeeze(-1)

    def loss(self, batch: Any) -> Tensor:
        inputs, target = batch
        measure = nn.functional.mse_loss if target.is_floating_point() else None
        return (measure or nn.functional.cross_entropy)(self(inputs), target)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.loss(batch)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/loss", self.loss(batch))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test/loss", self.loss(batch))

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self(batch if isinstance(batch, Tensor) else batch[0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


def rows_of(loader: Any) -> tuple[Tensor, Tensor]:
    """All the inputs and targets of a loader, in its order."""
    inputs, target = zip(*loader, strict=True)
    return torch.cat(inputs), torch.cat(target)
