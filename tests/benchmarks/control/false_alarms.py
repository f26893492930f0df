"""Healthy runs whose losses are heavy-tailed: how many steps a guard skips, and at what cost.

Five runs that a naive threshold would stumble over, each with and without ``GuardTraining`` (no
arguments) from the same weights and on the same batches. Nothing is wrong in any of them: every
skipped step is a false alarm.
"""

import logging
import statistics
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from stablelightning.callbacks.guard import GuardTraining
from stablelightning.data import DigitsData

TITLE = "False alarms in five healthy runs with heavy-tailed losses"

STEPS = 2000
BATCH = 32

#: Largest share of the steps that may be skipped.
BOUND = 0.001

#: The digit of which few are left, and how many of the training images are it.
RARE, RARE_SHARE = 9, 0.01


@dataclass
class Case:
    """One healthy run.

    Args:
        network: to be trained.
        train: its training rows.
        test: rows that it never sees.
        loss: of its output and the target.
        score: of its output and the target, in percent, or as an error.
        learning_rate: of Adam.
        disturb: what is done to some of the batches.
    """

    network: nn.Module
    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy
    score: Callable[[Tensor, Tensor], float] = lambda out, y: _accuracy(out, y)
    learning_rate: float = 2e-3
    disturb: Callable[[Tensor, int], Tensor] = lambda x, step: x


def _accuracy(output: Tensor, target: Tensor) -> float:
    return 100 * float((output.argmax(1) == target).float().mean())


def _recall(output: Tensor, target: Tensor) -> float:
    rare = target == RARE
    return 100 * float((output.argmax(1)[rare] == RARE).float().mean())


