"""Which bound gradient norms get, and what became of them; knows nothing of a Trainer."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

from stablelightning.checks import check_whole
from stablelightning.errors import RecipeError
from stablelightning.functional.clip import check_threshold
from stablelightning.functional.percentile import RunningPercentile, check_percentile

#: A norm of twice the mean of the first ones is unusual. Pascanu et al. found half to ten times the
#: mean to work.
MULTIPLE = 2.0

#: What is usual for clipping by joint norm; a mean that one explosion spoilt ends at the second.
BOUNDS = (1.0, 5.0)

#: Enough norms for a mean, in less time than a warm-up takes.
FIRST_STEPS = 50

#: A percentile that is followed is that of the last thousand to two thousand norms: gradients
#: shrink as training goes on, and what they were once is no measure.
FOLLOWED_STEPS = 1_000

#: Steps over which the share of clipped ones is told.
WINDOW = 100

_POINTS = 512  # of a curve: more than a picture has room for


def threshold_from(
    norms: Iterable[float],
    *,
    multiple: float = MULTIPLE,
    bounds: Sequence[float] = BOUNDS,
) -> float:
    """A bound for gradient norms: a multiple of the mean of those that were measured.

    Args:
        norms: those that are not finite are left out; where none is left, the upper bound is taken.
        multiple: of the mean, > 0.
        bounds: the least and the largest threshold.

    Source:
        Pascanu, Mikolov, Bengio 2013, arXiv:1211.5063, section 3.2 (the mean as a measure).

    Example:
        >>> threshold_from([1.0, 2.0, float("nan")]), threshold_from([0.1]), threshold_from([1e9])
        (3.0, 1.0, 5.0)
    """
    finite = [norm for norm in norms if math.isfinite(norm)]
    low, high = bounds
    if not finite:
        return high
    return min(max(multiple * math.fsum(finite) / len(finite), low), high)


class AutoThreshold:
    """A bound for gradient norms that is chosen from the first of them.

    While it measures, the bound is the upper one of ``bounds``: an explosion among the first steps
    is clipped, too.

    Args:
        steps: how many finite norms are measured, >= 1.
        multiple: of their mean that becomes the bound, > 0.
        bounds: the least and the largest bound, > 0.
        percentile: follow this percentile of the last norms from then on, in (0, 100); ``None``
            keeps the bound.

    Attributes:
        value: the bound now.
        chosen: the bound when it was chosen; it is ``value`` unless a percentile is followed.
        first: the finite norms that were measured.

    Raises:
        RecipeError: a setting is out of its range.

    Example:
        >>> threshold = AutoThreshold(steps=2)
        >>> bounds = []
        >>> for norm in [1.0, float("nan"), 2.0, 9.0]:
        ...     threshold.add(norm)
        ...     bounds.append(threshold.value)
        >>> bounds
        [5.0, 5.0, 3.0, 3.0]
    """

    def __init__(
        self,
        *,
        steps: int = FIRST_STEPS,
        multiple: float = MULTIPLE,
        bounds: Sequence[float] = BOUNDS,
        percentile: float | None = None,
    ) -> None:
        check_auto(steps, multiple, bounds, percentile)
        self._steps, self._multiple = steps, multiple
        self._bounds = (float(bounds[0]), float(bounds[1]))
        self._followed = (
            None
            if percentile is None
            else RunningPercentile(percentile, window=max(FOLLOWED_STEPS, steps))
        )
        self.value = self.chosen = self._bounds[1]
        self.first: list[float] = []

    def measure_again(self) -> None:
        """Forget all norms, and choose the bound from the next ones."""
        self.first = []
        self.value = self.chosen = self._bounds[1]
        if self._followed is not None:
            followed = self._followed
            self._followed = RunningPercentile(followed.percentile, window=followed.window)

    @property
    def is_measuring(self) -> bool:
        """Whether the bound is still to be chosen."""
        return len(self.first) < self._steps

    @property
    def missing(self) -> int:
        """How many finite norms are still to be measured."""
        return self._steps - len(self.first)

    def add(self, norm: float) -> None:
        """Take one norm into account, unless it is not finite."""
        if not math.isfinite(norm):
            return
        measuring = self.is_measuring
        if self._followed is not None:
            self._followed.add(norm)
        if measuring:
            self.first.append(norm)
            if not self.is_measuring:
                self.value = self.chosen = threshold_from(
                    self.first, multiple=self._multiple, bounds=self._bounds
                )
        elif self._followed is not None:
            low, high = self._bounds
            self.value = min(max(self._followed.value, low), high)

    def state_dict(self) -> dict[str, Any]:
        """Everything that decides the bound; plain types."""
        followed = None if self._followed is None else self._followed.state_dict()
        return {
            "value": self.value,
            "chosen": self.chosen,
            "first": list(self.first),
            "followed": followed,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there; a percentile that was not followed before begins now."""
        self.value, self.chosen = state["value"], state["chosen"]
        self.first = list(state["first"])
        if self._followed is not None and state["followed"] is not None:
            self._followed.load_state_dict(state["followed"])


