"""What the doctor is shown: a model, a batch, and what a good doctor would say."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass
class Patient:
    """One model with its batch.

    Args:
        model: in train mode, as it would be trained.
        batch: inputs and target, or inputs alone.
        loss: takes output and target; ``None`` for what the doctor chooses.
        optimizer: what it would be trained with, where that is part of the case.
    """

    model: nn.Module
    batch: Any
    loss: Callable[[Any, Any], Tensor] | None = None
    optimizer: torch.optim.Optimizer | None = None


@dataclass(frozen=True)
class Case:
    """A patient, and what is wrong with it.

    Args:
        name: names the test; unique in its zoo.
        build: makes the patient from whatever the generators hold.
        codes: any of these is a right answer; empty for a healthy model.
        modules: paths that a finding may name, or a prefix of them; empty where the fault is
            everywhere, or in the batch, the loss or the optimizer.
    """

    name: str
    build: Callable[[], Patient]
    codes: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.name


def made(case: Case, seed: int = 0) -> Patient:
    """The patient of a case, the same each time; generators are left as they were."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return case.build()


def is_right(case: Case, finding: Any) -> bool:
    """Whether a finding names the fault, and where the fault has a place, that place."""
    return finding.code in case.codes and is_located(case, finding)


def is_located(case: Case, finding: Any) -> bool:
    """Whether a finding names the place, or a module inside or around it."""
    return not case.modules or any(
        finding.module == path or finding.module.startswith(f"{path}.") for path in case.modules
    )


# ---- batches -------------------------------------------------------------------------------------


def classes(inputs: Any, count: int = 10) -> tuple[Any, Tensor]:
    """A batch with a class for each row."""
    return inputs, torch.randint(count, (_rows(inputs),))


def numbers(inputs: Any, *shape: int) -> tuple[Any, Tensor]:
    """A batch with standardised regression targets."""
    return inputs, torch.randn(_rows(inputs), *shape)


def _rows(inputs: Any) -> int:
    tensor = next(iter(inputs.values())) if isinstance(inputs, dict) else inputs
    return len(tensor[0] if isinstance(tensor, tuple) else tensor)


def images(rows: int = 16, size: int = 32, channels: int = 3) -> Tensor:
    """Standardised images with structure: blobs that differ from row to row, and some noise.

    White noise is no image: every average over its pixels is the same for all rows, so that any
    convolutional network would seem to collapse on it.
    """
    coarse = torch.randn(rows, channels, 4, 4)
    blobs = F.interpolate(coarse, size=(size, size), mode="bilinear", align_corners=False)
    picture = blobs + 0.3 * torch.randn(rows, channels, size, size)
    return (picture - picture.mean()) / picture.std()


def table(rows: int = 64, columns: int = 20) -> Tensor:
    """Standardised rows of correlated columns."""
    factors = torch.randn(rows, columns) @ torch.randn(columns, columns) / columns**0.5
    return (factors - factors.mean(0)) / factors.std(0)


def series(rows: int = 32, steps: int = 12, columns: int = 8) -> Tensor:
    """Standardised smooth series."""
    walk = torch.randn(rows, steps, columns).cumsum(1)
    return (walk - walk.mean((0, 1))) / walk.std((0, 1))


def tokens(rows: int = 32, steps: int = 12, vocabulary: int = 50) -> Tensor:
    """Rows of tokens."""
    return torch.randint(vocabulary, (rows, steps))
