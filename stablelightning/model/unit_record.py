"""Which units are dead over a window of examples, and which of them were alive at the start."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from stablelightning.functional.monitor import FlatEnds, UnitStatistics, still_rows_

#: After so many looks the units that never left a flat end count as dead from the start.
STARTING_LOOKS = 4


@dataclass(frozen=True)
class LayerStatistics:
    """:class:`~stablelightning.functional.monitor.UnitStatistics` of all layers in one row.

    Args:
        rows: ``(layers,)`` examples; 0 for a layer that did not run.
        values: ``(layers,)`` values of each unit.
        saturated: ``(layers,)`` shares.
        mean: ``(units of all layers,)``, as are the others.
        variance: over the data.
        largest: inputs of the layer's function.
        smallest: inputs of the layer's function.
    """

    rows: Tensor
    values: Tensor
    saturated: Tensor
    mean: Tensor
    variance: Tensor
    largest: Tensor
    smallest: Tensor

    def merged(self, other: "LayerStatistics", of_unit: Tensor) -> "LayerStatistics":
        """Statistics of both data sets together; ``of_unit`` is each unit's layer."""
        total = self.values + other.values
        share = torch.where(total > 0, other.values / total.clamp(min=1), 0.0)
        mine, its, spread = (self.values > 0)[of_unit], (other.values > 0)[of_unit], share[of_unit]
        delta = other.mean - self.mean
        variance = self.variance + (other.variance - self.variance) * spread
        return LayerStatistics(
            rows=self.rows + other.rows,
            values=total,
            saturated=self.saturated + (other.saturated - self.saturated) * share,
            mean=self.mean + delta * spread,
            variance=variance + delta.square() * spread * (1 - spread),
            largest=_extreme(torch.maximum, self.largest, other.largest, mine, its),
            smallest=_extreme(torch.minimum, self.smallest, other.smallest, mine, its),
        )


def _extreme(of_both: Any, first: Tensor, second: Tensor, mine: Tensor, its: Tensor) -> Tensor:
    one: Tensor = torch.where(its, second, first)
    both: Tensor = torch.where(mine & its, of_both(first, second), one)
    return both


def pack(seen: Sequence[UnitStatistics | None], units: Sequence[int], like: Tensor) -> Tensor:
    """Put the statistics of all layers in one row, of the same length whatever ran.

    Args:
        seen: one entry per layer, ``None`` for one that did not run.
        units: number of units of each.
        like: a tensor on the device where the row shall be.

    Example:
        >>> pack([None], [2], torch.zeros(1)).shape
        torch.Size([11])
    """
    counts = [[0.0, 0.0] if s is None else [float(s.rows), float(s.values)] for s in seen]
    # One copy to the device, of numbers that are not there: all others are.
    first = torch.tensor(counts).T.reshape(-1).to(like.device, non_blocking=True)
    nothing = [like.new_zeros(n, dtype=torch.float32) for n in (1, *units)]
    parts = [first, *(nothing[0] if s is None else s.saturated.reshape(1) for s in seen)]
    for name in ("mean", "variance", "largest", "smallest"):
        parts += [nothing[n + 1] if s is None else getattr(s, name) for n, s in enumerate(seen)]
    if any(part.device != like.device for part in parts):
        parts = [part.to(like.device) for part in parts]
    return torch.cat(parts)


