"""Several gloo processes on this machine, and what each of them reports."""

import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing

WORLD = 2

#: A run that takes longer hangs in a collective.
PATIENCE_SECONDS = 240


def reports_of(report: Callable[[int], Any], folder: Path, *, world: int = WORLD) -> list[Any]:
    """Call ``report(rank)`` in processes that Lightning takes for its own, and collect.

    Args:
        report: of a module's own namespace, so that a new process can import it; what it returns is
            saved by ``torch.save``.
        folder: empty, for what is saved.
        world: how many processes.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = torch.multiprocessing.start_processes(
        _process, (report, str(folder), port), nprocs=world, join=False, start_method="spawn"
    )
    deadline = time.monotonic() + PATIENCE_SECONDS
    try:
        while not processes.join(timeout=1):
            if time.monotonic() > deadline:
                raise TimeoutError("the processes wait for each other")
    finally:
        for process in processes.processes:
            if process.is_alive():
                process.kill()
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(world)]


def _process(rank: int, report: Callable[[int], Any], folder: str, port: int) -> None:
    os.environ.update(
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), LOCAL_RANK=str(rank), NODE_RANK="0"
    )
    torch.set_num_threads(1)
    torch.save(report(rank), Path(folder) / f"{rank}.pt")
