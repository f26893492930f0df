"""What several processes predict and test, for the tests of both; the data divides by nothing."""

import os
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from stablelightning.callbacks import EstimateUncertainty, WritePredictions
from stablelightning.errors import StableLightningError
from stablelightning.module import StableModule
from stablelightning.nn import MLP
from tests.callbacks.modules import Plain, data, quiet_trainer

#: No multiple of two or three processes, nor of the batches.
ROWS, BATCH = 22, 5

#: Where the processes of a test find the folder to write to.
FOLDER = "STABLELIGHTNING_TEST_FOLDER"


class Predicts(Plain):
    """Says of each row the number that it was given, whatever the order."""

    def __init__(self, *, shuffle: bool = False, how: str = "rows") -> None:
        super().__init__()
        self.shuffle, self.how = shuffle, how

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        if self.how == "breaks" and self.trainer.global_rank == 1 and batch_idx == 1:
            # Said here: whichever process ends first is the one whose error is told.
            Path(os.environ[FOLDER], "broken.txt").touch()
            raise RuntimeError("broken on purpose")
        inputs, number = batch
        return {"number": number, "score": self(inputs)}

    def predict_dataloader(self) -> Any:
        if self.how == "stream":
            return DataLoader(Stream(), batch_size=BATCH)
        if self.how == "several":
            return [self._rows(ROWS), self._rows(7)]
        return self._rows(ROWS)

    def _rows(self, rows: int) -> DataLoader[Any]:
        inputs = data(rows).tensors[0]
        numbered = TensorDataset(inputs, torch.arange(rows))
        return DataLoader(numbered, batch_size=BATCH, shuffle=self.shuffle)


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return ((row, torch.tensor(i)) for i, row in enumerate(data(ROWS).tensors[0]))


class Tells(Predicts):
    """A stream of which each process reads its share, and says which rows these are."""

    def __init__(self) -> None:
        super().__init__(how="stream")

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        inputs, number = batch
        mine = number % self.trainer.world_size == self.trainer.global_rank
        return {"index": number[mine], "number": number[mine], "score": self(inputs[mine])}


class Words(Dataset[Any]):
    """Rows with a name each, in a dict."""

    def __len__(self) -> int:
        return ROWS

    def __getitem__(self, place: int) -> dict[str, Any]:
        inputs, target = data(ROWS)[place]
        return {"x": inputs, "y": target, "name": f"row {place}"}


class NamedRows(StableModule):
    """Holds every name against its row: a name too many is an error."""

    def loss(self, batch: Any) -> Tensor:
        assert len(batch["name"]) == len(batch["x"])
        return nn.functional.cross_entropy(self(batch["x"]), batch["y"])


def network(kind: type[StableModule] = StableModule) -> StableModule:
    torch.manual_seed(1)
    return kind(MLP(4, 3, hidden=[8], dropout=0.5), task="classification", samples=3)


def several(*callbacks: L.Callback, world: int, **settings: Any) -> L.Trainer:
    parallel = {"strategy": "ddp", "devices": world} if world > 1 else {}
    return quiet_trainer(*callbacks, **parallel, **settings)


def tested(module: L.LightningModule, loaders: Any, *, world: int, stage: str) -> dict[str, float]:
    """What a test logs, and the plain scores of EstimateUncertainty beside it."""
    trainer = several(EstimateUncertainty(3), world=world)
    getattr(trainer, stage)(module, loaders, verbose=False)
    logged = {name: value.item() for name, value in trainer.callback_metrics.items()}
    sampled = ("_mc", "epistemic", "aleatoric", "total", "variation_ratio")
    return {name: v for name, v in logged.items() if not name.split("/")[1].endswith(sampled)}


def all_tests(world: int) -> dict[str, dict[str, float]]:
    """Every way of testing, on any number of processes."""
    rows = DataLoader(data(ROWS), batch_size=BATCH)
    few = DataLoader(data(4), batch_size=1)  # 3 processes: the second batch of two is all repeated
    words = DataLoader(Words(), batch_size=BATCH)
    numbers = StableModule(MLP(4, 1, hidden=[8]), task="regression")
    numbers.load_state_dict(
        {name: torch.full_like(value, 0.1) for name, value in numbers.state_dict().items()}
    )
    regression = DataLoader(data(ROWS, kind="numbers"), batch_size=BATCH)
    return {
        "classes": tested(network(), rows, world=world, stage="test"),
        "validation": tested(network(), rows, world=world, stage="validate"),
        "few rows": tested(network(), few, world=world, stage="test"),
        "two loaders": tested(network(), [rows, few], world=world, stage="test"),
        "words": tested(network(NamedRows), words, world=world, stage="test"),
        "regression": tested_plain(numbers, regression, world=world),
        "part of it": tested_plain(network(), rows, world=world, limit_test_batches=1),
    }


def tested_plain(
    module: L.LightningModule, loaders: Any, *, world: int, **settings: Any
) -> dict[str, float]:
    trainer = several(world=world, **settings)
    trainer.test(module, loaders, verbose=False)
    return {name: value.item() for name, value in trainer.callback_metrics.items()}


def written(
    kind: type[L.LightningModule],
    *others: L.Callback,
    name: str,
    world: int,
    seed: int = 0,
    **settings: Any,
) -> tuple[str | None, int] | str:
    """The path and the rows of what was written, or why nothing was."""
    torch.manual_seed(0)
    module = kind(**settings)
    torch.manual_seed(seed)
    write = WritePredictions(os.environ[FOLDER], name=f"{name}.parquet")
    try:
        several(*others, write, world=world).predict(module, return_predictions=False)
    except StableLightningError as error:
        return str(error)
    return str(write.path), write.rows


def report_of(rank: int, world: int) -> dict[str, Any]:
    """Everything that tests of several processes look at."""
    uncertain = EstimateUncertainty(3)
    predictions = {
        "rows": written(Predicts, name="rows", world=world),
        "shuffled": written(Predicts, name="shuffled", world=world, shuffle=True),
        "several": written(Predicts, name="several", world=world, how="several"),
        "tells": written(Tells, name="tells", world=world),
        "sampled": written(Plainly, uncertain, name="sampled", world=world),
        "stream": written(Predicts, name="stream", world=world, how="stream"),
        "own shuffle": written(Predicts, name="own", world=world, shuffle=True, seed=rank),
    }
    return {"predictions": predictions, "tests": all_tests(world)}


class Plainly(Predicts):
    """With nothing but a forward to call."""

    predict_step = L.LightningModule.predict_step

    def forward(self, x: Any) -> Tensor:
        return self.net(x)


def two(rank: int) -> dict[str, Any]:
    return report_of(rank, 2)


def three(rank: int) -> dict[str, Any]:
    return report_of(rank, 3)


def one_breaks(rank: int) -> None:
    write = WritePredictions(os.environ[FOLDER])
    several(write, world=2).predict(Predicts(how="breaks"), return_predictions=False)


def folder_for(path: Path) -> str:
    os.environ[FOLDER] = str(path)
    return str(path)
