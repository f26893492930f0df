"""What :func:`stablelightning.fold_batch_norm` did to each batch norm, and why."""

from dataclasses import asdict, dataclass, field
from typing import Any

COLUMNS = ("norm", "layer", "what was done")


@dataclass(frozen=True)
class FoldedNorm:
    """A batch norm that is now part of a layer.

    Args:
        norm: dotted name of the norm.
        layer: dotted name of the layer that does its work.
        after: whether the norm came after the layer; ``False``: before it.
    """

    norm: str
    layer: str
    after: bool


@dataclass(frozen=True)
class LeftNorm:
    """A batch norm that stays.

    Args:
        norm: dotted name of the norm, or where a forward calls ``F.batch_norm``.
        why: the reason in words.
    """

    norm: str
    why: str


@dataclass
class FoldReport:
    """One row for each batch norm; ``print`` shows it as a table.

    Args:
        folded: norms that are part of a layer now.
        left: the others, with the reason.
        difference: of the outputs on the example, before and after: the largest one over the
            largest absolute value; 0 where nothing was folded.
        sampled_difference: the same with dropout live and equal masks; ``None`` where nothing in
            the model is random.
        notes: what else is to be known.

    Example:
        >>> import stablelightning as sl, torch
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.BatchNorm1d(3))
        >>> print(sl.fold_batch_norm(net.eval(), torch.randn(8, 4)))
        fold_batch_norm: 1 of 2 batch norms folded, outputs equal to ...
        norm  layer  what was done
        1     0      folded into the layer before it
        3     -      left: it reads relu in 2, and not a layer; what it gives is the model's output
    """

    folded: list[FoldedNorm]
    left: list[LeftNorm]
    difference: float = 0.0
    sampled_difference: float | None = None
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain types, ready for JSON."""
        return asdict(self)

    def rows_for_table(self) -> tuple[list[str], list[list[str]]]:
        """Column names and cells, for a W&B table or a data frame."""
        ways = {True: "folded into the layer before it", False: "folded into the layer behind it"}
        rows = [[row.norm, row.layer, ways[row.after]] for row in self.folded]
        return list(COLUMNS), [*rows, *([row.norm, "-", f"left: {row.why}"] for row in self.left)]

    def summary(self) -> str:
        """How many were folded, and how equal the outputs are, in one line."""
        total = len(self.folded) + len(self.left)
        if not total:
            return "fold_batch_norm: there is no batch norm to fold"
        norms = "batch norm" if total == 1 else "batch norms"
        words = f"fold_batch_norm: {len(self.folded)} of {total} {norms} folded"
        worst = max(self.difference, self.sampled_difference or 0.0)
        return f"{words}, outputs equal to {worst:.1e}" if self.folded else words

    def __str__(self) -> str:
        columns, rows = self.rows_for_table()
        lines = [self.summary()]
        if rows:
            cells = [columns, *rows]
            widths = [max(len(line[i]) for line in cells) for i in range(2)]
            lines += [
                "  ".join([*(c.ljust(w) for c, w in zip(line, widths, strict=False)), line[2]])
                for line in cells
            ]
        return "\n".join([*lines, *self.notes])
