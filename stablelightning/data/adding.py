"""The adding problem: whether a network remembers two numbers over a long sequence."""

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from stablelightning.data.base import Part, SplitDataModule, at_least

#: Mean squared error of one who always says 1, the mean: twice the variance of a uniform number.
BASELINE_MSE = 1 / 6

_LEAST_LENGTH = 2  # one place in each half
_LEAST_ROWS = 10


class AddingData(SplitDataModule):
    """Sequences of numbers of which two are marked: the target is their sum. Drawn from a seed.

    Each step is a pair: a number, uniform in [0, 1), and a mark, which is 1 at one step of the
    first half and at one of the second, and 0 at all others. What was marked first must be kept
    over many steps, and its gradient must come back all that way. A network that has not learned it
    says 1, with a mean squared error of 1/6, ``BASELINE_MSE``; below 0.01 the problem counts as
    solved.

    Batches are ``(inputs, target)``: float32 ``(B, length, 2)`` and ``(B,)`` in [0, 2).

    Args:
        length: steps of a sequence, >= 2; the longer, the harder.
        rows: sequences of all splits together, >= 10.
        batch_size: sequences of a batch, on each process.
        val_fraction: share of the sequences that validate, in [0, 1).
        test_fraction: share of the sequences that test, in [0, 1).
        seed: of the sequences, >= 0; the same seed gives the same ones everywhere.
        num_workers: processes that load data; 0 loads in the main process.

    Raises:
        RecipeError: a setting is out of its range.

    Source:
        Hochreiter, Schmidhuber 1997, Long short-term memory, Neural Computation 9, section 5.4; in
        the form of Le, Jaitly, Hinton 2015, arXiv:1504.00941, with numbers in [0, 1].

    Example:
        >>> data = AddingData(length=100, rows=500, batch_size=20)
        >>> inputs, target = next(iter(data.train_dataloader()))
        >>> inputs.shape, bool(torch.allclose(inputs.prod(2).sum(1), target))
        (torch.Size([20, 100, 2]), True)
    """

    def __init__(
        self,
        *,
        length: int = 200,
        rows: int = 12_000,
        batch_size: int = 32,
        val_fraction: float = 0.1,
        test_fraction: float = 0.1,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        at_least("length", length, _LEAST_LENGTH)
        at_least("rows", rows, _LEAST_ROWS)
        super().__init__(
            batch_size=batch_size,
            val_fraction=val_fraction,
            test_fraction=test_fraction,
            seed=seed,
            num_workers=num_workers,
        )
        self.length = length
        self.rows = rows
        self._drawn: tuple[Tensor, Tensor] | None = None
        self._test_rows = torch.arange(*self._range("test"))

    def setup(self, stage: str | None = None) -> None:
        """Draw the sequences, once."""
        self._sequences()

    @property
    def num_features(self) -> int:
        """Numbers of one step: a number and its mark."""
        return 2

    @property
    def num_outputs(self) -> int:
        """Numbers that a model should give for a sequence: the sum."""
        return 1

    @property
    def test_rows(self) -> Tensor:
        """Row of every test sequence among all that were drawn."""
        return self._test_rows

    def part(self, name: Part) -> Dataset[Any] | None:
        """Return the sequences of one split and their sums; ``None`` if it has none."""
        first, end = self._range(name)
        if first == end:
            return None
        inputs, target = self._sequences()
        return TensorDataset(inputs[first:end], target[first:end])

    def _range(self, name: Part) -> tuple[int, int]:
        """Rows are independent, so that the first ones can train and the last ones test."""
        test = round(self.rows * self.test_fraction)
        val = round(self.rows * self.val_fraction)
        ends = {"train": self.rows - val - test, "val": self.rows - test, "test": self.rows}
        starts = {"train": 0, "val": ends["train"], "test": ends["val"]}
        return starts[name], ends[name]

    def _sequences(self) -> tuple[Tensor, Tensor]:
        if self._drawn is None:
            generator = torch.Generator().manual_seed(self.seed)
            numbers = torch.rand(self.rows, self.length, generator=generator)
            half = self.length // 2
            first = torch.randint(half, (self.rows, 1), generator=generator)
            second = torch.randint(half, self.length, (self.rows, 1), generator=generator)
            places = torch.cat([first, second], 1)
            marks = torch.zeros_like(numbers).scatter_(1, places, 1.0)
            target = numbers.gather(1, places).sum(1)
            self._drawn = torch.stack([numbers, marks], 2), target
        return self._drawn
