"""Run the benchmark; see the package for its arguments."""

import argparse
import json
import os
import platform
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

import stablelightning as sl
from stablelightning.errors import DataError
from tests.benchmarks.uci import columns, show
from tests.benchmarks.uci.columns import HEADLINE, Column, Effort
from tests.benchmarks.uci.data import Problem, read
from tests.benchmarks.uci.scoring import run
from tests.benchmarks.uci.tuning import Runner

#: For glibc: keep what a step frees for the next one. To give megabytes back and ask for them again
#: takes as long as to compute with them.
_MEMORY = {"MALLOC_MMAP_THRESHOLD_": 2**25, "MALLOC_TRIM_THRESHOLD_": 2**31}

COLUMNS = (HEADLINE, "heteroscedastic", "homoscedastic_mc", "mc_ensemble")


def main(arguments: Sequence[str] | None = None, effort: Effort | None = None) -> int:
    given = _parse(arguments)
    try:
        problem = read(Path(given.root), given.dataset, splits=given.splits)
    except DataError as error:
        raise SystemExit(str(error)) from error
    if len(problem.splits) < given.splits:
        print(f"{given.dataset} has {len(problem.splits)} splits; all are run.", file=sys.stderr)
    result: dict[str, Any] = {"dataset": given.dataset}
    with _runner(given.processes) as runner:
        for name, column in measured(problem, given.columns, effort or Effort(), runner):
            told = _told(column)
            result |= told if name == HEADLINE else {name: told}
            print(show.line(name, column), flush=True)
            if given.json:  # after every column: what was measured is not lost
                result["machine"] = _machine(given.processes)
                Path(given.json).write_text(json.dumps(result, indent=1) + "\n")
    print(show.verdict(result))
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.uci")
    parser.add_argument("--root", required=True, metavar="DIR", help="folder of the data sets")
    parser.add_argument("--dataset", required=True, metavar="NAME", help="a folder in it")
    parser.add_argument("--splits", type=_positive, default=20, help="how many, from the first on")
    parser.add_argument("--json", metavar="FILE", help="where the numbers go")
    parser.add_argument(
        "--columns",
        nargs="+",
        choices=COLUMNS,
        default=COLUMNS,
        metavar="NAME",
        help=f"beside the headline: {', '.join(COLUMNS[1:])}; all if missing",
    )
    parser.add_argument("--processes", type=_positive, default=len(os.sched_getaffinity(0)))
    return parser.parse_args(arguments)


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"must be a whole number >= 1, got {text}")
    return int(text)


def measured(
    problem: Problem, names: Sequence[str], effort: Effort, runner: Runner
) -> Iterator[tuple[str, Column]]:
    """The headline, and the other columns that are asked for, in the order of the table."""
    headline = columns.heteroscedastic_mc(problem, effort, runner)
    yield HEADLINE, headline
    if "heteroscedastic" in names:
        yield "heteroscedastic", columns.heteroscedastic(problem, effort, runner)
    if "mc_ensemble" in names:
        yield "mc_ensemble", columns.mc_ensemble(problem, effort, runner, headline=headline)
    if "homoscedastic_mc" in names:
        yield "homoscedastic_mc", columns.homoscedastic_mc(problem, effort, runner)


@contextmanager
def _runner(processes: int) -> Iterator[Runner]:
    """Jobs in this process, or shared out: the numbers are the same."""
    if processes == 1:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # the sums are too small to share
        try:
            yield lambda jobs: [run(job) for job in jobs]
        finally:
            torch.set_num_threads(threads)
        return
    for setting, size in _MEMORY.items():  # read by a process when it starts
        os.environ.setdefault(setting, str(size))
    pool = ProcessPoolExecutor(
        processes, mp_context=get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)
    )
    with pool:
        yield lambda jobs: list(pool.map(run, jobs))


def _told(column: Column) -> dict[str, Any]:
    """Numbers of each split, and how often each setting was chosen."""
    told = asdict(column)
    settings = Counter(show.setting(choice) for choice in column.choices)
    told["chosen"] = dict(settings.most_common())
    del told["choices"]
    return told


def _machine(processes: int) -> str:
    return (
        f"{platform.machine()}, {processes} processes, torch {torch.__version__}, "
        f"package {sl.__version__}"
    )


if __name__ == "__main__":
    sys.exit(main())
