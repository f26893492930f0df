"""When to answer and when not to: thresholds for a wanted risk or coverage, and the reasons."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from stablelightning.errors import DataError, RecipeError
from stablelightning.functional.selective import risk_coverage_curve

#: Why a row is not answered; the numbers are those of ``Prediction.reason``.
REASONS = ("answered", "aleatoric", "epistemic", "out of distribution")
ANSWERED, ALEATORIC, EPISTEMIC, OUT_OF_DISTRIBUTION = range(len(REASONS))

#: A mean loss of fewer rows than this says nothing about the risk of the next one.
FEWEST_ROWS = 10

#: A promise holds for the best of so many shares of answered rows at once (a union bound); more of
#: them would fit the threshold more finely, and each of them with less certainty.
_SHARES = 20

#: Halvings of [0, 1]: far below what a risk is ever stated to.
_HALVINGS = 50

#: Hoeffding's inequality: a sum of n is further off than so many roots of n once in 10^31 times.
_SPREADS = 6

#: Shares are sums of float32: a hair above the wanted risk is the wanted risk.
_ROUNDING = 1e-6


class Operating(NamedTuple):
    """A threshold, and what it did on the rows that it was chosen on.

    Args:
        threshold: the largest uncertainty that is answered.
        coverage: share of the rows that are answered, in (0, 1].
        risk: mean loss of the answered rows.
        bound: what the risk of later rows stays below, with the confidence that was asked for;
            ``None`` where nothing is promised.
    """

    threshold: float
    coverage: float
    risk: float
    bound: float | None = None


def operating_point_at_coverage(uncertainty: Tensor, loss: Tensor, *, coverage: float) -> Operating:
    """Answer the rows of least uncertainty, at least ``coverage`` of all.

    Args:
        uncertainty: ``(N,)``, larger is less certain; infinite where a row shall not be answered
            whatever the threshold.
        loss: ``(N,)``, what an answer costs: 1 where it is wrong, or a squared error.
        coverage: wanted share of answered rows, in (0, 1].

    Raises:
        RecipeError: ``coverage`` is out of its range, or more than the rows that may be answered.
        DataError: no rows, different lengths, NaN.

    Source:
        El-Yaniv, Wiener 2010, "On the foundations of noise-free selective classification", JMLR 11.

    Example:
        >>> uncertainty, wrong = torch.tensor([0.1, 0.9, 0.3, 0.5]), torch.tensor([0, 1, 0, 1])
        >>> operating_point_at_coverage(uncertainty, wrong, coverage=0.75)
        Operating(threshold=0.5, coverage=0.75, risk=0.333..., bound=None)
    """
    if not 0 < coverage <= 1:
        raise RecipeError(f"coverage must be in (0, 1], got {coverage}; 0.9 is usual.")
    curve = _curve(uncertainty, loss)
    enough = (curve.count >= math.ceil(coverage * curve.rows - _ROUNDING)).nonzero()
    if not len(enough):
        possible = float(curve.count[-1]) / curve.rows if len(curve.count) else 0.0
        raise RecipeError(
            f"coverage must be one that the rows can reach, got {coverage:g} where at most "
            f"{possible:.3g} of the {curve.rows} rows may be answered; ask for that, or call fewer "
            "rows unfamiliar."
        )
    return curve.at(int(enough[0]))


def operating_point_at_risk(uncertainty: Tensor, loss: Tensor, *, risk: float) -> Operating:
    """Answer as many rows as the mean loss of the answered ones allows.

    At least :data:`FEWEST_ROWS` rows are answered, and at least ``1 / risk`` where a loss is 0 or
    1: fewer rows without a mistake are no sign of so small a risk.

    Args:
        uncertainty: ``(N,)``, larger is less certain; infinite where a row shall not be answered
            whatever the threshold.
        loss: ``(N,)``, what an answer costs: 1 where it is wrong, or a squared error.
        risk: largest mean loss of the answered rows, > 0.

    Returns:
        What holds on these rows. Later rows may do worse, the more so the fewer were answered here;
        :func:`operating_point_with_guarantee` accounts for that.

    Raises:
        RecipeError: ``risk`` is not positive, or no threshold reaches it; the message says the best
            that can be had.
        DataError: no rows, different lengths, NaN.

    Source:
        Geifman, El-Yaniv 2017, arXiv:1705.08500.

    Example:
        >>> uncertainty, wrong = torch.arange(40) / 64, torch.arange(40) >= 20
        >>> operating_point_at_risk(uncertainty, wrong, risk=0.2)
        Operating(threshold=0.375, coverage=0.625, risk=0.2, bound=None)
    """
    _check_risk(risk)
    curve = _curve(uncertainty, loss)
    least = _fewest(curve, risk)
    allowed = curve.count >= least
    fine = allowed & (curve.risk <= risk * (1 + _ROUNDING))
    if not bool(fine.any()):
        raise _unreachable(curve, allowed, curve.risk, risk, least)
    return curve.at(int(fine.nonzero()[-1]))


def operating_point_with_guarantee(
    uncertainty: Tensor, wrong: Tensor, *, risk: float, confidence: float
) -> Operating:
    """Answer as many rows as can be promised to hold a risk, on later rows too.

    Twenty shares of answered rows, fixed beforehand, are tried: the promise is the exact binomial
    bound of Clopper and Pearson on the errors among the rows that each answers, at
    ``1 - (1 - confidence) / 20``, so that all twenty hold together and the best may be taken. The
    binary search of the source chooses what it tests by looking at the same errors; shares that are
    fixed need no argument for that.

    Args:
        uncertainty: ``(N,)``, larger is less certain; infinite where a row shall not be answered
            whatever the threshold.
        wrong: ``(N,)``, 1 where the answer is wrong and 0 where it is right.
        risk: share of wrong answers that is promised not to be exceeded, in (0, 1).
        confidence: probability, over the draw of these rows, that the promise holds; in (0, 1).

    Raises:
        RecipeError: a setting is out of its range, or nothing can be promised; the message says the
            best that can be had.
        DataError: no rows, different lengths, NaN, or losses between 0 and 1.

    Source:
        Geifman, El-Yaniv 2017, arXiv:1705.08500, lemma 3.1 (the bound, and the use of it); Clopper,
        Pearson 1934, Biometrika 26(4).

    Example:
        >>> uncertainty = torch.arange(1000) / 1000
        >>> wrong = (torch.arange(1000) >= 800).float()
        >>> point = operating_point_with_guarantee(uncertainty, wrong, risk=0.05, confidence=0.95)
        >>> point.coverage, point.risk, round(point.bound, 4)
        (0.8, 0.0, 0.0075)
    """
    _check_risk(risk)
    if not risk < 1:
        raise RecipeError(f"a risk that is promised must be in (0, 1), got {risk}; 0.05 is usual.")
    if not 0 < confidence < 1:
        raise RecipeError(f"confidence must be in (0, 1), got {confidence}; 0.95 is usual.")
    curve = _curve(uncertainty, wrong)
    if not curve.binary:
        raise DataError(
            "a promise needs answers that are right or wrong (losses of 0 and 1), got losses in "
            "between; leave confidence out to hold the mean loss of these rows."
        )
    shares = torch.arange(1, _SHARES + 1) * curve.rows // _SHARES
    places = torch.searchsorted(curve.count, shares.clamp(min=1)).unique()
    places = places[places < len(curve.count)]
    each = 1 - (1 - confidence) / _SHARES
    # The row that is the threshold itself is chosen, not drawn: the others below it are the trials.
    trials = (curve.count[places] - 1).clamp(min=0)
    errors = (curve.risk[places] * curve.count[places]).round()
    bounds = torch.ones(len(curve.count), dtype=torch.float64)
    bounds[places] = binomial_upper_bound(errors, trials, confidence=each)
    fine = bounds <= risk
    if not bool(fine.any()):
        raise _unreachable(curve, curve.count > 0, bounds, risk, 1, confidence)
    place = int(fine.nonzero()[-1])
    return curve.at(place)._replace(bound=float(bounds[place]))


def binomial_upper_bound(errors: Tensor, trials: Tensor, *, confidence: float) -> Tensor:
    """The largest error rate that so few errors do not speak against (Clopper and Pearson).

    Args:
        errors: number of errors, any shape, in [0, trials].
        trials: number of trials, the same shape.
        confidence: one-sided, in (0, 1).

    Returns:
        The same shape, in (0, 1], float64; 1 where there are no trials.

    Source:
        Clopper, Pearson 1934, "The use of confidence or fiducial limits illustrated in the case of
        the binomial", Biometrika 26(4).

    Example:
        >>> binomial_upper_bound(torch.tensor([0, 1]), torch.tensor([59, 93]), confidence=0.95)
        tensor([0.0495, 0.0500], dtype=torch.float64)
    """
    errors, trials = errors.double(), trials.double()
    low, high = torch.zeros_like(trials), torch.ones_like(trials)
    most = int(errors.max()) if errors.numel() else 0
    if confidence > 0.5:
        # At the rate that was seen, so few errors are more probable than not: the bound is above.
        # There, errors further from those seen than this add less than 1e-30 of the rest.
        low = (errors / trials.clamp(min=1)).clamp(max=1)
        most = min(most, math.ceil(_SPREADS * float(trials.max()) ** 0.5)) if most else 0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        likely = _binomial_distribution(errors, trials, middle, most=most) > 1 - confidence
        low, high = torch.where(likely, middle, low), torch.where(likely, high, middle)
    return torch.where(errors >= trials, torch.ones_like(high), high)


def _binomial_distribution(errors: Tensor, trials: Tensor, rate: Tensor, *, most: int) -> Tensor:
    """Probability of at most so many errors, and of at most ``most`` fewer."""
    fewer = torch.arange(most + 1, dtype=torch.float64, device=errors.device)
    number = errors.unsqueeze(-1) - fewer
    none = number < 0
    number = number.clamp(min=0)
    n, p = trials.unsqueeze(-1), rate.unsqueeze(-1)
    ways = torch.lgamma(n + 1) - torch.lgamma(number + 1) - torch.lgamma((n - number).clamp(0) + 1)
    terms = ways + torch.xlogy(number, p) + torch.special.xlog1py((n - number).clamp(min=0), -p)
    beyond = none | (number > n)
    tail: Tensor = terms.masked_fill(beyond, -math.inf).logsumexp(-1)
    return tail.exp()


def reasons_to_abstain(
    total: Tensor, aleatoric: Tensor, epistemic: Tensor, *, largest: float, familiar: float
) -> Tensor:
    """Why each row is not answered, by what would have to be different for it to be.

    - ``OUT_OF_DISTRIBUTION`` where the epistemic part is above ``familiar``: the rows that
      thresholds were chosen on hardly ever show so much.
    - ``ANSWERED`` where the total is at most ``largest``.
    - ``ALEATORIC`` where the noise by itself is above ``largest``: the row would not be answered
      if the model knew all that data can teach.
    - ``EPISTEMIC`` where the noise by itself is not: with more data like it, it could be answered.

    Args:
        total: ``(N,)``, the sum of the two parts.
        aleatoric: ``(N,)``, the part that is noise in the data.
        epistemic: ``(N,)``, the part that the model does not know.
        largest: the largest total that is answered.
        familiar: the largest epistemic part of a row that is like those known.

    Returns:
        ``(N,)`` int64, indices into :data:`REASONS`.

    Example:
        >>> total = torch.tensor([0.2, 0.9, 0.9, 0.9])
        >>> epistemic = torch.tensor([0.1, 0.1, 0.5, 0.8])
        >>> reasons_to_abstain(total, total - epistemic, epistemic, largest=0.6, familiar=0.7)
        tensor([0, 1, 2, 3])
    """
    why = torch.where(aleatoric > largest, ALEATORIC, EPISTEMIC)
    why = torch.where(total <= largest, ANSWERED, why)
    return torch.where(epistemic > familiar, OUT_OF_DISTRIBUTION, why)


@dataclass(frozen=True)
class _Curve:
    """Every threshold that could be chosen, from the strictest: rows answered, and their risk."""

    threshold: Tensor
    count: Tensor
    risk: Tensor
    rows: int
    binary: bool

    def at(self, place: int) -> Operating:
        coverage = int(self.count[place]) / self.rows
        return Operating(float(self.threshold[place]), coverage, float(self.risk[place]))


def _curve(uncertainty: Tensor, loss: Tensor) -> _Curve:
    if uncertainty.ndim != 1 or uncertainty.shape != loss.shape or not len(loss):
        raise DataError(
            "uncertainty and loss must be one number for each row, of the same rows and at least "
            f"one, got {tuple(uncertainty.shape)} and {tuple(loss.shape)}."
        )
    score, cost = uncertainty.detach().cpu().double(), loss.detach().cpu().double()
    bad = int((score.isnan() | cost.isnan()).sum())
    if bad:
        raise DataError(
            f"uncertainty and loss must not be NaN, got {bad} such rows of {len(score)}; look for "
            "it in the inputs, or in the model."
        )
    allowed = score.isfinite()
    if not bool(allowed.any()):
        nothing = torch.zeros(0, dtype=torch.float64)
        return _Curve(nothing, nothing.long(), nothing, len(score), binary=True)
    threshold, risk, count = _walk(score[allowed], cost[allowed])
    binary = bool(((cost == 0) | (cost == 1)).all())
    return _Curve(threshold, count, risk, len(score), binary)


def _walk(score: Tensor, cost: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Thresholds in ascending order, with the risk and the number of the rows that each answers."""
    curve = risk_coverage_curve(score, cost)
    return curve.threshold, curve.risk, (curve.coverage * len(score)).round().long()


