"""A small network that was trained for one task, and data of another."""

from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

WIDTH = 6


def rows(count: int = 60, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Four features, of which the sign of the first decides between two classes."""
    x = torch.randn(count, 4, generator=torch.Generator().manual_seed(seed))
    return x, (x[:, 0] > 0).long()


class Pretrained(L.LightningModule):
    """Three layers and a head; the second of ``forgetful`` ones has lost the first feature."""

    def __init__(self, *, forgetful: bool = False, count: int = 60) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.count = count
        self.body = nn.Sequential(
            *(nn.Linear(4, WIDTH), nn.BatchNorm1d(WIDTH), nn.Tanh()),
            *(nn.Linear(WIDTH, WIDTH), nn.Tanh()),
            *(nn.Linear(WIDTH, WIDTH), nn.Tanh()),
        )
        self.fc = nn.Linear(WIDTH, 2)
        with torch.no_grad():
            first: Any = self.body[0]
            first.weight.zero_()
            first.weight[:4].copy_(torch.eye(4))
            for place in (3, 5):
                layer: Any = self.body[place]
                layer.weight.copy_(torch.eye(WIDTH))
                layer.bias.zero_()
            if forgetful:
                layer = self.body[3]
                layer.weight[:, 0].zero_()

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.body(x))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", F.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam([p for p in self.parameters() if p.requires_grad], lr=0.01)

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(TensorDataset(*rows(self.count)), batch_size=10, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(TensorDataset(*rows(40, seed=1)), batch_size=20)


class Numbers(Pretrained):
    """The same with a number to predict."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.mse_loss(self(batch[0])[:, 0], batch[1])

    validation_step = None

    def train_dataloader(self) -> DataLoader[Any]:
        x, _ = rows(self.count)
        return DataLoader(TensorDataset(x, x[:, 0].clone()), batch_size=10)

    val_dataloader = None


class Unlabelled(Pretrained):
    """Batches without a target."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self(batch).square().mean()

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(rows(self.count)[0], batch_size=10)
