"""The command line of a benchmark that is a package of sections, each a module of its own."""

import argparse
import platform
import time
import warnings
from collections.abc import Sequence
from importlib import import_module

import torch

import stablelightning as sl
from tests.benchmarks.record import Record, Run


def run_sections(
    package: str, sections: Sequence[str], arguments: Sequence[str] | None = None
) -> int:
    """Run those that are asked for, print their tables, and keep what they measured.

    Args:
        package: which holds the sections, such as ``"tests.benchmarks.transfer"``.
        sections: names of its modules, in the order in which they run.
        arguments: of the command line; ``None`` takes the process's own.
    """
    given = _parse(package, sections, arguments)
    warnings.filterwarnings("ignore", category=UserWarning)
    torch.set_num_threads(1)
    machine = f"{platform.machine()}, torch {torch.__version__}, package {sl.__version__}"
    record = Record(given.json, about={"machine": machine, "seeds": given.seeds})
    for name in given.only or sections:
        section = import_module(f"{package}.{name}")
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


def _parse(
    package: str, sections: Sequence[str], arguments: Sequence[str] | None
) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=f"python -m {package}")
    parser.add_argument("--only", nargs="+", choices=sections, metavar="SECTION")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--root", metavar="FOLDER", help="class folders of JPEG files, 32 x 32")
    parser.add_argument("--json", metavar="FILE", help="where the numbers go, and come from")
    parser.add_argument("--processes", type=int, default=2, help="trainings at the same time")
    return parser.parse_args(arguments)
