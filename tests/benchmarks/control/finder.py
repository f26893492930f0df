"""Learning-rate finders on digits: accuracy at what they suggest, beside a grid of rates.

Every run of a seed starts from the same weights and sees the same batches; the rate is constant.
``FindLearningRate`` has no arguments, and Lightning's ``Tuner.lr_find`` none either. Both stand on
weights that ``sl.initialize`` drew; of PyTorch's own the thirty layers learn nothing at any rate,
which the last rows show. The accuracy is that of the test split after the last epoch. The rule was
chosen on the validation data of other networks; nothing here chooses anything.
"""

import copy
import logging
import statistics
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.tuner import Tuner
from torch import Tensor, nn
from torch.utils.data import DataLoader

import stablelightning as sl
from stablelightning.callbacks import FindLearningRate
from stablelightning.data import DigitsData

TITLE = "Learning-rate finders, on digits"

EPOCHS, BATCH, WIDTH = 12, 64, 64
GRID = [10 ** (-5 + 0.5 * n) for n in range(12)]

#: Largest distance from the best of the grid, in points of accuracy.
BOUND = 3.0

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "SGD": torch.optim.SGD,
    "Adam": torch.optim.Adam,
}

#: Depth, and whether ``sl.initialize`` draws the weights.
NETWORKS = {
    "6 layers": (6, True),
    "30 layers": (30, True),
    "30 layers as PyTorch draws them": (30, False),
}


def network(depth: int, *, initialized: bool, seed: int) -> nn.Module:
    """A plain ReLU net."""
    torch.manual_seed(seed)
    hidden = [(nn.Linear(WIDTH, WIDTH), nn.ReLU()) for _ in range(depth - 1)]
    model = nn.Sequential(*(module for pair in hidden for module in pair), nn.Linear(WIDTH, 10))
    if initialized:
        sl.initialize(model, torch.randn(16, 64))
    return model


