"""Run the benchmark; see the package for its arguments."""

import argparse
import platform
import time
import warnings
from collections.abc import Sequence
from importlib import import_module

import torch

import stablelightning as sl
from tests.benchmarks.record import Record, Run
from tests.benchmarks.uncertainty import SECTIONS


def main(arguments: Sequence[str] | None = None) -> int:
    given = _parse(arguments)
    warnings.filterwarnings("ignore", category=UserWarning)
    torch.set_num_threads(1)
    machine = f"{platform.machine()}, torch {torch.__version__}, package {sl.__version__}"
    record = Record(given.json, about={"machine": machine, "seeds": given.seeds})
    for name in given.only or SECTIONS:
        section = import_module(f"tests.benchmarks.uncertainty.{name}")
        if section.NEEDS_ROOT and given.root is None:
            print(f"\n{section.TITLE}: passed over, for it needs --root, a folder of images.")
            continue
        began = time.perf_counter()
        run = Run(name, record, seeds=given.seeds, root=given.root, processes=given.processes)
        measured = section.measure(run)
        minutes = (time.perf_counter() - began) / 60
        record.write(name, measured | {"minutes": minutes})
        print(f"\n{section.TITLE} ({minutes:.1f} min)\n\n{section.table(measured)}", flush=True)
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.uncertainty")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, metavar="SECTION")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--root", metavar="FOLDER", help="class folders of JPEG files, 32 x 32")
    parser.add_argument("--json", metavar="FILE", help="where the numbers go, and come from")
    parser.add_argument("--processes", type=int, default=2, help="trainings at the same time")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
