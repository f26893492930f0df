"""How much of a pretrained network to keep, and how much of it to open, for a task and its labels.

Two numbers decide, and both are there before training: labels for each class, and how well a linear
probe does at each depth (:mod:`stablelightning.model.probe`).
"""

import math
from dataclasses import dataclass, replace
from typing import Any

from stablelightning.errors import DataError
from stablelightning.functional.discriminative import decayed_factors
from stablelightning.functional.probe import ProbeScore
from stablelightning.model.probe import ProbeProfile

#: A depth counts as worse than the best where it loses more than this share of what the best has
#: above chance, and than so many standard errors of both. Fine-tuning wins back smaller losses, and
#: drawing layers anew costs what they knew: who errs shall err on the side of keeping.
_LOST, _DOUBT = 0.2, 1.5
#: Labels for each class from which on everything is opened: log10 of it is the 2 that log10 of the
#: labels is divided by.
_PLENTY = 100
#: Numbers to predict have no classes: so many rows count like one row of each of ten classes.
_ROWS_LIKE_A_CLASS = 10
#: Share of the training for which the head is alone, and by which all that shall open are open.
_HEAD_ALONE, _ALL_OPEN = 0.1, 0.3
#: Factor on the rate for each group further down, where everything is opened.
_LAYER_DECAY = 0.8
#: Factor on the rate of everything below the head, where its features are right as they are.
_GENTLE = 0.1
#: A best score by less than so many of its standard errors above chance says nothing.
_SURE = 2.0


@dataclass(frozen=True)
class TransferChoice:
    """What becomes of each depth group.

    Args:
        groups: how many there are, the head included.
        keep_layers: groups from the input up that keep their weights; those above, but for the
            head, are drawn anew.
        open_groups: groups from the head down that are trained in the end; the others stay frozen.
        at_once: open from the start; ``False``: the head alone for a tenth of the training, then
            one group after the other until three tenths.
        layer_decay: factor on the learning rate for each group further from the head; ``None`` for
            one rate.
        reason: why, in words.
        rate_below: factor on the learning rate of everything below the head.

    Example:
        >>> choice = TransferChoice(5, 4, 3, False, None, "ten labels")
        >>> [choice.open_at(share) for share in (0.0, 0.1, 0.2, 0.3, 1.0)]
        [1, 2, 2, 3, 3]
    """

    groups: int
    keep_layers: int
    open_groups: int
    at_once: bool
    layer_decay: float | None
    reason: str
    rate_below: float = 1.0

    @property
    def redraws(self) -> bool:
        """Whether something below the head is drawn anew."""
        return self.keep_layers < self.groups - 1

    def open_at(self, share: float) -> int:
        """Groups that are open when this share of the training is done.

        Args:
            share: 0 to 1.
        """
        later = self.open_groups - 1
        if self.at_once or not later:
            return self.open_groups
        if share < _HEAD_ALONE:
            return 1
        step = (_ALL_OPEN - _HEAD_ALONE) / max(later - 1, 1)
        # Past rounding: a tenth and two steps of a tenth are a little less than three tenths.
        return 2 + min(later - 1, math.floor((share - _HEAD_ALONE) / step + 1e-9))

    def factors(self) -> list[float] | None:
        """Factors on the optimizer's rate of each group, from input to output; ``None`` for one."""
        if self.layer_decay is None and self.rate_below == 1.0:
            return None
        factors = decayed_factors(self.groups, self.layer_decay or 1.0)
        return [*(factor * self.rate_below for factor in factors[:-1]), factors[-1]]

    @property
    def plan(self) -> str:
        """What is done, in words."""
        body = self.groups - 1
        kept = f"keep {_groups(self.keep_layers)} of {body} below the head"
        drawn = f" and draw {body - self.keep_layers} anew" if self.redraws else ""
        when = "from the start" if self.at_once else "the head first"
        opened = f"open {self.open_groups} of {self.groups} groups, {when}"
        rates = f", rates falling by {self.layer_decay:g} a group" if self.layer_decay else ""
        if self.rate_below != 1.0 and self.open_groups > 1:
            rates += f", below the head at {self.rate_below:g} of its rate"
        return f"{kept}{drawn}; {opened}{rates}"

    def __str__(self) -> str:
        return f"{self.plan}: {self.reason}"

    def to_dict(self) -> dict[str, Any]:
        """Plain types, as a checkpoint keeps them."""
        return dict(vars(self))


