"""Running the command as a user does: in a process of its own, in a folder of its own."""

import os
import subprocess
import sys
from pathlib import Path

RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID")

#: A few seconds of the digits: what a run leaves does not depend on how good it is.
QUICK = ("--trainer.max_epochs=2", "--stable.uncertainty.samples=4")


def environment(**more: str) -> dict[str, str]:
    """This process's environment without a key for W&B, and with nothing of a distributed run."""
    dropped = {"WANDB_API_KEY", "WANDB_MODE", "MASTER_PORT", "PYTHONPATH", *RANKS}
    kept = {name: value for name, value in os.environ.items() if name not in dropped}
    return {**kept, "OMP_NUM_THREADS": "1", "NETRC": os.devnull, **more}


def stablelightning(
    *arguments: str, cwd: Path, script: bool = False, **more: str
) -> subprocess.CompletedProcess[str]:
    """Run the command; through ``python -m``, or the installed script."""
    installed = Path(sys.executable).with_name("stablelightning")
    command = [str(installed)] if script else [sys.executable, "-m", "stablelightning"]
    return subprocess.run(
        [*command, *arguments],
        cwd=cwd,
        env=environment(**more),
        capture_output=True,
        text=True,
        timeout=300,
    )
