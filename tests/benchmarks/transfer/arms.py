"""Arms that are compared: as many tuning trials for each, and then the same seeds for all."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import Any

from tests.benchmarks.paired import differences, interval
from tests.benchmarks.record import Job, Run
from tests.benchmarks.transfer.plans import SCRATCH

#: Seeds of the tuning, which no reported number has: other labelled images, judged on validation.
TUNING_SEEDS = (100, 101)

#: Trains one arm once; ``part`` is ``"val"`` or ``"test"``, and ``"error"`` in its result is on it.
Work = Callable[..., dict[str, Any]]


def compare(
    run: Run,
    work: Work,
    *,
    arms: Mapping[str, Sequence[float]],
    cases: Mapping[str, Mapping[str, Any]],
    tuning_seeds: Sequence[int] = TUNING_SEEDS,
) -> dict[str, Any]:
    """Tune the learning rate of each arm, and train every arm with every seed.

    Args:
        run: where results go, and how many seeds.
        work: takes ``arm``, ``rate``, ``seed``, ``part`` and the settings of the case.
        arms: learning rates to try by name; of one length.
        cases: further settings by name; the rate of an arm is the same for all of them.
        tuning_seeds: of the trials of a rate, whose mean counts.

    Returns:
        ``"rates"`` by arm, ``"validation"`` errors by arm and rate, and ``"errors"`` on the test
        images by arm and case, of each seed.
    """
    assert len({len(rates) for rates in arms.values()}) == 1, "an equal number of trials"
    tuning = {
        (arm, rate, seed, case): f"tune {arm} {rate:g} {case} seed {seed}"
        for seed, case, arm in product(tuning_seeds, cases, arms)
        for rate in arms[arm]
    }
    found = run.all(
        {
            name: _job(work, arm, rate, seed, cases[case], part="val")
            for (arm, rate, seed, case), name in tuning.items()
        }
    )
    validation = {
        arm: {
            f"{rate:g}": statistics.fmean(
                found[name]["error"] for key, name in tuning.items() if key[:2] == (arm, rate)
            )
            for rate in rates
        }
        for arm, rates in arms.items()
    }
    chosen = {
        arm: float(min(errors, key=lambda r: errors[r])) for arm, errors in validation.items()
    }
    final = {
        (arm, case, seed): f"{arm} {case} seed {seed}"
        for seed, case, arm in product(range(run.seeds), cases, arms)
    }
    tested = run.all(
        {
            name: _job(work, arm, chosen[arm], seed, cases[case], part="test")
            for (arm, case, seed), name in final.items()
        }
    )
    errors = {
        arm: {
            case: [tested[final[arm, case, seed]]["error"] for seed in range(run.seeds)]
            for case in cases
        }
        for arm in arms
    }
    return {"rates": chosen, "validation": validation, "errors": errors}


def _job(
    work: Work, arm: str, rate: float, seed: int, case: Mapping[str, Any], *, part: str
) -> Job:
    return Job(work, {"arm": arm, "rate": rate, "seed": seed, "part": part, **case})


def flat(errors: Mapping[str, Sequence[float]]) -> list[float]:
    """The errors of all cases and seeds, in one order for all arms."""
    return [error for case in errors.values() for error in case]


def cut(errors: Mapping[str, Sequence[float]], scratch: Mapping[str, Sequence[float]]) -> float:
    """Share of scratch's mean error that is gone."""
    return 1 - statistics.fmean(flat(errors)) / statistics.fmean(flat(scratch))


def table_of(found: Mapping[str, Any]) -> str:
    """Markdown: every arm, beside scratch."""
    scratch = found["errors"][SCRATCH]
    lines = [
        "| arm | rate | test error, % | less than scratch, points | error cut by |",
        "|---|---|---|---|---|",
    ]
    for arm, errors in found["errors"].items():
        mean = f"{interval(flat(errors))}"
        row = [arm, f"{found['rates'][arm]:g}", mean]
        if arm == SCRATCH:
            row += ["", ""]
        else:
            gained = differences(flat(scratch), flat(errors))
            row += [f"{gained}", f"{cut(errors, scratch):.0%}"]
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)
