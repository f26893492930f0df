"""A classifier that is too sure of itself, with validation and test rows of their own."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from stablelightning.nn.heads import Gaussian
from tests.callbacks.modules import CLASSES, FEATURES, Plain

VALIDATION_ROWS, TEST_ROWS = 61, 45


def rows(count: int, seed: int) -> TensorDataset:
    """Classes drawn from the probabilities of the inputs, so that nobody can be sure of them."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, FEATURES, generator=generator)
    target = torch.multinomial(x[:, :CLASSES].softmax(1), 1, generator=generator)[:, 0]
    return TensorDataset(x, target)


class TooSure(Plain):
    """Its logits are five times those of the classes; training moves them hardly."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Dropout(0.3), nn.Linear(FEATURES, CLASSES))
        with torch.no_grad():
            self.net[1].weight.copy_(5 * torch.eye(CLASSES, FEATURES))
            self.net[1].bias.zero_()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05)

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(rows(40, 0), batch_size=8)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(rows(VALIDATION_ROWS, 1), batch_size=8)

    def test_dataloader(self) -> DataLoader[Any]:
        return DataLoader(rows(TEST_ROWS, 2), batch_size=8)

    predict_dataloader = test_dataloader


class TooSureOfValues(TooSure):
    """A regression whose variance is a hundredth of what its errors say."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Dropout(0.3), nn.Linear(FEATURES, 1))

    def forward(self, x: Tensor) -> Gaussian:
        mean = self.net(x).squeeze(1)
        return Gaussian(mean, torch.full_like(mean, 0.01))

    def loss(self, batch: Any) -> Tensor:
        x, y = batch
        return F.mse_loss(self(x).mean, y.float())