def choose_transfer(profile: ProbeProfile, labels_per_class: float) -> TransferChoice:
    r"""Choose how many layers to keep and how many groups to open.

    **Keep** the deepest depth at which a probe is about as good as anywhere: no more below the best
    than one and a half standard errors of both together, or than a fifth of what the best has above
    chance. What lies above forgot what the task needs, and is drawn anew. The lowest group is
    always kept.

    **Open** everything where something is drawn anew, or where nothing can be read at any depth:
    the task is far from what the network knows. Otherwise, of the :math:`G` groups below the head,
    the upper :math:`\lceil G \log_{10}(L) / 2 \rceil` for :math:`L` labels for each class: one
    label trains the head alone, ten the upper half, a hundred everything, at rates that fall with
    the distance to the head. With fewer than a hundred, what is below the head is trained at a
    tenth of its rate where the task is read best right before the head: such features are right,
    and few labels could only spoil them. Where it is read as well or better further down, the upper
    layers have to move, at the full rate.

    The constants were set by the meaning that they have here, and by runs on scikit-learn's digits
    with other classes and seeds than those of the benchmark, of which no result was looked at.

    Args:
        profile: of the training rows, by :func:`~stablelightning.model.probe.probe_by_depth`.
        labels_per_class: labelled rows of the training set over classes, > 0; a tenth of the rows
            where numbers are predicted.

    Returns:
        The choice with its reason.

    Raises:
        DataError: ``labels_per_class`` is not positive.

    Source:
        Yosinski et al. 2014, arXiv:1411.1792 (lower layers are general, upper ones specific); Kumar
        et al. 2022, arXiv:2202.10054 (the head first); Breiman et al. 1984, "Classification and
        Regression Trees", section 3.4.3 (within one standard error of the best).

    Example:
        >>> scores = tuple(ProbeScore(value, 0.1, 0.02) for value in (0.5, 0.8, 0.9))
        >>> profile = ProbeProfile("accuracy", ("stem", "block", "head"), scores, 100, 10, 10)
        >>> choice = choose_transfer(profile, 10)
        >>> choice.keep_layers, choice.open_groups, choice.rate_below
        (2, 2, 0.1)
    """
    if not labels_per_class > 0:
        raise DataError(
            f"labels_per_class must be > 0, got {labels_per_class!r}; count the labelled rows."
        )
    groups = len(profile.groups)
    best = profile.scores[profile.best]
    assert best is not None
    seen = _seen(profile, labels_per_class)
    choice = TransferChoice(groups, groups - 1, groups, True, None, "")
    if best.value - best.chance < _SURE * best.error:
        why = "nothing can be read at any depth, so everything has to adapt"
        return replace(choice, reason=f"{seen}; {why}")
    keep = max(_deepest_as_good(profile, best), min(1, groups - 1))
    if keep < groups - 1:
        why = (
            f"{_value(best)} {_place(profile.best)}: what lies above "
            f"{profile.groups[keep - 1]} has lost what this task needs"
        )
        return replace(choice, keep_layers=keep, reason=f"{seen}, {why}")
    if labels_per_class >= _PLENTY:
        why = "they are enough to train everything"
        return replace(choice, layer_decay=_LAYER_DECAY, reason=f"{seen}; {why}")
    share = math.log10(max(labels_per_class, 1.0)) / math.log10(_PLENTY)
    opened = 1 + math.ceil((groups - 1) * share)
    is_near = profile.best == groups - 1
    where = "nowhere better, so that it is moved little" if is_near else "not lower further down"
    why = f"{where}; so few labels train the upper {share:.0%} of what is below the head"
    return replace(
        choice,
        open_groups=opened,
        at_once=opened == 1,
        rate_below=_GENTLE if is_near else 1.0,
        reason=f"{seen}, {why}",
    )


def labels_for_each(profile: ProbeProfile, rows: int) -> float:
    """Labelled rows for each class; a tenth of all rows where numbers are predicted.

    Args:
        profile: says which of both.
        rows: labelled rows of the training set.

    Example:
        >>> profile = ProbeProfile("r2", ("0",), (ProbeScore(0.5, 0.0, 0.1),), 50, 0, 50)
        >>> labels_for_each(profile, 200)
        20.0
    """
    return rows / (profile.classes or _ROWS_LIKE_A_CLASS)


def _deepest_as_good(profile: ProbeProfile, best: ProbeScore) -> int:
    lost = _LOST * (best.value - best.chance)
    deepest = profile.best
    for depth, score in enumerate(profile.scores):
        if score is not None:
            within = max(_DOUBT * math.hypot(score.error, best.error), lost)
            deepest = max(deepest, depth) if best.value - score.value <= within else deepest
    return deepest


def _seen(profile: ProbeProfile, labels_per_class: float) -> str:
    if profile.classes:
        labels = f"{labels_per_class:.3g} labels for each of {profile.classes} classes"
    else:
        labels = f"{labels_per_class * _ROWS_LIKE_A_CLASS:.4g} rows with numbers to predict"
    what = "the accuracy" if profile.classes else "the explained variance"
    at = profile.at_head
    return f"{labels}; {what} of a linear probe where the head reads is {_value(at)}"


def _value(score: ProbeScore) -> str:
    return f"{score.value:.2f} +- {score.error:.2f}"


def _place(depth: int) -> str:
    return f"after {_groups(depth)}" if depth else "in the inputs themselves"


def _groups(number: int) -> str:
    return f"{number} group" if number == 1 else f"{number} groups"
