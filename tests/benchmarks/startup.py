"""What importing the package and asking for help cost, in processes of their own."""

import statistics
import subprocess
import sys
import time

COMMANDS = {
    "import lightning": ["-c", "import lightning"],
    "import stablelightning": ["-c", "import stablelightning"],
    "the two lines": [
        "-c",
        "import lightning, stablelightning as sl; sl.recommended_callbacks; sl.mc_dropout",
    ],
    "stablelightning --help": ["-m", "stablelightning", "--help"],
}


def startup(rounds: int = 5) -> dict[str, float]:
    """Median wall seconds of each command, taken in turn; the first round warms the disk."""
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for number in range(rounds + 1):
        for name, arguments in COMMANDS.items():
            start = time.perf_counter()
            subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
            if number:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}
