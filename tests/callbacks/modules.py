"""Modules as users write them, for the tests of the callbacks."""

import tempfile
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from stablelightning.nn.heads import Gaussian, GaussianHead

FEATURES, CLASSES = 4, 3


class Plain(L.LightningModule):
    """An ordinary classifier that knows nothing of this package."""

    def __init__(self, outputs: int = CLASSES, rate: float = 0.5) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(FEATURES, 8), nn.Tanh(), nn.Dropout(rate), nn.Linear(8, outputs)
        )
        self.test_steps = 0

    def forward(self, x: Tensor) -> Any:
        return self.net(x)

    def loss(self, batch: Any) -> Tensor:
        x, y = batch
        return F.cross_entropy(self(x), y)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.loss(batch)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.loss(batch))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.test_steps += 1
        self.log("test_loss", self.loss(batch))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class SeveralLoaders(Plain):
    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        super().test_step(batch, batch_idx)


class AnyTest(Plain):
    """A test step that takes whatever comes."""

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.test_steps += 1


class Regressor(AnyTest):
    def __init__(self) -> None:
        super().__init__(outputs=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).squeeze(1)


class NoisyRegressor(AnyTest):
    def __init__(self) -> None:
        super().__init__(outputs=8)
        self.head = GaussianHead(8)

    def forward(self, x: Tensor) -> Gaussian:
        return self.head(self.net(x))


class Segmenter(AnyTest):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Dropout2d(), nn.Conv2d(4, 3, 1))


def data(rows: int = 20, *, kind: str = "classes") -> TensorDataset:
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(rows, FEATURES, generator=generator)
    if kind == "classes":
        return TensorDataset(x, torch.randint(0, CLASSES, (rows,), generator=generator))
    return TensorDataset(x, torch.randn(rows, generator=generator))


def loader(rows: int = 20, *, kind: str = "classes", batch_size: int = 8) -> DataLoader[Any]:
    return DataLoader(data(rows, kind=kind), batch_size=batch_size)


class OtherTask(L.LightningDataModule):
    """Another task of the same inputs, with fewer classes."""

    num_outputs = CLASSES - 1

    def train_dataloader(self) -> DataLoader[Any]:
        x, y = data(24).tensors
        return DataLoader(TensorDataset(x, y % (CLASSES - 1)), batch_size=8, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        x, y = data(16).tensors
        return DataLoader(TensorDataset(x, y % (CLASSES - 1)), batch_size=8)


def quiet_trainer(*callbacks: L.Callback, **settings: Any) -> L.Trainer:
    """A Trainer that writes nothing here, and says nothing."""
    defaults: dict[str, Any] = {
        "accelerator": "cpu",
        "default_root_dir": tempfile.mkdtemp(),  # where a guard leaves its events
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    if settings.get("barebones"):
        defaults = {"accelerator": "cpu", "devices": 1}
    return L.Trainer(callbacks=list(callbacks), **{**defaults, **settings})
