"""Findings about the batch: its scale, its centre, and whether its rows differ at all."""

from collections.abc import Iterator

from stablelightning.model.diagnosis import Finding
from stablelightning.model.findings.examination import Examination
from stablelightning.model.observe import TensorSignal

#: Every rule of initialization assumes inputs of mean 0 and std 1. Pixels of 0..255 have rms 130;
#: standardised data with outliers stays below 5.
LARGE_INPUT = 5.0
#: From here on the first layer saturates or explodes whatever its weights are.
HUGE_INPUT = 20.0
#: Below this the biases outweigh the data from the first layer on.
SMALL_INPUT = 0.02
#: Share of the power in the means of the features from which a common offset hides the data.
OFFSET = 0.9
#: Features whose scales differ so much leave the small ones unread for thousands of steps.
UNLIKE_FEATURES = 100.0
#: Means of so few rows are as large as their spread by chance.
FEWEST_EXAMPLES = 8
#: Rows more alike than this are the same row.
SAME_ROWS = 0.99999


def input_not_standardised(examination: Examination) -> Iterator[Finding]:
    """The scale and the centre of what the network is fed."""
    softened = _norm_comes_first(examination)
    for signal in examination.measurement.inputs:
        if _is_constant(signal, examination.measurement.examples):
            yield Finding(
                "input-not-standardised",
                "error",
                "",
                "every row of the input is the same: there is nothing to learn from it.",
                {"std": signal.std, "cosine": signal.cosine, "rms": signal.rms},
                "check the loading and the scaling of the data; a divided-by-zero std or a "
                "mask of ones looks like this.",
            )
            continue
        problem = _problem(signal, examination.measurement.examples)
        if problem is None:
            continue
        severe = signal.rms > HUGE_INPUT and not softened
        yield Finding(
            "input-not-standardised",
            "error" if severe else ("info" if softened else "warning"),
            "",
            problem,
            {
                "mean": signal.mean,
                "std": signal.std,
                "rms": signal.rms,
                "largest": signal.largest,
                "feature_spread": signal.spread,
            },
            "subtract the mean and divide by the standard deviation of the training data, "
            "feature by feature (channel by channel for images).",
        )


def collapsed_input(examination: Examination) -> Iterator[Finding]:
    """Rows that are copies of each other make every later layer look collapsed."""
    for signal in examination.measurement.inputs:
        if _is_constant(signal, examination.measurement.examples):
            yield Finding(
                "collapsed-signal",
                "error",
                "",
                "different rows of the input are the same, so that every layer gives the same "
                "answer to all.",
                {"cosine": signal.cosine, "std": signal.std},
                "look at one batch of the data loader.",
            )


def _is_constant(signal: TensorSignal, examples: int) -> bool:
    if examples < 2 or not signal.finite:
        return False
    return signal.quiet == 1.0 or signal.cosine > SAME_ROWS or signal.rms == 0


def _problem(signal: TensorSignal, examples: int) -> str | None:
    if not signal.finite:
        return None
    if signal.rms > LARGE_INPUT:
        return f"the input has rms {signal.rms:.3g} (mean {signal.mean:.3g}, std {signal.std:.3g})."
    if 0 < signal.rms < SMALL_INPUT:
        return f"the input has rms {signal.rms:.2g}: the biases outweigh it."
    if signal.mean_share > OFFSET and examples >= FEWEST_EXAMPLES:
        return (
            f"the input has mean {signal.mean:.3g} and std {signal.std:.3g}: "
            f"{signal.mean_share:.0%} of its power is a constant offset."
        )
    if signal.spread > UNLIKE_FEATURES and signal.units > 1 and signal.rms > 1:
        return f"the largest scale of a feature is {signal.spread:.3g} times the median one."
    return None


def _norm_comes_first(examination: Examination) -> bool:
    """Whether every layer that reads the input has a norm before anything can saturate."""
    first = [x.role for x in examination.layers if x.role is not None and x.role.is_input]
    return bool(first) and all(role.consumer.normalised for role in first)
