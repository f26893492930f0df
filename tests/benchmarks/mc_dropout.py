"""Monte Carlo dropout against one pass and against what people use today.

    python -m tests.benchmarks.mc_dropout [--json FILE] [--device cuda] [--only CASE ...]

Every number is a median of ratios within rounds in which each contender ran once. The first call of
``auto`` on a model, which surveys a pass, has a column of its own; all others are later calls.

The peers that are packages are measured where they are installed: ``pip install --no-deps
torch-uncertainty baal`` with ``einops`` and ``structlog`` (their other pins are old).
"""

import argparse
import json
import platform
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import stablelightning as sl
from tests.benchmarks import peers
from tests.benchmarks.models import CASES, Case
from tests.benchmarks.startup import startup
from tests.benchmarks.timing import median, once, paired, ratio

SAMPLES = 32

#: (case, contender, measured against, bound, whether the bound is from below)
BOUNDS = [
    ("resnet18-96", "auto", "one pass", 1.10, False),
    ("resnet18-96", "torch-uncertainty", "auto", 25.0, True),
    ("resnet18-32", "auto", "feature cache", 1.05, False),
    ("resnet50-224", "auto", "one pass", 1.05, False),
    ("resnet50-224", "replay", "one pass", 1.25, False),
    ("vit-head", "auto", "one pass", 1.05, False),
    ("vit-head", "replay", "one pass", 1.25, False),
    ("last-stage", "auto", "prefix + 32 suffix", 1.05, False),
    *(
        (case, "auto", "faster of loop and batch-repeat", 1.05, False)
        for case in ("every-block", "mlp", "convnet", "vit-attention", "lstm")
    ),
]


def contenders(case: Case) -> dict[str, Callable[[], Any]]:
    """Everything that can sample this case, and one pass."""
    model, x = case.model, case.x

    def one_pass() -> Any:
        with torch.no_grad():
            return model.eval()(x)

    def ours(engine: str) -> Callable[[], Any]:
        return lambda: sl.sample_predictions(model, x, samples=SAMPLES, engine=engine)

    found: dict[str, Callable[[], Any] | None] = {
        "one pass": one_pass,
        "auto": ours("auto"),
        "replay": ours("replay"),
        "loop": lambda: peers.plain_loop(model, x, SAMPLES),
        "batch-repeat": lambda: peers.batch_repeat(model, x, SAMPLES),
        "torch-uncertainty": peers.torch_uncertainty(model, x, SAMPLES),
        "baal caching": peers.baal(model, x, SAMPLES),
    }
    if case.split is not None:
        prefix, suffix = case.split
        found["feature cache"] = lambda: peers.feature_cache(prefix, suffix, x, SAMPLES)
    return {name: function for name, function in found.items() if function is not None}


def measure(key: str, device: torch.device, seconds: float) -> dict[str, Any]:
    """Time one case; returns medians in seconds and ratios to one pass."""
    torch.manual_seed(0)
    case = CASES[key]()
    case.model.to(device).eval()
    case.x = case.x.to(device)
    functions = contenders(case)
    with torch.no_grad():
        functions["one pass"]()
    first = once(functions["auto"], device)
    times = paired(functions, device=device, seconds=seconds)
    result: dict[str, Any] = {
        "case": case.name,
        "engine": sl.mc_dropout(case.model, case.x, samples=SAMPLES, task="classification").engine,
        "seconds": {name: median(values) for name, values in times.items()},
        "to one pass": {name: ratio(times, name, "one pass") for name in functions},
        "rounds": len(times["one pass"]),
        "first call of auto": first / median(times["one pass"]),
    }
    both = [
        None if a is None or b is None else min(a, b)
        for a, b in zip(times["loop"], times["batch-repeat"], strict=True)
    ]
    times["faster of loop and batch-repeat"] = both
    if key == "last-stage":
        times["prefix + 32 suffix"] = times["feature cache"]
    result["bounds"] = [
        {
            "what": f"{name} / {to}",
            "measured": ratio(times, name, to),
            "bound": bound,
            "at least": low,
        }
        for where, name, to, bound, low in BOUNDS
        if where == key and name in times
    ]
    return result


