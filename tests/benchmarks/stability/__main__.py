"""Run the benchmark; see the package for its arguments."""

import argparse
import difflib
import json
import platform
import sys
import time
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

import stablelightning as sl
from tests.benchmarks.stability import show, theory
from tests.benchmarks.stability.judge import Verdict, judge
from tests.benchmarks.stability.rows import COLUMNS, ROWS, Row
from tests.benchmarks.stability.training import Result, train_all

PROFILED = ("relu", "leaky_relu", "gelu", "silu", "mish", "selu", "tanh")
#: ``--quick``: enough to see that every part runs, far too little to judge by.
_QUICK_SEEDS, _QUICK_EPOCHS = 1, 0.05


def main(arguments: Sequence[str] | None = None) -> int:
    given = _parse(arguments)
    warnings.filterwarnings("ignore", category=UserWarning)
    started = time.perf_counter()
    rows = [row.scaled(given.epochs_scale) for row in _chosen(given.rows)]
    result: dict[str, Any] = {
        "machine": f"{platform.machine()}, torch {torch.__version__}, package {sl.__version__}",
        "epochs scale": given.epochs_scale,
    }
    if not given.training_only:
        result |= _theory()
    verdicts = _trained(rows, seeds=given.seeds, processes=given.processes)
    seeds = max((len(cell.accuracies) for v in verdicts for cell in v.cells.values()), default=0)
    show.show_training(verdicts, seeds=seeds)
    met = sum(verdict.met for verdict in verdicts)
    minutes = (time.perf_counter() - started) / 60
    print(f"\n{met} of {len(verdicts)} rows meet every bound; {minutes:.0f} minutes")
    result |= {
        "seeds": seeds,
        "training": [asdict(verdict) for verdict in verdicts],
        "minutes": minutes,
    }
    if given.json:
        Path(given.json).write_text(json.dumps(result, indent=1) + "\n")
    if given.figure:
        show.draw(verdicts, seeds=seeds).savefig(given.figure, facecolor="white")
    return 0 if met == len(verdicts) else 1


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.stability")
    parser.add_argument("--json", metavar="FILE", help="where the numbers go")
    parser.add_argument("--figure", metavar="FILE", help="where the picture goes")
    parser.add_argument("--rows", nargs="+", metavar="NAME", help="parts of names; all if missing")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs-scale", type=float, default=1.0, metavar="X")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--training-only", action="store_true", help="leave out the theory")
    parser.add_argument("--quick", action="store_true", help="one seed, a twentieth of the epochs")
    given = parser.parse_args(arguments)
    if given.quick:
        given.seeds, given.epochs_scale = _QUICK_SEEDS, _QUICK_EPOCHS
    return given


def _chosen(names: Sequence[str] | None) -> list[Row]:
    """The rows whose name holds one of the words."""
    if not names:
        return list(ROWS.values())
    chosen = []
    for word in names:
        found = [row for name, row in ROWS.items() if word.lower() in name.lower()]
        if not found:
            near = difflib.get_close_matches(word, ROWS, n=1, cutoff=0.0)
            raise SystemExit(f"no row is named like {word!r}; the nearest is {near[0]!r}.")
        chosen += [row for row in found if row not in chosen]
    return chosen


def _theory() -> dict[str, Any]:
    from tests.benchmarks.stability.attribution import attribution_scores

    gains = theory.closed_form_gains()
    show.show_gains(gains)
    window = theory.sigmoid_window()
    show.show_window(window)
    attributed = attribution_scores()
    show.show_attribution(attributed)
    profiles = [theory.depth_profile("relu", initialized=False)]
    profiles += [theory.depth_profile(name, initialized=True) for name in PROFILED]
    show.show_profiles(profiles)
    return {
        "gains": gains,
        "sigmoid window": window,
        "attribution": attributed,
        "profiles": profiles,
    }


def _trained(rows: list[Row], *, seeds: int, processes: int) -> list[Verdict]:
    """Train everything; interrupted, judge the seeds that every row and column has finished."""
    total = len(rows) * len(COLUMNS) * seeds
    results: list[Result] = []
    trainings = train_all(rows, COLUMNS, seeds=seeds, processes=processes)
    try:
        for result in trainings:
            results.append(result)
            name = f"{result.row}, {result.column}, seed {result.seed}"
            print(f"{len(results):4} of {total}  {result.accuracy:6.2f}  {name}", file=sys.stderr)
    except KeyboardInterrupt:
        trainings.close()
    counts = Counter(result.seed for result in results)
    whole = [r for r in results if counts[r.seed] == len(rows) * len(COLUMNS)]
    return [judge(row, whole) for row in rows]


if __name__ == "__main__":
    sys.exit(main())
