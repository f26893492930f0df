"""How long a prediction takes: one pass and Monte Carlo dropout, as trained and folded."""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from stablelightning.errors import DataError, ModelError, NothingRandomError, RecipeError
from stablelightning.model.fold import fold_batch_norm
from stablelightning.model.folding import FoldReport
from stablelightning.model.generators import undisturbed_generators
from stablelightning.model.inputs import arguments_of, leading_inputs
from stablelightning.model.modules import detached_copy
from stablelightning.model.rows import count_rows
from stablelightning.model.sample import sample_predictions

#: A median of fewer rounds says little; of more, nothing new.
_FEWEST, _MOST = 3, 50
#: Calls in a turn, of which the fastest counts: whoever interrupts one seldom interrupts three.
_CALLS = 3
_MILLISECONDS = 1e3


@dataclass(frozen=True)
class Latency:
    """Medians of one batch size, in seconds a batch; ``None`` where nothing was measured.

    Args:
        batch_size: rows.
        one_pass: a deterministic pass.
        one_pass_folded: the same with batch norms folded.
        sampled: all samples of Monte Carlo dropout.
        sampled_folded: the same with batch norms folded.
    """

    batch_size: int
    one_pass: float
    one_pass_folded: float | None = None
    sampled: float | None = None
    sampled_folded: float | None = None


@dataclass
class LatencyReport:
    """What :func:`measure_latency` found; ``print`` shows it as a table in milliseconds.

    Args:
        rows: one for each batch size.
        samples: of Monte Carlo dropout.
        rounds: medians are over so many; every contender runs once in each.
        device: what it ran on, such as ``"cpu, 4 threads"``.
        folding: what could be folded; ``None`` where folding was refused.
        notes: what was not measured, and why.
    """

    rows: list[Latency]
    samples: int
    rounds: int
    device: str
    folding: FoldReport | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def folded(self) -> int:
        """How many batch norms were folded."""
        return 0 if self.folding is None else len(self.folding.folded)

    def to_dict(self) -> dict[str, Any]:
        """Plain types, ready for JSON; times in seconds."""
        return asdict(self)

    def numbers(self) -> dict[str, float]:
        """The medians in milliseconds under ``latency/<what>_ms/<batch size>``."""
        found = {}
        for row in self.rows:
            for name, value in asdict(row).items():
                if name != "batch_size" and value is not None:
                    found[f"latency/{name}_ms/{row.batch_size}"] = value * _MILLISECONDS
        return found

    def rows_for_table(self) -> tuple[list[str], list[list[Any]]]:
        """Column names and cells, in milliseconds, and how many times as fast folding makes it."""
        columns = ["batch", "one pass (ms)"]
        sampled = any(row.sampled is not None for row in self.rows)
        if self.folded:
            columns += ["folded (ms)", "times as fast"]
        if sampled:
            columns += [f"{self.samples} samples (ms)"]
        if sampled and self.folded:
            columns += ["samples, folded (ms)", "times as fast"]
        rows = []
        for row in self.rows:
            cells: list[Any] = [row.batch_size, _in_ms(row.one_pass)]
            if self.folded:
                cells += [_in_ms(row.one_pass_folded), _ratio(row.one_pass, row.one_pass_folded)]
            if sampled:
                cells += [_in_ms(row.sampled)]
            if sampled and self.folded:
                cells += [_in_ms(row.sampled_folded), _ratio(row.sampled, row.sampled_folded)]
            rows.append(cells)
        return columns, rows

    def summary(self) -> str:
        """The smallest batch in one line."""
        first = self.rows[0]
        rows = "one row" if first.batch_size == 1 else f"{first.batch_size} rows"
        said = f"a pass over {rows} takes {_in_ms(first.one_pass):.3g} ms"
        if first.one_pass_folded is not None:
            plural = "s" if self.folded != 1 else ""
            folded = _in_ms(first.one_pass_folded)
            said += f", and {folded:.3g} ms with {self.folded} folded norm{plural}"
        if first.sampled is not None:
            said += f"; {self.samples} samples take {_in_ms(first.sampled):.3g} ms"
        if first.sampled_folded is not None:
            said += f", and {_in_ms(first.sampled_folded):.3g} ms folded"
        return said

    def __str__(self) -> str:
        columns, rows = self.rows_for_table()
        cells = [columns, *([_cell(value) for value in row] for row in rows)]
        widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
        lines = ["  ".join(c.rjust(w) for c, w in zip(line, widths, strict=True)) for line in cells]
        return "\n".join([f"latency ({self.device}): {self.summary()}", *lines, *self.notes])