class ClipRecord:
    """How often one optimizer's gradients were clipped, and the curve of what was measured.

    The curve keeps the least and the largest of ever more steps in at most 512 points.

    Attributes:
        steps: how many were counted.
        clipped: at how many of them anything was clipped.
        not_finite: at how many the measure was not finite, so that nothing was clipped.
        width: steps in one point of the curve.
        lows: least measure of each point; ``inf`` where none was finite.
        highs: largest measure of each point; ``-inf`` where none was finite.
        bounds: the bound at the end of each point.

    Example:
        >>> record = ClipRecord()
        >>> for norm in [0.5, 2.0, 4.0, 1.0]:
        ...     record.add(norm, 3.0)
        >>> record.steps, record.clipped, record.fraction
        (4, 1, 0.25)
    """

    def __init__(self) -> None:
        self.steps = self.clipped = self.not_finite = 0
        self.width = 1
        self.lows: list[float] = []
        self.highs: list[float] = []
        self.bounds: list[float] = []
        self._last = 0  # the last steps as bits, one where the step was clipped

    @property
    def fraction(self) -> float:
        """Share of clipped steps among the last hundred."""
        return self._last.bit_count() / max(min(self.steps, WINDOW), 1)

    def add(self, measured: float, bound: float) -> None:
        """Count one step.

        Args:
            measured: before clipping.
            bound: that it was held against; a step with more was clipped.
        """
        finite = math.isfinite(measured)
        clipped = finite and measured > bound
        if self.steps % self.width == 0:
            if len(self.lows) == _POINTS:
                self._halve()
            self.lows.append(math.inf)
            self.highs.append(-math.inf)
            self.bounds.append(bound)
        self.steps += 1
        self.clipped += clipped
        self.not_finite += not finite
        self._last = (self._last << 1 | clipped) & ((1 << WINDOW) - 1)
        if finite:
            self.lows[-1] = min(self.lows[-1], measured)
            self.highs[-1] = max(self.highs[-1], measured)
        self.bounds[-1] = bound

    def _halve(self) -> None:
        """Put two points into one. Their number is even, and the last one is full."""
        self.width *= 2
        self.lows = list(map(min, self.lows[::2], self.lows[1::2]))
        self.highs = list(map(max, self.highs[::2], self.highs[1::2]))
        self.bounds = self.bounds[1::2]

    def state_dict(self) -> dict[str, Any]:
        """All of it; plain types. The last steps are written in hexadecimal digits."""
        kept = ("steps", "clipped", "not_finite", "width", "lows", "highs", "bounds")
        state = {name: getattr(self, name) for name in kept}
        copied = {k: list(v) if isinstance(v, list) else v for k, v in state.items()}
        return {**copied, "last": f"{self._last:x}"}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        for name, value in state.items():
            if name != "last":
                setattr(self, name, list(value) if isinstance(value, list) else value)
        self._last = int(state["last"], 16)


def check_auto(
    steps: int, multiple: float, bounds: Sequence[float], percentile: float | None
) -> None:
    """Check the settings of a threshold that is chosen by measurement.

    Raises:
        RecipeError: one of them is out of its range.

    Example:
        >>> check_auto(50, 2.0, (1.0, 5.0), None)
    """
    check_whole("steps", steps, least=1, hint="50 is usual")
    check_threshold("multiple", multiple)
    if not isinstance(bounds, tuple | list) or len(bounds) != 2:
        raise RecipeError(
            f"bounds must be the least and the largest threshold, got {bounds!r}; [1, 5] is usual."
        )
    for bound in bounds:
        check_threshold("each of bounds", bound)
    if bounds[0] > bounds[1]:
        raise RecipeError(f"bounds must rise, got {list(bounds)}; write the smaller one first.")
    if percentile is not None:
        check_percentile("percentile", percentile)
