"""What the gap between training and validation loss, measured in one mode, advises."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn, optim

from stablelightning.model.stochastic import stochastic_modules

#: Means over the last so many measurements are judged, and fewer are not judged at all.
JUDGED = 3
#: Of the validation loss, the share that is not training loss too: beyond the first, most of what
#: is wrong is wrong on new data only; below the second, hardly anything is.
LARGE_SHARE, SMALL_SHARE = 0.5, 0.1
#: Of the loss before training. Below the first nothing is worth advice; a training loss above the
#: second has not learned what it could, or the data hold no more.
LEARNED, UNLEARNED = 0.05, 0.1
#: Beyond this rate dropout takes away more than it protects.
_HIGHEST_RATE = 0.5
_RATE_STEP = 0.1
#: A validation loss this much above its own best has begun to grow.
_GROWN = 1.1
_ADAPTIVE = (
    optim.Adam,
    optim.Adamax,
    optim.NAdam,
    optim.RAdam,
    optim.RMSprop,
    optim.Adagrad,
    optim.Adadelta,
)


@dataclass(frozen=True)
class Gap:
    """The loss on rows of the training set and on the validation set, both without dropout.

    Args:
        step: under which loggers have it.
        train: mean loss on rows of the training set, in eval mode.
        validation: mean loss on the validation set, in eval mode.

    Example:
        >>> gap = Gap(100, train=0.25, validation=1.0)
        >>> gap.value, gap.share
        (0.75, 0.75)
    """

    step: int
    train: float
    validation: float

    @property
    def value(self) -> float:
        """Validation less training loss."""
        return self.validation - self.train

    @property
    def share(self) -> float:
        """The gap as a share of the larger of the two losses; in [0, 1] for positive losses."""
        size = max(abs(self.validation), abs(self.train))
        return self.value / size if size > 0 else 0.0


def advise_on_gap(
    gaps: Sequence[Gap],
    *,
    start: float,
    rates: Sequence[float],
    optimizers: Sequence[optim.Optimizer] = (),
) -> list[str]:
    """Advice in words from the gaps of a training.

    The last three measurements are judged by their mean. A large gap (half of the validation loss)
    asks for more dropout, for less adaptive steps, and to stop at the best; a small one (a tenth),
    where the training loss is still more than a tenth of what it was at first, for less dropout.

    Args:
        gaps: in order; fewer than three are not judged.
        start: the training loss before the first step, in eval mode.
        rates: dropout rates of the model, without those that are 0.
        optimizers: that trained it.

    Returns:
        Sentences; none where nothing is to be changed.

    Source:
        Srivastava et al. 2014, JMLR 15 (dropout against a gap); Wilson et al. 2017,
        arXiv:1705.08292 (adaptive steps and the gap). The thresholds are this package's.

    Example:
        >>> gaps = [Gap(step, train=0.1, validation=0.8) for step in (1, 2, 3)]
        >>> advise_on_gap(gaps, start=2.3, rates=[0.2])[0]
        'The validation loss (0.8) is 8.0 times the training loss (0.1), both without dropout: \
raise the dropout rate from 0.2 to 0.3.'
    """
    if len(gaps) < JUDGED:
        return []
    last = gaps[-JUDGED:]
    now = Gap(
        last[-1].step,
        sum(gap.train for gap in last) / JUDGED,
        sum(gap.validation for gap in last) / JUDGED,
    )
    if now.share >= LARGE_SHARE and now.value > LEARNED * abs(start):
        return list(_against_a_large_gap(now, gaps, rates, optimizers))
    if abs(now.share) <= SMALL_SHARE and rates and now.train > UNLEARNED * abs(start):
        return [_against_too_much_dropout(now, start, max(rates))]
    return []


def dropout_rates(model: nn.Module) -> list[float]:
    """The rates above 0 of a model's dropout modules, in their order.

    Example:
        >>> dropout_rates(nn.Sequential(nn.Dropout(0.3), nn.Linear(2, 2), nn.Dropout(0.0)))
        [0.3]
    """
    rates = []
    for module in stochastic_modules(model).flagged:
        found = next((getattr(module, n) for n in ("p", "dropout") if hasattr(module, n)), None)
        if isinstance(found, int | float):
            rates.append(float(found))
    return rates


def is_adaptive(optimizer: optim.Optimizer) -> bool:
    """Whether the size of an optimizer's steps is adapted to each weight's gradients.

    Example:
        >>> is_adaptive(optim.AdamW(nn.Linear(1, 1).parameters()))
        True
        >>> is_adaptive(optim.SGD(nn.Linear(1, 1).parameters(), lr=0.1, momentum=0.9))
        False
    """
    return isinstance(optimizer, _ADAPTIVE) or "betas" in optimizer.defaults


def _against_a_large_gap(
    now: Gap, gaps: Sequence[Gap], rates: Sequence[float], optimizers: Sequence[optim.Optimizer]
) -> list[str]:
    seen = (
        f"The validation loss ({now.validation:.3g}) is {_times(now)} the training loss "
        f"({now.train:.3g}), both without dropout"
    )
    rate = max(rates, default=0.0)
    if not rates:
        advice = [f"{seen}, and there is no dropout: add some, sl.add_dropout(model, rate=0.2)."]
    elif rate < _HIGHEST_RATE:
        raised = min(rate + _RATE_STEP, _HIGHEST_RATE)
        advice = [f"{seen}: raise the dropout rate from {rate:.2g} to {raised:.2g}."]
    else:
        advice = [
            f"{seen}, with dropout at {rate:.2g} already: add a penalty (overlays l2, l1, "
            "max_norm), augment the data, or train a smaller network."
        ]
    best = min(gaps, key=lambda gap: gap.validation)
    if now.validation > 0 and now.validation > _GROWN * best.validation:
        advice.append(
            f"The validation loss was {best.validation:.3g} at step {best.step} and has grown "
            "since: stop early and go back to the best weights (StopEarly, overlay stop_early)."
        )
    names = [type(optimizer).__name__ for optimizer in optimizers if is_adaptive(optimizer)]
    if names:
        advice.append(
            f"With a gap like this, try SGD with Nesterov momentum (overlay nesterov) in the place "
            f"of {names[0]}: adaptive steps can fit the training set as well and generalize worse "
            "(arXiv:1705.08292)."
        )
    return advice


def _against_too_much_dropout(now: Gap, start: float, rate: float) -> str:
    lowered = max(rate - _RATE_STEP, 0.0)
    how = (
        f"lower the dropout rate from {rate:.2g} to {lowered:.2g}" if lowered else "remove dropout"
    )
    return (
        f"The training loss without dropout ({now.train:.3g}, {start:.3g} at the start) is hardly "
        f"below the validation loss ({now.validation:.3g}): there is nothing to protect from, and "
        f"the fit is held back. {how[0].upper()}{how[1:]}, train longer, or take a larger network; "
        "unless the data hold no more."
    )


def _times(now: Gap) -> str:
    return f"{now.validation / now.train:.1f} times" if now.train > 0 else "far above"