def _fewest(curve: _Curve, risk: float) -> int:
    return max(FEWEST_ROWS, math.ceil(1 / risk - _ROUNDING)) if curve.binary else FEWEST_ROWS


def _check_risk(risk: float) -> None:
    if not risk > 0:
        raise RecipeError(
            f"risk must be > 0, got {risk}; 0.05 is usual for a share of wrong answers."
        )


def _unreachable(
    curve: _Curve, allowed: Tensor, risks: Tensor, risk: float, least: int, confidence: float = 0.0
) -> RecipeError:
    promise = f" with confidence {confidence:g}" if confidence else ""
    wanted = f"risk must be one that a threshold reaches, got {risk:g}{promise}"
    if not bool(allowed.any()):
        return RecipeError(
            f"{wanted}, which takes at least {least} rows to see where {curve.rows} are given and "
            f"{int(curve.count[-1]) if len(curve.count) else 0} may be answered; give more rows, "
            "or allow a larger risk."
        )
    best = int(torch.where(allowed, risks, math.inf).argmin())
    return RecipeError(
        f"{wanted}, and the best of {curve.rows} rows is {float(risks[best]):.3g}, answering "
        f"{100 * int(curve.count[best]) / curve.rows:.3g} % of them; allow that much, or give more "
        "rows."
    )
