"""Modules whose groups are opened in tests, and what a run of them left."""

from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from tests.contracts.models import Resumable

FEATURES, WIDTH, CLASSES = 4, 6, 3

#: The depth groups of Deep, from input to output.
GROUPS = ["net.0", "net.3", "net.7", "net.10"]


def rows(number: int = 24, *, seed: int = 7) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(number, FEATURES, generator=generator)
    return TensorDataset(x, torch.randint(0, CLASSES, (number,), generator=generator))


class Deep(L.LightningModule):
    """Four groups with norms and dropout between them; six steps an epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            *(nn.Linear(FEATURES, WIDTH), nn.BatchNorm1d(WIDTH), nn.Tanh()),
            *(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH), nn.Tanh(), nn.Dropout(0.2)),
            *(nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH), nn.Tanh()),
            nn.Linear(WIDTH, CLASSES),
        )
        nn.init.zeros_(self.net[3].bias)  # equal values, other parameters
        nn.init.zeros_(self.net[7].bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        torch.manual_seed(self.trainer.fit_loop.epoch_loop.total_batch_idx)  # of the dropout
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", F.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=0.01)

    def train_dataloader(self) -> Any:
        return Resumable(DataLoader(rows(), batch_size=4))

    def val_dataloader(self) -> Any:
        return DataLoader(rows(8), batch_size=4)


def made(kind: type[L.LightningModule] = Deep, *arguments: Any) -> Any:
    """A module, the same at every call."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return kind(*arguments)


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    """The tensors that are not the same to the bit."""
    return {name for name, value in before.items() if not torch.equal(value, after[name])}


def groups_of(names: set[str]) -> list[str]:
    """The groups of Deep in which parameters or buffers are."""
    starts = [int(group.partition(".")[2]) for group in GROUPS]
    places = {max(s for s in starts if s <= int(name.split(".")[1])) for name in names}
    return [f"net.{place}" for place in sorted(places)]