def _in_ms(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * _MILLISECONDS


def _ratio(before: float | None, after: float | None) -> float | None:
    return before / after if before and after else None


def _cell(value: Any) -> str:
    return "-" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)


def measure_latency(
    model: nn.Module,
    example_batch: Any,
    *,
    batch_sizes: Sequence[int] = (1, 8, 32),
    samples: int = 20,
    seconds: float = 2.0,
) -> LatencyReport:
    """Measure a pass and Monte Carlo dropout on copies of a model, before and after folding.

    All contenders, of all batch sizes, take turns in every round, so that whatever else the machine
    does hits them alike; of the calls of a turn the fastest counts, and of the rounds the median.
    The first call of each, which plans and warms up, is not among them. What would not fit the time
    is left out, and told.

    Args:
        model: any module; copies in eval are measured, it is left as it is.
        example_batch: what the forward takes, see :func:`stablelightning.fold_batch_norm`. Its
            rows are repeated or cut to make the batch sizes.
        batch_sizes: rows, each >= 1.
        samples: of Monte Carlo dropout (engine ``"auto"``), >= 1.
        seconds: about how long to measure, > 0; a model that is slower is measured all the same,
            at its smallest batch.

    Returns:
        A :class:`LatencyReport`.

    Raises:
        RecipeError: a setting is out of its range.
        ModelError: the model cannot be copied.
        DataError: the example has no rows, or does not fit the forward.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5))
        >>> report = measure_latency(net, torch.randn(2, 4), batch_sizes=[1, 16], seconds=0.05)
        >>> [row.batch_size for row in report.rows], report.folded
        ([1, 16], 1)
    """
    _check(batch_sizes, samples, seconds)
    with torch.inference_mode(False), torch.no_grad(), undisturbed_generators():
        inputs = leading_inputs(model, example_batch)
        plain, folded = detached_copy(model).eval(), detached_copy(model).eval()
        notes: list[str] = []
        folding: FoldReport | None = None
        try:
            folding = fold_batch_norm(folded, inputs)
        except ModelError as error:
            notes.append(f"folded latency was not measured: {error}")
        models = {"": plain}
        if folding is not None and folding.folded:
            models["_folded"] = folded
        bench = _Bench(seconds)
        for size in sorted(set(batch_sizes)):
            arguments = arguments_of(with_rows(inputs, size))
            for suffix, made in models.items():
                bench.add((size, f"one_pass{suffix}"), _pass(made, arguments), samples=1)
            for suffix, made in models.items():
                sampled = _sampled(made, arguments, samples)
                try:
                    bench.add((size, f"sampled{suffix}"), sampled, samples=samples)
                except NothingRandomError:
                    break
        medians, rounds = bench.medians()
    rows = [
        Latency(size, **{name: value for (of, name), value in medians.items() if of == size})
        for size in dict.fromkeys(size for size, _ in medians)
    ]
    return LatencyReport(rows, samples, rounds, _device(model), folding, [*notes, *bench.notes()])


