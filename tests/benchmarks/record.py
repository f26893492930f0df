"""What was measured, in a file after every training; and the trainings, on several cores."""

import json
import logging
import time
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Job:
    """One training, or whatever takes long.

    Args:
        work: a function of a module, which gives numbers, strings, lists and dicts of them.
        settings: its keyword arguments, of the same kinds: what is equal is not done twice.
    """

    work: Callable[..., Any]
    settings: Mapping[str, Any]


class Record:
    """The JSON file: what each section found, and under ``"runs"`` every single job's result.

    Args:
        path: of the file, taken over if it exists; ``None`` keeps nothing.
        about: what stands at its top.
    """

    def __init__(self, path: str | None, *, about: Mapping[str, Any]) -> None:
        self.path = None if path is None else Path(path)
        self.content: dict[str, Any] = {}
        if self.path is not None and self.path.exists():
            self.content = json.loads(self.path.read_text())
        self.content |= about
        self.content.setdefault("runs", {})

    def write(self, name: str, value: Any) -> None:
        """Set what stands under ``name``."""
        self.content[name] = value
        if self.path is not None:
            beside = self.path.with_name(self.path.name + ".part")
            beside.write_text(json.dumps(self.content, indent=1) + "\n")
            beside.replace(self.path)  # a run that is cut leaves a whole file

    def known(self, section: str, name: str, job: Job) -> Any:
        """The result of a job of an earlier run with the same settings, or ``None``."""
        found = self.content["runs"].get(section, {}).get(name)
        same = found is not None and found["settings"] == _plain(job.settings)
        return found["result"] if same else None

    def add(self, section: str, name: str, job: Job, result: Any) -> None:
        """Keep the result of a job."""
        runs = self.content["runs"]
        kept = {"settings": _plain(job.settings), "result": result}
        runs.setdefault(section, {})[name] = kept
        self.write("runs", runs)


@dataclass(frozen=True)
class Run:
    """What a section is given.

    Args:
        section: its name.
        record: where results are kept.
        seeds: how many paired seeds, >= 1.
        root: folder of images, or ``None``.
        processes: how many jobs at the same time, each on one thread.
    """

    section: str
    record: Record
    seeds: int
    root: str | None = None
    processes: int = 1

    def all(self, jobs: Mapping[str, Job]) -> dict[str, Any]:
        """The results of all jobs by name, done now or in an earlier run, as they were ordered."""
        done = {name: self.record.known(self.section, name, job) for name, job in jobs.items()}
        left = {name: job for name, job in jobs.items() if done[name] is None}
        for name, result in _done(left, self.processes):
            self.record.add(self.section, name, jobs[name], result)
            done[name] = result
            known = sum(value is not None for value in done.values())
            print(f"{time.strftime('%H:%M:%S')} {known:4} of {len(jobs)}  {name}", flush=True)
        return done


def _done(jobs: Mapping[str, Job], processes: int) -> Any:
    if processes <= 1 or len(jobs) <= 1:
        prepare()
        for name, job in jobs.items():
            yield name, job.work(**job.settings)
        return
    pool = ProcessPoolExecutor(processes, get_context("spawn"), initializer=prepare)
    try:
        futures = {pool.submit(job.work, **job.settings): name for name, job in jobs.items()}
        for future in as_completed(futures):
            yield futures[future], future.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def prepare() -> None:
    """One thread, and nothing said that is not a number."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    warnings.filterwarnings("ignore")
    logging.disable(logging.INFO)


def _plain(settings: Mapping[str, Any]) -> Any:
    """As they come back from the file: tuples are lists there."""
    return json.loads(json.dumps(dict(settings)))
