"""Telling a spike from a heavy tail, in a stream of losses or gradient norms."""

import math
from bisect import bisect_left, insort
from collections import deque
from statistics import median
from typing import Any

from stablelightning.checks import check_whole
from stablelightning.errors import RecipeError

#: Values from which the present level is read. Short, so that the level of a training that falls
#: or rises by powers of ten is followed; long, so that its median ignores several bad batches.
_LEVEL_VALUES = 64

#: So many values must have been seen before anything is called a spike.
FEWEST_VALUES = 32

#: A spike is so many times as far above the level as anything in the window was.
_MARGIN = math.log(10.0)

#: Where that would ask for more than ``error``, this is enough: a margin is there for levels that
#: move, and the bound holds without one.
_LEAST_MARGIN = math.log(2.0)

#: Values up to so many times the highest level that training ever had are no errors, however low
#: the level is now: a hard batch in a run that has learned the others by heart.
_ONCE_USUAL = 3.0

#: So many errors within ``_NEARBY`` values are no errors but the way of these data; in a row, they
#: are a new level: layers were unfrozen, a task changed.
PATIENCE = 10
_NEARBY = 200

#: A spread so wide that an error lies fewer of them above the level counts as less, so that at the
#: usual threshold no error hides behind it.
_FEWEST_SPREADS = 6.0

#: Standard deviations of a normal distribution in one median absolute deviation.
_SIGMAS_OF_MAD = 1.4826


