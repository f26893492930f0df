"""A percentile of a stream of numbers, without keeping the numbers."""

import math
from bisect import bisect_right
from typing import Any

from stablelightning.errors import RecipeError

_MARKERS = 5


class RunningPercentile:
    """Estimate a percentile of a stream with five markers, and nothing else in memory.

    The markers are the smallest and the largest number, the percentile, and the ones half way in
    between; each is moved along a parabola through its neighbours whenever it is off its rank.
    The first five numbers give an exact answer. What is not finite is refused: a statistic that
    swallows one NaN is dead for ever.

    Args:
        percentile: in (0, 100).
        window: forget what is old: the estimate is of the last ``window`` to ``2 * window`` numbers
            (two estimates run, begun ``window`` numbers apart). ``None`` keeps all.

    Raises:
        RecipeError: ``percentile`` is out of its range, or ``window`` is not at least five.

    Source:
        Jain, Chlamtac 1985, The P-square algorithm for dynamic calculation of quantiles and
        histograms without storing observations, Communications of the ACM 28(10).

    Example:
        >>> median = RunningPercentile(50)
        >>> for number in [9.0, 1.0, float("nan"), 7.0, 3.0, 5.0, 8.0, 2.0]:
        ...     median.add(number)
        >>> median.count, round(median.value, 2)
        (7, 5.0)
    """

    def __init__(self, percentile: float, *, window: int | None = None) -> None:
        check_percentile("percentile", percentile)
        if window is not None and (isinstance(window, bool) or window < _MARKERS):
            raise RecipeError(f"window must be a whole number >= {_MARKERS}, got {window!r}.")
        self.percentile = percentile
        self.window = window
        self._old = _Markers(percentile / 100)
        self._young = _Markers(percentile / 100)

    @property
    def count(self) -> int:
        """How many numbers the estimate rests on."""
        return self._old.count

    @property
    def value(self) -> float:
        """The estimate; NaN before the first number."""
        return self._old.value

    def add(self, number: float) -> None:
        """Take one number into account, unless it is not finite."""
        if not math.isfinite(number):
            return
        self._old.add(number)
        if self.window is None:
            return
        if self._old.count > self.window:
            self._young.add(number)
        if self._old.count >= 2 * self.window:
            self._old, self._young = self._young, _Markers(self.percentile / 100)

    def state_dict(self) -> dict[str, Any]:
        """Everything that decides what follows; plain types."""
        return {"old": self._old.state_dict(), "young": self._young.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self._old.load_state_dict(state["old"])
        self._young.load_state_dict(state["young"])


class _Markers:
    """Five heights, and at which rank each of them is and should be."""

    def __init__(self, share: float) -> None:
        self.count = 0
        self._share = share
        self._wanted = (0.0, share / 2, share, (1 + share) / 2, 1.0)
        self._heights: list[float] = []
        self._ranks = list(range(_MARKERS))

    @property
    def value(self) -> float:
        if not self.count:
            return math.nan
        if self.count > _MARKERS:
            return self._heights[2]
        place = self._share * (self.count - 1)
        low = math.floor(place)
        high = min(low + 1, self.count - 1)
        return self._heights[low] + (place - low) * (self._heights[high] - self._heights[low])

    def add(self, number: float) -> None:
        heights, ranks = self._heights, self._ranks
        place = bisect_right(heights, number)
        self.count += 1
        if self.count <= _MARKERS:
            heights.insert(place, number)
            return
        if place == 0:
            heights[0] = number
        elif place == _MARKERS:
            heights[-1] = number
        for marker in range(min(max(place, 1), _MARKERS - 1), _MARKERS):
            ranks[marker] += 1
        for marker in range(1, _MARKERS - 1):
            self._move(marker)

    def _move(self, marker: int) -> None:
        """Bring a marker one rank nearer to where it should be, and its height along."""
        ranks, heights = self._ranks, self._heights
        off = self._wanted[marker] * (self.count - 1) - ranks[marker]
        step = 1 if off > 0 else -1
        if abs(off) < 1 or abs(ranks[marker + step] - ranks[marker]) <= 1:
            return
        height = self._parabola(marker, step)
        if not heights[marker - 1] < height < heights[marker + 1]:
            gap = ranks[marker + step] - ranks[marker]
            height = heights[marker] + step * (heights[marker + step] - heights[marker]) / gap
        heights[marker] = height
        ranks[marker] += step

    def _parabola(self, marker: int, step: int) -> float:
        """The height one rank on, on a parabola through the marker and its neighbours."""
        left, middle, right = self._ranks[marker - 1 : marker + 2]
        low, height, high = self._heights[marker - 1 : marker + 2]
        above = (middle - left + step) * (high - height) / (right - middle)
        below = (right - middle - step) * (height - low) / (middle - left)
        return height + step * (above + below) / (right - left)

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count, "heights": list(self._heights), "ranks": list(self._ranks)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count = state["count"]
        self._heights, self._ranks = list(state["heights"]), list(state["ranks"])


def check_percentile(name: str, percentile: float) -> None:
    """Check that a percentile lies between 0 and 100.

    Raises:
        RecipeError: it does not, or is no number.

    Example:
        >>> check_percentile("percentile", 90)
    """
    number = isinstance(percentile, int | float) and not isinstance(percentile, bool)
    if not number or not 0 < percentile < 100:
        raise RecipeError(
            f"{name} must be in (0, 100), got {percentile!r}; 50 is the median, 90 lies above nine "
            "of ten."
        )
