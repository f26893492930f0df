"""Modules around which every callback must work."""

from collections.abc import Iterator
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.demos.transformer import LightningTransformer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from tests.callbacks.modules import Plain, data


class Resumable:
    """Batches that go on where they stopped: Lightning keeps the state of loaders that have one."""

    def __init__(self, loader: DataLoader[Any]) -> None:
        self.batches = list(loader)
        self.position = 0

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        for number in range(self.position, len(self.batches)):
            self.position = (number + 1) % len(self.batches)
            yield self.batches[number]

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.position = state["position"]


class Seeded(Plain):
    """Draws its dropout from the number of the batch, so that runs can be compared to the bit."""

    def __init__(self) -> None:
        super().__init__()
        self.net.insert(1, nn.BatchNorm1d(8))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        torch.manual_seed(self.trainer.fit_loop.epoch_loop.total_batch_idx)
        return super().training_step(batch, batch_idx)

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self(batch[0])

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=0.01)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)]

    def train_dataloader(self) -> "Resumable":
        return Resumable(DataLoader(data(24), batch_size=4))

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(data(), batch_size=8)

    def test_dataloader(self) -> DataLoader[Any]:
        """Rows of its own: nothing may be judged by those that it was fitted on."""
        x, y = data().tensors
        return DataLoader(TensorDataset(-x, y), batch_size=8)

    predict_dataloader = test_dataloader


class Breaks(Seeded):
    """Raises in the second batch of one kind of step, with a flag of its own set."""

    def __init__(self, step: str) -> None:
        super().__init__()
        self.breaks = step
        self.net[1].eval()

    def _maybe_break(self, step: str, batch_idx: int) -> None:
        if step == self.breaks and batch_idx == 1:
            raise RuntimeError("broken on purpose")

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self._maybe_break("fit", batch_idx)
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self._maybe_break("validate", batch_idx)
        super().validation_step(batch, batch_idx)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self._maybe_break("test", batch_idx)
        super().test_step(batch, batch_idx)

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        self._maybe_break("predict", batch_idx)
        return self(batch[0])


class LanguageModel(LightningTransformer):
    """The demo, which has no test step and downloads its text, with both mended."""

    def __init__(self) -> None:
        super().__init__(vocab_size=11)

    def prepare_data(self) -> None:
        pass

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        inputs, target = batch
        self.log("loss", F.nll_loss(self(inputs, target), target.view(-1)))

    test_step = validation_step

    def train_dataloader(self) -> DataLoader[Any]:
        tokens = torch.randint(0, 11, (6, 5))
        return DataLoader(TensorDataset(tokens[:, :-1], tokens[:, 1:]), batch_size=4)

    val_dataloader = test_dataloader = predict_dataloader = train_dataloader


class OnlyOneRankReads(Seeded):
    """Its batches cannot be split on process 1 only."""

    def inputs_and_target(self, batch: Any) -> Any:
        if self.trainer.global_rank == 1:
            raise ValueError("broken on process 1")
        return batch


def weights(model: L.LightningModule) -> list[Tensor]:
    return [value.detach().clone() for value in model.state_dict().values()]