def _digits(seed: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    data = DigitsData(held_out=(), seed=seed)
    data.prepare_data()
    data.setup("fit")
    data.setup("test")
    parts = []
    for name in ("train", "test"):
        inputs, target = zip(*data.part(name), strict=True)
        parts.append((torch.stack(inputs), torch.stack(target)))
    return parts[0], parts[1]


def _mlp(inputs: int = 64, outputs: int = 10) -> nn.Module:
    layers = (nn.Linear(inputs, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU())
    return nn.Sequential(*layers, nn.Linear(128, outputs))


def rare_class(seed: int) -> Case:
    """Nines are one in a hundred; the score is their recall."""
    (x, y), test = _digits(seed)
    nines = (y == RARE).nonzero()[:, 0]
    others = (y != RARE).nonzero()[:, 0]
    kept = torch.cat([others, nines[: max(1, round(RARE_SHARE * len(others)))]])
    return Case(_mlp(), (x[kept], y[kept]), test, score=_recall)


def hard_batches(seed: int) -> Case:
    """One batch in a hundred is of digits under noise of twice their own spread."""
    train, test = _digits(seed)

    def disturb(x: Tensor, step: int) -> Tensor:
        generator = torch.Generator().manual_seed(step)
        noise = torch.randn(x.shape, generator=generator)
        return x + 2 * noise if torch.rand((), generator=generator) < 0.01 else x

    return Case(_mlp(), train, test, disturb=disturb)


def label_noise(seed: int) -> Case:
    """One label in ten is drawn at random."""
    (x, y), test = _digits(seed)
    generator = torch.Generator().manual_seed(seed)
    wrong = torch.rand(len(y), generator=generator) < 0.1
    y = torch.where(wrong, torch.randint(10, y.shape, generator=generator), y)
    return Case(_mlp(), (x, y), test)


class NextCharacter(nn.Module):
    """A recurrent network that is asked for every next character."""

    def __init__(self, characters: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(characters, 32)
        self.recurrent = nn.GRU(32, 48, batch_first=True)
        self.head = nn.Linear(48, characters)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.recurrent(self.embedding(x))
        return self.head(states).transpose(1, 2)


def language(seed: int) -> Case:
    """Next characters of this project's documentation, tables and formulas included."""
    text = _text()
    characters = {c: n for n, c in enumerate(sorted(set(text)))}
    codes = torch.tensor([characters[c] for c in text])
    rows = codes[: len(codes) // 25 * 25].view(-1, 25)
    rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))]
    cut = len(rows) * 4 // 5
    train, test = ((part[:, :-1], part[:, 1:]) for part in (rows[:cut], rows[cut:]))
    return Case(NextCharacter(len(characters)), train, test)


@cache
def _text() -> str:
    pages = sorted((Path(__file__).parents[3] / "docs").glob("*.md"))
    return "".join(page.read_text(encoding="utf-8") for page in pages)


def outliers(seed: int) -> Case:
    """A regression whose noise is Student's with two degrees of freedom: no finite variance.

    The score is the median absolute error over what the best constant would have.
    """
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(3000, 16, generator=generator)
    direction = torch.randn(16, generator=generator) / 4
    clean = torch.tanh(x @ direction) * 3
    normal = torch.randn(3000, 3, generator=generator)
    noise = normal[:, 0] / normal[:, 1:].square().mean(1).sqrt()
    y = (clean + noise)[:, None]

    def score(output: Tensor, target: Tensor) -> float:
        return 100 * float((output - target).abs().median() / target.abs().median())

    rows = (x[:2400], y[:2400])
    held = (x[2400:], clean[2400:, None])
    return Case(_mlp(16, 1), rows, held, F.mse_loss, score, learning_rate=1e-3)


CASES: dict[str, tuple[Callable[[int], Case], str]] = {
    "a class of 1%": (rare_class, "its recall, %"),
    "1% hard batches": (hard_batches, "accuracy, %"),
    "10% wrong labels": (label_noise, "accuracy, %"),
    "next characters": (language, "accuracy, %"),
    "regression, infinite variance": (outliers, "median error, % of the constant's"),
}


class Training(L.LightningModule):
    """What a case trains."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.network, self.case = case.network, case

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        step = self.trainer.fit_loop.epoch_loop.total_batch_idx
        return self.case.loss(self.network(self.case.disturb(x, step)), y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=self.case.learning_rate)


def train(name: str, *, seed: int, guarded: bool) -> dict[str, float]:
    """The score, and what the guard did."""
    torch.manual_seed(seed)
    case = CASES[name][0](seed)
    guard = GuardTraining()
    loader = DataLoader(
        TensorDataset(*case.train),
        batch_size=BATCH,
        shuffle=True,
        drop_last=True,
        generator=torch.Generator().manual_seed(seed),
    )
    with tempfile.TemporaryDirectory() as folder:
        L.Trainer(
            accelerator="cpu",
            max_steps=STEPS,
            max_epochs=-1,
            logger=False,
            default_root_dir=folder,
            callbacks=[guard] if guarded else [],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        ).fit(Training(case), loader)
    x, y = case.test
    with torch.no_grad():
        score = case.score(case.network.eval()(x), y)
    found = {"score": score}
    if guarded:
        found |= {"skipped": float(guard.skipped), "rollbacks": float(guard.rollbacks)}
    return found


def measure(seeds: int) -> dict[str, Any]:
    """Every case with paired seeds."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    rows = list(_rows(seeds))
    share = sum(_skipped(row) for row in rows) / (len(rows) * seeds * STEPS)
    largest = max(_skipped(row) for row in rows) / (seeds * STEPS)
    return {"rows": rows, "steps": STEPS, "share": share, "largest_share": largest, "bound": BOUND}


def _rows(seeds: int) -> Iterator[dict[str, Any]]:
    for name in CASES:
        row: dict[str, Any] = {"case": name, "score": CASES[name][1], "steps": STEPS * seeds}
        for way, guarded in (("guarded", True), ("unguarded", False)):
            row[way] = [train(name, seed=seed, guarded=guarded) for seed in range(seeds)]
        print(_line(row), flush=True)
        yield row


def _skipped(row: dict[str, Any]) -> float:
    return sum(run["skipped"] for run in row["guarded"])


def table(result: dict[str, Any]) -> str:
    """Markdown; one row per case."""
    lines = [
        "| healthy run | steps | skipped | share | score | guarded | unguarded |",
        "|---|---|---|---|---|---|---|",
        *map(_line, result["rows"]),
        "",
        f"Of all steps {result['share']:.3%} were skipped, of a kind of run "
        f"{result['largest_share']:.3%} at most (bound {result['bound']:.1%}).",
    ]
    return "\n".join(lines)


def _line(row: dict[str, Any]) -> str:
    scores = [
        f"{statistics.fmean(run['score'] for run in row[way]):.1f}"
        for way in ("guarded", "unguarded")
    ]
    skipped = _skipped(row)
    cells = [row["case"], f"{row['steps']:,}", f"{skipped:.0f}", f"{skipped / row['steps']:.3%}"]
    return f"| {' | '.join([*cells, row['score'], *scores])} |"
