"""What :func:`stablelightning.initialize` did to each layer, and why."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from stablelightning.optional import require

COLUMNS = (
    "layer",
    "kind",
    "consumer",
    "distribution",
    "gain",
    "std before",
    "std after",
    "f(0)",
    "f'(0)",
    "why",
)
#: Columns that hold numbers.
_NUMBERS = COLUMNS[4:9]
#: A reason longer than this is cut in plain tables; ``to_dict`` has all of it.
_WHY = 72
_LEFT = "left"


@dataclass(frozen=True)
class LayerInitialization:
    """One row of the report: what became of a layer.

    Args:
        name: dotted name of the module.
        kind: ``"linear"``, ``"conv"``, ``"recurrent"``, ``"embedding"``, ``"norm"``, ...
        consumer: the non-linearity that its output runs into: ``"relu"``, ``"linear"``, ...
        distribution: what was drawn, such as ``"He normal"``; ``"left"`` where nothing was written.
        gain: factor on ``1 / sqrt(fan)``; ``None`` where there is none.
        std_before: root mean square of its weights as they were found.
        std_after: as they are now.
        at_zero: ``f(0)`` of the consumer, ``None`` where it is no function of one number.
        slope_at_zero: ``f'(0)``.
        why: the rule in words, or why the layer was left.
        parameters: dotted names of what was written.
    """

    name: str
    kind: str
    consumer: str
    distribution: str
    gain: float | None
    std_before: float
    std_after: float
    at_zero: float | None
    slope_at_zero: float | None
    why: str
    parameters: tuple[str, ...] = ()

    @property
    def changed(self) -> bool:
        """Whether anything of the layer was written."""
        return bool(self.parameters)


@dataclass
class InitializationReport:
    """One row for each layer, in order of execution; ``print`` shows it as a table.

    Args:
        scheme: the name of the scheme.
        rows: what became of each layer.
        notes: what could not be followed, in words.

    Example:
        >>> import stablelightning as sl, torch
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 2))
        >>> report = sl.initialize(net, torch.randn(4, 16))
        >>> [(row.name, row.consumer, row.distribution) for row in report.rows]
        [('0', 'relu', 'He normal'), ('2', 'linear', 'Glorot uniform')]
    """

    scheme: str
    rows: list[LayerInitialization]
    notes: list[str] = field(default_factory=list)

    @property
    def changed(self) -> tuple[str, ...]:
        """Dotted names of all parameters that were written."""
        return tuple(name for row in self.rows for name in row.parameters)

    @property
    def left(self) -> list[LayerInitialization]:
        """Rows of layers in which nothing was written."""
        return [row for row in self.rows if not row.changed]

    def __getitem__(self, name: str) -> LayerInitialization:
        """The row of the layer of that dotted name."""
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(name)

    def to_dict(self) -> dict[str, Any]:
        """Plain types, ready for JSON."""
        rows = [asdict(row) | {"parameters": list(row.parameters)} for row in self.rows]
        return {"scheme": self.scheme, "rows": rows, "notes": list(self.notes)}

    def rows_for_table(self) -> tuple[list[str], list[list[Any]]]:
        """Column names and cells (numbers, strings, ``None``), for a W&B table or a data frame."""
        return list(COLUMNS), [
            [
                row.name,
                row.kind,
                row.consumer,
                row.distribution,
                row.gain,
                row.std_before,
                row.std_after,
                row.at_zero,
                row.slope_at_zero,
                row.why,
            ]
            for row in self.rows
        ]

    def __str__(self) -> str:
        columns, rows = self.rows_for_table()
        cells = [columns, *([_cell(value) for value in row] for row in rows)]
        widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
        lines = [
            "  ".join(map(str.ljust, line[:-1], widths[:-1])) + "  " + line[-1] for line in cells
        ]
        return "\n".join([self.summary(), *(line.rstrip() for line in lines), *self.notes])

    def summary(self) -> str:
        """How many layers were written and how many left, in one line."""
        written = len(self.rows) - len(self.left)
        layers = "layer" if written == 1 else "layers"
        return f"initialize ({self.scheme}): {written} {layers} written, {len(self.left)} left"

    def __rich__(self) -> Any:
        table = require("rich.table", extra="recipes").Table(
            title=self.summary(),
            title_justify="left",
            title_style="bold",
            box=require("rich.box", extra="recipes").SIMPLE_HEAD,
            pad_edge=False,
            padding=(0, 1, 0, 0),
        )
        text = require("rich.text", extra="recipes").Text
        columns, rows = self.rows_for_table()
        for column in columns:
            number = column in _NUMBERS
            table.add_column(
                column,
                justify="right" if number else "left",
                no_wrap=number,
                overflow="fold",
            )
        for row in rows:
            style = "dim" if row[3] == _LEFT else ""
            table.add_row(*(text(_cell(value)) for value in row), style=style)
        return table


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    words = str(value)
    return words if len(words) <= _WHY else words[: _WHY - 3] + "..."


def left_row(name: str, kind: str, consumer: str, *, std: float, why: str) -> LayerInitialization:
    """The row of a layer that was not written."""
    return LayerInitialization(name, kind, consumer, _LEFT, None, std, std, None, None, why)


def joined(reasons: Sequence[str]) -> str:
    """Several reasons as one sentence, each once."""
    return "; ".join(dict.fromkeys(reason for reason in reasons if reason))