MEMORY = """
import sys, torch, stablelightning as sl
from pathlib import Path
from tests.benchmarks.models import CASES
case = CASES[sys.argv[1]]()
sl.mc_dropout(case.model, case.x, samples=int(sys.argv[2]), task="classification", engine="auto")
status = Path("/proc/self/status").read_text()  # getrusage would count the parent's peak
print(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))
"""


def peak_memory(key: str, samples: int) -> float:
    """Peak resident memory of a process of its own, in MiB: interpreter, model and sampling."""
    command = [sys.executable, "-c", MEMORY, key, str(samples)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1]) / 1024


def memory(keys: list[str]) -> list[dict[str, Any]]:
    """Peak memory at 8 and at 512 samples."""
    rows = []
    for key in keys:
        few, many = peak_memory(key, 8), peak_memory(key, 512)
        rows.append({"case": key, "8 samples": few, "512 samples": many, "ratio": many / few})
    return rows


def show(results: list[dict[str, Any]]) -> None:
    """Print the tables."""
    names = ["auto", "replay", "feature cache", "loop", "batch-repeat", "torch-uncertainty",
             "baal caching"]  # fmt: skip
    print(f"\n{SAMPLES} samples, as multiples of one deterministic pass\n")
    header = f"{'case':40}{'one pass':>10}" + "".join(f"{n:>18}" for n in names)
    print(header + f"{'first auto':>12}")
    for result in results:
        row = f"{result['case']:40}{result['seconds']['one pass'] * 1e3:8.2f}ms"
        for name in names:
            value = result["to one pass"].get(name)
            row += f"{'-':>18}" if value is None else f"{value:18.2f}"
        print(row + f"{result['first call of auto']:12.2f}   {result['engine']}")
    print(f"\n{'bound':64}{'measured':>10}{'asked':>12}")
    for result in results:
        for bound in result["bounds"]:
            sign = ">=" if bound["at least"] else "<="
            met = (bound["measured"] >= bound["bound"]) is bound["at least"]
            what = f"{result['case']}: {bound['what']}"
            asked = f"{sign} {bound['bound']:.2f}"
            print(f"{what[:86]:86}{bound['measured']:8.3f}{asked:>10}{'' if met else '   MISSED'}")


def write(file: Path | None, device: torch.device, measured: dict[str, Any]) -> None:
    """Write what is measured so far."""
    if file is None:
        return
    machine = {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
    }
    file.write_text(json.dumps({"machine": machine, "samples": SAMPLES, **measured}, indent=2))


def main() -> None:
    """Measure, print, and write --json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", nargs="*", choices=sorted(CASES), default=list(CASES))
    parser.add_argument("--seconds", type=float, default=30.0, help="per case")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    device = torch.device(arguments.device)
    measured: dict[str, Any] = {"results": []}
    for key in arguments.only:
        measured["results"].append(measure(key, device, arguments.seconds))
        print(key, measured["results"][-1]["to one pass"], file=sys.stderr, flush=True)
        write(arguments.json, device, measured)
    show(measured["results"])
    if device.type == "cpu":
        keys = [k for k in ("resnet18-96", "every-block") if k in arguments.only]
        measured["memory"] = memory(keys)
        for row in measured["memory"]:
            print(
                f"peak memory {row['case']:14} 8 samples {row['8 samples']:7.0f} MiB, "
                f"512 samples {row['512 samples']:7.0f} MiB, ratio {row['ratio']:.3f}"
            )
    measured["startup"] = startup()
    for name, seconds in measured["startup"].items():
        print(f"{name:28}{seconds:6.2f} s")
    write(arguments.json, device, measured)


if __name__ == "__main__":
    main()
