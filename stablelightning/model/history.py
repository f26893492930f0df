"""Readings of a whole run in bounded memory: the longer the run, the further apart they lie."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

#: More readings than a plot has columns say no more.
MOST_READINGS = 512

#: Stands for no number, because NaN would make equal states unequal.
_MISSING = -math.inf


class History:
    """Keeps one number per layer and quantity of evenly spread readings. All state is plain.

    Once there are more than :data:`MOST_READINGS`, every second one is dropped, and from then on
    every second one is kept.

    Args:
        quantities: names of what is kept.

    Example:
        >>> history = History(["grad_norm"])
        >>> history.begin(["net.0", "net.2"])
        >>> history.add(50, {"net.0": {"grad_norm": 0.5}})
        >>> history.steps, history.table("grad_norm")
        ([50], tensor([[0.5000,    nan]]))
    """

    def __init__(self, quantities: Sequence[str]) -> None:
        self.quantities = tuple(quantities)
        self.layers: list[str] = []
        self.steps: list[int] = []
        self._rows: list[Tensor] = []
        self._stride = 1
        self._offered = 0

    def begin(self, layers: Sequence[str]) -> None:
        """Say which layers there are; what was kept of others is forgotten."""
        if list(layers) != self.layers:
            self.layers = list(layers)
            self.steps, self._rows = [], []
            self._stride, self._offered = 1, 0

    def add(self, step: int, signals: Mapping[str, Mapping[str, float]]) -> None:
        """Offer a reading.

        Args:
            step: when it was taken.
            signals: by layer, by quantity; what is missing becomes NaN, what is NaN infinite.
        """
        self._offered += 1
        if (self._offered - 1) % self._stride:
            return
        row = [[signals.get(n, {}).get(q, _MISSING) for n in self.layers] for q in self.quantities]
        self.steps.append(step)
        self._rows.append(
            torch.tensor(row, dtype=torch.float32).nan_to_num(math.inf, math.inf, -math.inf)
        )
        if len(self.steps) > MOST_READINGS:
            self.steps, self._rows = self.steps[::2], self._rows[::2]
            self._stride *= 2

    def table(self, quantity: str) -> Tensor:
        """All readings of one quantity, ``(steps, layers)``, NaN where there is none."""
        if not self._rows:
            return torch.zeros(0, len(self.layers))
        table = torch.stack(self._rows)[:, self.quantities.index(quantity)]
        return table.masked_fill(table == _MISSING, math.nan)

    def state_dict(self) -> dict[str, Any]:
        """All readings."""
        return {
            "layers": list(self.layers),
            "steps": list(self.steps),
            "rows": torch.stack(self._rows) if self._rows else torch.zeros(0),
            "stride": self._stride,
            "offered": self._offered,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.layers, self.steps = list(state["layers"]), list(state["steps"])
        self._rows = [row.clone() for row in state["rows"]]
        self._stride, self._offered = state["stride"], state["offered"]
