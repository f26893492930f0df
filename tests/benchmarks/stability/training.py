"""The digits, the columns, and ordinary training."""

from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from multiprocessing import get_context
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import stablelightning as sl
from stablelightning.data import DigitsData
from tests.benchmarks.stability import networks
from tests.benchmarks.stability.rows import (
    BATCH_NORM,
    BY_HAND,
    OURS,
    SHALLOW,
    TWO_LAYERS,
    Row,
)

BATCH = 64
#: Rows of the training split that initialize and diagnose are shown.
EXAMPLE = 128
#: A third, so that one image counts for 0.17 points.
TEST_FRACTION = 1 / 3


@dataclass(frozen=True)
class Digits:
    """All ten classes, split once, stratified; pixels standardised by the training images."""

    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


@lru_cache(maxsize=2)
def digits(image: bool) -> Digits:
    data = DigitsData(held_out=(), image=image, val_fraction=0.0, test_fraction=TEST_FRACTION)
    data.setup()
    parts = [data.part(name) for name in ("train", "test")]
    train, test = (part.tensors for part in parts)  # type: ignore[union-attr]
    return Digits(train, test)


@dataclass
class Start:
    """A model before its first step, and what was done to it on the way."""

    model: nn.Module
    notes: dict[str, Any] = field(default_factory=dict)


def start(row: Row, column: str, data: Digits) -> Start:
    """Build the network of a column; torch's generator has been seeded."""
    if column in SHALLOW:
        return Start(row.shallow(1 if column == TWO_LAYERS else 2))
    model = row.network(norm=column == BATCH_NORM)
    if column == BY_HAND:
        networks.draw_by_hand(model, row.activation)
    return ours(row, model, data) if column == OURS else Start(model)


def ours(row: Row, model: nn.Module, data: Digits) -> Start:
    """Initialize, then let the doctor look, and apply what can be applied."""
    inputs, target = (part[:EXAMPLE] for part in data.train)
    report = sl.initialize(model, inputs)
    drawn: dict[str, int] = {}
    for entry in report.rows:
        drawn[entry.distribution] = drawn.get(entry.distribution, 0) + 1
    diagnosis = sl.diagnose(
        model, (inputs, target), F.cross_entropy, optimizer=row.optimizer_for(model)
    )
    found = diagnosis
    if any(finding.cure for finding in diagnosis.findings):
        diagnosis = diagnosis.apply()
    return Start(
        model,
        {
            "initialized": drawn,
            "found": [f"{f.code} ({f.severity})" for f in found.findings],
            "applied": [str(treatment) for treatment in diagnosis.treatments],
            "left": [f"{f.code} ({f.severity})" for f in diagnosis.findings]
            if diagnosis is not found
            else [],
        },
    )


@dataclass(frozen=True)
class Result:
    """One training.

    Args:
        row: name of the row.
        column: of the table.
        seed: of the weights and of the order of the batches.
        accuracy: on the test images after the last epoch, in percent.
        loss: of the last batch.
        notes: of our column.
    """

    row: str
    column: str
    seed: int
    accuracy: float
    loss: float
    notes: dict[str, Any]


def train(row: Row, column: str, seed: int) -> Result:
    """Train one network of one column."""
    data = digits(row.image)
    torch.manual_seed(seed)
    begun = start(row, column, data)
    loss = _train(row, begun.model, data.train, seed=seed)
    inputs, target = data.test
    begun.model.eval()
    with torch.no_grad():
        right = begun.model(inputs).argmax(1) == target
    return Result(row.name, column, seed, 100 * right.double().mean().item(), loss, begun.notes)


def _train(row: Row, model: nn.Module, data: tuple[Tensor, Tensor], *, seed: int) -> float:
    inputs, target = data
    order = torch.Generator().manual_seed(seed)
    optimizer = row.optimizer_for(model)
    model.train()
    loss = torch.zeros(())
    for _ in range(row.epochs):
        for batch in torch.randperm(len(inputs), generator=order).split(BATCH):
            loss = F.cross_entropy(model(inputs[batch]), target[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return float(loss.detach())


def train_all(
    rows: Sequence[Row], columns: Sequence[str], *, seeds: int, processes: int
) -> Generator[Result, None, None]:
    """Every row, column and seed, as they finish; seed by seed, so that a part is a table too."""
    tasks = [(r, c, s) for s in range(seeds) for r in rows for c in columns]
    if processes <= 1:
        _prepare()
        yield from (train(*task) for task in tasks)
        return
    pool = ProcessPoolExecutor(processes, get_context("spawn"), initializer=_prepare)
    try:
        futures: list[Future[Result]] = [pool.submit(train, *task) for task in tasks]
        yield from (future.result() for future in as_completed(futures))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _prepare() -> None:
    torch.set_num_threads(1)
    # Numbers below 1e-38 are slow on a CPU, and nothing here lives on them.
    torch.set_flush_denormal(True)


def as_plain(results: Iterable[Result]) -> list[dict[str, Any]]:
    return [asdict(result) for result in results]