class Classifier(L.LightningModule):
    """What both finders are given."""

    def __init__(self, model: nn.Module, optimizer: str, lr: float) -> None:
        super().__init__()
        self.model, self.kind, self.lr = model, optimizer, lr

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self.model(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return OPTIMIZERS[self.kind](self.parameters(), lr=self.lr)


class Digits:
    """All of a split in memory, and batches of it in an order that a seed gives."""

    def __init__(self, seed: int) -> None:
        data = DigitsData(held_out=(), batch_size=BATCH, seed=seed)
        data.prepare_data()
        data.setup("fit")
        data.setup("test")
        self.seed = seed
        self.rows = data.train_dataloader().dataset
        self.train = [torch.stack(part) for part in _columns(self.rows)]
        self.test = [torch.stack(part) for part in _columns(data.test_dataloader().dataset)]

    def loader(self) -> DataLoader[Any]:
        order = torch.Generator().manual_seed(self.seed)
        return DataLoader(self.rows, BATCH, shuffle=True, drop_last=True, generator=order)

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """As the loader gives them."""
        order = torch.Generator().manual_seed(self.seed)
        x, y = self.train
        for _ in range(EPOCHS):
            places = torch.randperm(len(x), generator=order)
            for n in range(0, len(x) - BATCH + 1, BATCH):
                yield x[places[n : n + BATCH]], y[places[n : n + BATCH]]


def _columns(rows: Any) -> list[list[Tensor]]:
    return [[torch.as_tensor(row[n]) for row in rows] for n in range(2)]


def accuracy(model: nn.Module, digits: Digits, *, optimizer: str, rate: float) -> float:
    """In percent, after training at a constant rate; 0 where the loss was no number."""
    model = copy.deepcopy(model)
    steps: Any = OPTIMIZERS[optimizer](model.parameters(), lr=rate)
    for x, y in digits.batches():
        loss = F.cross_entropy(model(x), y)
        if not loss.isfinite():
            return 0.0
        steps.zero_grad()
        loss.backward()
        steps.step()
    x, y = digits.test
    with torch.no_grad():
        return 100 * float((model(x).argmax(1) == y).double().mean())


def suggestions(model: nn.Module, digits: Digits, optimizer: str) -> dict[str, float | None]:
    """What the finders say: ours, its valley before the confirming runs, and Lightning's."""
    found: dict[str, float | None] = {}
    for name, settings in (("ours", {}), ("valley alone", {"confirm_steps": 0})):
        find = FindLearningRate(**settings)
        module = Classifier(copy.deepcopy(model), optimizer, lr=1e-3)
        with tempfile.TemporaryDirectory() as folder:
            _trainer(folder, find, max_steps=1).fit(module, digits.loader())
        found[name] = find.suggested
    module = Classifier(copy.deepcopy(model), optimizer, lr=1e-3)
    with tempfile.TemporaryDirectory() as folder:
        finder = Tuner(_trainer(folder, max_epochs=100)).lr_find(module, digits.loader())
    found["Lightning's"] = None if finder is None else finder.suggestion()
    return found


def _trainer(folder: str, *callbacks: L.Callback, **settings: Any) -> L.Trainer:
    return L.Trainer(
        accelerator="cpu",
        logger=False,
        default_root_dir=folder,
        callbacks=list(callbacks),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **settings,
    )


def measure(seeds: int) -> dict[str, Any]:
    """Every network and optimizer: the grid, and the suggestions."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for name in NETWORKS:
        for optimizer in OPTIMIZERS:
            rows.append(_row(name, optimizer, seeds))
            print(_line(rows[-1]), flush=True)
    return {"rows": rows, "grid": GRID, "bound": BOUND, "epochs": EPOCHS}


def _row(name: str, optimizer: str, seeds: int) -> dict[str, Any]:
    depth, initialized = NETWORKS[name]
    row: dict[str, Any] = {"network": name, "optimizer": optimizer, "grid": [], "found": []}
    for seed in range(seeds):
        digits = Digits(seed)
        model = network(depth, initialized=initialized, seed=seed)
        row["grid"].append(
            [accuracy(model, digits, optimizer=optimizer, rate=rate) for rate in GRID]
        )
        found = {}
        for who, rate in suggestions(model, digits, optimizer).items():
            used = 1e-3 if rate is None else rate  # none was found: what was set stays
            reached = accuracy(model, digits, optimizer=optimizer, rate=used)
            found[who] = {"rate": rate, "accuracy": reached}
        row["found"].append(found)
    return row


def best(row: dict[str, Any]) -> tuple[float, float]:
    """The rate of the grid with the best mean accuracy, and that accuracy."""
    means = [statistics.fmean(each) for each in zip(*row["grid"], strict=True)]
    return max(zip(means, GRID, strict=True))[::-1]


def lost(row: dict[str, Any], who: str) -> float:
    """Points of mean accuracy below the best of the grid."""
    return best(row)[1] - statistics.fmean(found[who]["accuracy"] for found in row["found"])


def table(result: dict[str, Any]) -> str:
    """Markdown; the rate in the middle of the seeds, the mean accuracy, and what is lost."""
    return "\n".join(
        [
            "| network, optimizer | best of 12 rates | FindLearningRate | its valley alone "
            "| Lightning's lr_find |",
            "|---|---|---|---|---|",
            *map(_line, result["rows"]),
            "",
            f"In brackets the points below the best of the grid (bound {result['bound']:g}), and "
            "the worst seed beside the best of its own grid.",
        ]
    )


def _line(row: dict[str, Any]) -> str:
    rate, reached = best(row)
    cells = [f"{rate:.1e}: {reached:.1f}"]
    for who in ("ours", "valley alone", "Lightning's"):
        rates = sorted(f[who]["rate"] or 0.0 for f in row["found"])
        values = [f[who]["accuracy"] for f in row["found"]]
        worst = max(max(g) - v for g, v in zip(row["grid"], values, strict=True))
        cells.append(
            f"{rates[len(rates) // 2]:.1e}: {statistics.fmean(values):.1f} "
            f"({lost(row, who):+.1f}; {worst:.1f})"
        )
    return f"| {row['network']}, {row['optimizer']} | {' | '.join(cells)} |"