class SpikeDetector:
    """Say of a number whether it stands out of those before it, as a bad batch's does.

    Losses and gradient norms of a healthy training are heavy-tailed, and move by powers of ten. So
    each is held against the *present* level, the median of the last 64; how far it lies above, its
    excess, is a logarithm: of its ratio to the median where values are positive, of its distance
    in robust standard deviations where some are not. A spike must be

    - more than ``threshold`` robust standard deviations above the level (from the median absolute
      deviation, of logarithms where values are positive), and
    - ten times as far above it as any of the last ``window`` values was; more where fewer than
      ``window`` were seen.

    The second holds for any distribution: the newest of *n* + 1 exchangeable values is the largest
    with probability 1 / (*n* + 1), and more rarely ten times as large as the others. A class of
    rare, hard batches is thus caught once at most, and known from then on. Errors, which lie by a
    factor of ``error`` above the level, do not become known, so that each is caught; unless they
    are a twentieth of the values, a new level, or no larger than what was usual at the start.

    Args:
        window: number of values whose largest excess counts, >= 32. At 1000, one healthy step in a
            thousand at most is called a spike.
        threshold: robust standard deviations, > 0.
        error: from which factor above the level on a spike is an error, >= 10. What goes wrong does
            so by 1e4 and more; a hard batch hardly has a gradient of 500 times the usual one, or
            a loss of 2000 times.

    Raises:
        RecipeError: a setting is out of its range.

    Source:
        Rousseeuw, Croux 1993, "Alternatives to the median absolute deviation" (the scale that
        outliers do not move); the bound follows from exchangeability, as that of conformal
        prediction does (Vovk, Gammerman, Shafer 2005).

    Example:
        >>> detector = SpikeDetector()
        >>> for step in range(100):
        ...     detector.add(2.0 + 0.1 * math.sin(step))
        >>> detector.is_spike(5.0), detector.is_spike(2e4)
        (False, True)
    """

    def __init__(
        self, window: int = 1000, threshold: float = 6.0, *, error: float = 2000.0
    ) -> None:
        check_whole(
            "window",
            window,
            least=FEWEST_VALUES,
            hint="fewer values cannot tell a spike from a tail",
        )
        if not threshold > 0:
            raise RecipeError(
                f"threshold must be > 0 robust standard deviations, got {threshold}; around 6 is "
                "usual, and math.inf calls nothing a spike."
            )
        if not error >= 10:
            raise RecipeError(f"error must be a factor >= 10, got {error}; 2000 is usual.")
        self.window = window
        self.threshold = threshold
        self.error = error
        self._absurd = math.log(error)
        self._recent: deque[float] = deque()
        self._sorted: list[float] = []  # the same values
        self._largest: deque[tuple[int, float]] = deque()  # excesses, falling; the first counts
        self._count = 0  # of excesses since the scale changed
        self._seen = 0  # finite values, errors included
        self._errors: deque[tuple[int, float, float]] = deque()  # number, value, excess
        self._positive = True
        self._highest = -math.inf  # level that ever was

    def is_spike(self, value: float) -> bool:
        """Whether ``value`` stands out; nothing is added.

        Args:
            value: any float. One that is not finite is no spike: whoever asks has seen it before.
        """
        if self._count < FEWEST_VALUES or not math.isfinite(value):
            return False
        excess = self._excess(value)
        return self._stands_out(excess) and not self._is_usual_by_now()

    def add(self, value: float) -> None:
        """Take every value in, spikes included: what they are is known here.

        Args:
            value: one that is not finite is ignored.
        """
        if not math.isfinite(value):
            return
        self._seen += 1
        excess = self._excess(value) if self._recent else 0.0
        absurd = excess > self._absurd and value > _ONCE_USUAL * self._highest
        if absurd and self._count >= FEWEST_VALUES and self._stands_out(excess):
            self._note_error(value, excess)
            return
        self._note_excess(min(max(excess, 0.0), self._absurd if absurd else math.inf))
        self._note_value(value)

    def state_dict(self) -> dict[str, Any]:
        """Everything that decides the next answer, as lists and numbers."""
        return {
            "recent": list(self._recent),
            "largest": [list(pair) for pair in self._largest],
            "count": self._count,
            "seen": self._seen,
            "errors": [list(error) for error in self._errors],
            "positive": self._positive,
            "highest": self._highest,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self._recent = deque(state["recent"])
        self._sorted = sorted(self._recent)
        self._largest = deque((int(number), float(excess)) for number, excess in state["largest"])
        self._count = state["count"]
        self._seen = state["seen"]
        self._errors = deque((int(n), float(v), float(x)) for n, v, x in state["errors"])
        self._positive = state["positive"]
        self._highest = state["highest"]

    # ---- how far above ---------------------------------------------------------------------------

    def _level(self) -> float:
        return self._sorted[len(self._sorted) // 2]

    def _excess(self, value: float) -> float:
        level = self._level()
        if self._positive:
            return math.log(value) - math.log(level) if value > 0 else -math.inf
        scale = self._spread()
        above = value - level
        return math.log1p(above / scale) if above > 0 and scale > 0 else 0.0

    def _spread(self) -> float:
        """Robust standard deviation of the recent values; their mean one where half are equal."""
        level = self._level()
        distances = [abs(value - level) for value in self._sorted]
        return _SIGMAS_OF_MAD * median(distances) or math.fsum(distances) / len(distances)

    def _stands_out(self, excess: float) -> bool:
        few = 0.5 * math.log(self.window / min(self._count, self.window))
        known = self._largest[0][1] + few
        if excess <= max(known + _LEAST_MARGIN, min(known + _MARGIN, self._absurd)):
            return False
        if not self._positive:  # the excess is one of robust standard deviations
            return excess > math.log1p(self.threshold)
        level = math.log(self._level())
        spread = median(abs(math.log(value) - level) for value in self._sorted)
        return excess > self.threshold * min(
            _SIGMAS_OF_MAD * spread, self._absurd / _FEWEST_SPREADS
        )

    def _is_usual_by_now(self) -> bool:
        """Whether one more error would be the one that makes them usual."""
        last = PATIENCE - 1
        return len(self._errors) >= last and self._errors[-last][0] > self._seen + 1 - _NEARBY

    # ---- what was seen ---------------------------------------------------------------------------

    def _note_excess(self, excess: float) -> None:
        while self._largest and self._largest[-1][1] <= excess:
            self._largest.pop()
        self._largest.append((self._count, excess))
        self._count += 1
        while self._largest[0][0] < self._count - self.window:
            self._largest.popleft()

    def _note_value(self, value: float) -> None:
        self._recent.append(value)
        insort(self._sorted, value)
        if len(self._recent) > _LEVEL_VALUES:
            del self._sorted[bisect_left(self._sorted, self._recent.popleft())]
        self._highest = max(self._highest, self._level())
        positive = self._sorted[0] > 0
        if positive is not self._positive:  # excesses of the other scale say nothing
            self._positive = positive
            self._largest.clear()
            self._count = 0

    def _note_error(self, value: float, excess: float) -> None:
        self._errors.append((self._seen, value, excess))
        if self._errors[0][0] <= self._seen - _NEARBY:
            self._errors.popleft()
        if len(self._errors) < PATIENCE:
            return
        # They are usual from here on; in a row, they are also what others are held against.
        if self._seen - self._errors[0][0] < PATIENCE:
            self._recent.clear()
            self._sorted.clear()
            for _, known, _ in self._errors:
                self._note_value(known)
        self._note_excess(max(excess for _, _, excess in self._errors))
        self._errors.clear()