class UnitRecord:
    """Counts for every unit how long it has been still. All state is plain.

    Args:
        layers: names.
        units: number of units of each.
        window: number of examples over which a unit must be still to be dead, >= 1. While fewer
            were seen, all that were seen.

    Example:
        >>> z = torch.tensor([[1.0, -1.0], [2.0, -2.0]])
        >>> ends = FlatEnds(dead_below=0.0)
        >>> seen = UnitStatistics(2, 2, z.relu().mean(0), z.relu().var(0), z.amax(0), z.amin(0),
        ...     torch.tensor(0.0))
        >>> record = UnitRecord(["net.0"], [2], window=2)
        >>> for _ in range(STARTING_LOOKS):
        ...     signals = record.look(pack([seen], [2], z)[None], [ends])
        >>> {name: signals["net.0"][name] for name in ("dead", "died", "revived")}
        {'dead': 0.5, 'died': 0.0, 'revived': 0.0}
    """

    def __init__(self, layers: Sequence[str], units: Sequence[int], *, window: int) -> None:
        self.layers, self.units, self.window = list(layers), list(units), window
        self._counts = torch.tensor(self.units, dtype=torch.int64)
        self._of_unit = torch.arange(len(self.units)).repeat_interleave(self._counts)
        total = sum(self.units)
        self._still = torch.zeros(total, dtype=torch.int64)
        self._dead_at_start = torch.zeros(total, dtype=torch.bool)
        self._rows = torch.zeros(len(self.units), dtype=torch.int64)
        self._looks = torch.zeros(len(self.units), dtype=torch.int64)

    def look(self, rows: Tensor, ends: Sequence[FlatEnds]) -> dict[str, dict[str, float]]:
        """Add what the units did since the last look.

        Args:
            rows: ``(processes, n)``, what :func:`pack` made on each, on the CPU.
            ends: where the function of each layer is flat.

        Returns:
            By layer that ran: ``activation_mean`` (over units), ``activation_std`` (over the data;
            root mean square over units), where the function has flat ends away from zero
            ``saturated``, and from the last of the starting looks on, for a function that lets
            units die, ``dead``, ``died`` and ``revived`` since then, as shares of the units, and
            ``full_window`` (0 or 1).
        """
        parts = [self._unpacked(row) for row in rows.float()]
        seen = reduce(lambda a, b: a.merged(b, self._of_unit), parts)
        ran = seen.rows > 0
        dead, before = self._dead(seen, ends, ran)
        columns = {
            "activation_mean": self._mean(seen.mean),
            "activation_std": self._mean(seen.variance).sqrt(),
            "saturated": seen.saturated,
            "dead": self._mean(dead),
            "died": self._mean(dead & ~before),
            "revived": self._mean(before & ~dead),
            "full_window": self._rows >= self.window,
        }
        lists = {name: column.tolist() for name, column in columns.items()}
        started = (self._looks >= STARTING_LOOKS).tolist()
        signals = {}
        for n, (layer, here) in enumerate(zip(self.layers, ran.tolist(), strict=True)):
            if not here:
                continue
            names = ["activation_mean", "activation_std"]
            names += ["saturated"] if ends[n].can_saturate else []
            dies = ends[n].can_die and started[n]
            names += ["dead", "died", "revived", "full_window"] if dies else []
            signals[layer] = {name: float(lists[name][n]) for name in names}
        return signals

    def _unpacked(self, row: Tensor) -> LayerStatistics:
        layers, units = len(self.units), len(self._of_unit)
        return LayerStatistics(*row.split([layers] * 3 + [units] * 4))

    def _dead(
        self, seen: LayerStatistics, ends: Sequence[FlatEnds], ran: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Which units are dead now, and which of them were at the start."""
        bounds = torch.tensor([[e.dead_below, e.dead_above] for e in ends]).reshape(-1, 2)
        below, above = bounds[self._of_unit].T
        rows, here = seen.rows.long(), ran[self._of_unit]
        counted = still_rows_(
            self._still.clone(),
            rows[self._of_unit],
            largest=seen.largest,
            smallest=seen.smallest,
            below=below,
            above=above,
        )
        self._still = torch.where(here, counted, self._still)
        self._rows += rows
        self._looks += ran
        dead = self._still >= self._rows.clamp(max=self.window)[self._of_unit]
        beginning = (ran & (self._looks <= STARTING_LOOKS))[self._of_unit]
        self._dead_at_start = torch.where(beginning, dead, self._dead_at_start)
        return dead, self._dead_at_start

    def _mean(self, of_units: Tensor) -> Tensor:
        """Mean over the units of each layer."""
        sums = torch.zeros(len(self.units)).index_add_(0, self._of_unit, of_units.float())
        return sums / self._counts.clamp(min=1)

    def state_dict(self) -> dict[str, Any]:
        """All counts."""
        return {
            "layers": list(self.layers),
            "units": list(self.units),
            "still": self._still.clone(),
            "rows": self._rows.clone(),
            "looks": self._looks.clone(),
            "dead_at_start": self._dead_at_start.clone(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> bool:
        """Go on from there; False, and nothing happens, where the state is of other layers."""
        if (state["layers"], state["units"]) != (self.layers, self.units):
            return False
        self._still, self._rows = state["still"].clone(), state["rows"].clone()
        self._looks, self._dead_at_start = state["looks"].clone(), state["dead_at_start"].clone()
        return True