def with_rows(inputs: Any, rows: int) -> Any:
    """Inputs of so many rows: those of the example, again and again.

    Args:
        inputs: pytree; tensors with as many rows as the first one are changed.
        rows: >= 1.

    Raises:
        DataError: there is no tensor with rows.

    Example:
        >>> with_rows(torch.tensor([1, 2]), 5)
        tensor([1, 2, 1, 2, 1])
    """
    have = count_rows(tree_leaves(inputs))
    if have == 0:
        raise DataError(
            "latency needs an example whose first tensor has rows, got none; pass a batch."
        )

    def change(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or leaf.ndim == 0 or len(leaf) != have:
            return leaf
        return leaf[torch.arange(rows, device=leaf.device) % have]

    return tree_map(change, inputs)


class _Bench:
    """Contenders that take turns, as many as fit the time."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._calls: dict[tuple[int, str], Callable[[], Any]] = {}
        self._took: dict[tuple[int, str], float] = {}
        self._left_out: list[int] = []

    def add(self, key: tuple[int, str], call: Callable[[], Any], *, samples: int) -> None:
        """Warm a contender up, unless it would take too long."""
        size, name = key
        lacks_the_plain_pass = name != "one_pass" and (size, "one_pass") not in self._took
        too_long = self._calls and self._expected(size, name, samples) > self._left()
        if lacks_the_plain_pass or too_long:
            self._left_out.append(size)
            return
        call()
        self._took[key] = _seconds(call)
        self._calls[key] = call

    def _left(self) -> float:
        return self._seconds - _FEWEST * _CALLS * sum(self._took.values())

    def _expected(self, size: int, name: str, samples: int) -> float:
        """Seconds for a contender's rounds, by what is known of smaller ones."""
        same = {of: took for (of, n), took in self._took.items() if n == name}
        if same:
            largest = max(same)
            return _FEWEST * _CALLS * same[largest] * size / largest
        one = self._took.get((size, "one_pass"), math.inf)
        return _FEWEST * _CALLS * one * samples

    def medians(self) -> tuple[dict[tuple[int, str], float], int]:
        """Median seconds of each, and of how many rounds."""
        total = _CALLS * sum(self._took.values())
        rounds = max(_FEWEST, min(_MOST, int(self._seconds / max(total, 1e-9))))
        order = list(self._calls)
        times: dict[tuple[int, str], list[float]] = {key: [] for key in order}
        for number in range(rounds):
            shift = number % len(order)
            for key in order[shift:] + order[:shift]:  # nobody always comes after the same one
                times[key].append(min(_seconds(self._calls[key]) for _ in range(_CALLS)))
        return {key: statistics.median(values) for key, values in times.items()}, rounds

    def notes(self) -> list[str]:
        """What was left out."""
        if not self._left_out:
            return []
        sizes = ", ".join(map(str, dict.fromkeys(self._left_out)))
        return [f"not all was measured at batches of {sizes}: {self._seconds:g} s is too short"]


def _seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _pass(model: nn.Module, arguments: Any) -> Callable[[], Any]:
    args, kwargs = arguments
    return _synchronised(lambda: model(*args, **kwargs), arguments)


def _sampled(model: nn.Module, arguments: Any, samples: int) -> Callable[[], Any]:
    args, kwargs = arguments

    def call() -> Any:
        return sample_predictions(model, kwargs or args, samples=samples)

    return _synchronised(call, arguments)


def _synchronised(call: Callable[[], Any], arguments: Any) -> Callable[[], Any]:
    """A call that ends when the device has ended."""
    if not any(isinstance(leaf, Tensor) and leaf.is_cuda for leaf in tree_leaves(arguments)):
        return call

    def waited() -> Any:
        output = call()
        torch.cuda.synchronize()
        return output

    return waited


def _device(model: nn.Module) -> str:
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    threads = torch.get_num_threads()
    return f"{device.type}, {threads} thread{'s' if threads != 1 else ''}"


def _check(batch_sizes: Sequence[int], samples: int, seconds: float) -> None:
    if not batch_sizes:
        raise RecipeError("batch_sizes must name at least one, got none.")
    for name, values in (("batch_sizes", batch_sizes), ("samples", [samples])):
        for value in values:
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise RecipeError(f"{name} must be whole numbers >= 1, got {value!r}.")
    if not seconds > 0:
        raise RecipeError(f"seconds must be > 0, got {seconds}.")
