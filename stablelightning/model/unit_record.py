"""Which units are dead over a window of examples, and which of them were alive at the start."""

from typing import Any

import torch
from torch import Tensor

from stablelightning.functional.monitor import FlatEnds, UnitStatistics, still_rows_

#: After so many looks the units that never left a flat end count as dead from the start.
STARTING_LOOKS = 4


class UnitRecord:
    """Counts for every unit how long it has been still. All state is plain.

    Args:
        window: number of examples over which a unit must be still to be dead, >= 1. While fewer
            were seen, all that were seen.

    Example:
        >>> record = UnitRecord(window=2)
        >>> z = torch.tensor([[1.0, -1.0], [2.0, -2.0]])
        >>> ends = FlatEnds(dead_below=0.0)
        >>> seen = UnitStatistics(2, 2, z.relu().mean(0), z.relu().var(0), z.amax(0), z.amin(0),
        ...     torch.tensor(0.0))
        >>> for _ in range(STARTING_LOOKS):
        ...     signals = record.look("net.0", seen, ends)
        >>> signals["dead"], signals["died"], signals["revived"]
        (0.5, 0.0, 0.0)
    """

    def __init__(self, *, window: int) -> None:
        self.window = window
        self._still: dict[str, Tensor] = {}
        self._rows: dict[str, int] = {}
        self._looks: dict[str, int] = {}
        self._dead_at_start: dict[str, Tensor] = {}

    def look(self, layer: str, seen: UnitStatistics, ends: FlatEnds) -> dict[str, float]:
        """Add what the units of a layer did.

        Args:
            layer: its name.
            seen: over the examples since the last look, on the CPU.
            ends: where its function is flat.

        Returns:
            ``activation_mean`` (over units), ``activation_std`` (over the data: root mean square
            over units), where the function has flat ends away from zero ``saturated``, and from the
            last of the starting looks on, for a function that lets units die, ``dead``, ``died``
            and ``revived`` since then, as shares of the units, and ``full_window`` (0 or 1).
        """
        signals = {
            "activation_mean": float(seen.mean.mean()),
            "activation_std": float(seen.variance.mean().sqrt()),
        }
        if ends.can_saturate:
            signals["saturated"] = float(seen.saturated)
        if not ends.can_die:
            return signals
        if layer not in self._still or len(self._still[layer]) != len(seen.mean):
            self._still[layer] = torch.zeros(len(seen.mean), dtype=torch.int64)
            self._rows[layer] = self._looks[layer] = 0
        still_rows_(self._still[layer], seen, ends)
        self._rows[layer] += seen.rows
        self._looks[layer] += 1
        if self._looks[layer] >= STARTING_LOOKS:
            signals |= self._deaths(layer)
        return signals

    def _deaths(self, layer: str) -> dict[str, float]:
        rows = self._rows[layer]
        dead = self._still[layer] >= min(self.window, rows)
        if self._looks[layer] == STARTING_LOOKS:
            self._dead_at_start[layer] = dead
        before = self._dead_at_start[layer]
        return {
            "dead": float(dead.float().mean()),
            "died": float((dead & ~before).float().mean()),
            "revived": float((before & ~dead).float().mean()),
            "full_window": float(rows >= self.window),
        }

    def state_dict(self) -> dict[str, Any]:
        """All counts."""
        return {
            "still": {layer: counts.clone() for layer, counts in self._still.items()},
            "rows": dict(self._rows),
            "looks": dict(self._looks),
            "dead_at_start": dict(self._dead_at_start),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self._still = {layer: counts.clone() for layer, counts in state["still"].items()}
        self._rows = dict(state["rows"])
        self._looks = dict(state["looks"])
        self._dead_at_start = dict(state["dead_at_start"])
