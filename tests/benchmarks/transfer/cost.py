"""What a step of training costs with the backbone frozen, against everything trainable.

A step is forward, backward and SGD with momentum, on torchvision's ResNet-18 and a small vision
transformer of timm's. Ways take turns, round after round within one process; told are medians of
the ratios of a round, of processor time on a CPU, for the machine may be shared. The limit is what
nobody can beat who runs the backbone: its forward under ``no_grad``, then forward, backward and
step of the head. Memory is the peak above what the process held before, weights, gradients and
momenta included, each way in a process of its own.
"""

import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from stablelightning.model.depth import depth_groups
from stablelightning.model.freeze import open_last
from stablelightning.optional import require
from tests.benchmarks import timing
from tests.benchmarks.record import Job, Run, prepare

TITLE = "A step of training with a frozen backbone, against everything trainable"
NEEDS_ROOT = False

PIXELS, BATCH = 96, 16

#: Rounds of timing for each case and seed, and one before that is not counted.
ROUNDS = 12

#: Steps before memory is read: in the second one momenta and gradients are in place.
_STEPS = 3

ALL, HEAD, FLAGS, HALF, LIMIT = (
    "everything trainable",
    "head only, frozen by us",
    "head only, requires_grad=False alone",
    "upper half open, frozen by us",
    "limit: features under no_grad, then the head",
)
WAYS = (ALL, HEAD, FLAGS, HALF, LIMIT)


def resnet18() -> nn.Module:
    """torchvision's, of 11 million parameters."""
    network: nn.Module = torchvision.models.resnet18(num_classes=10)
    return network


def small_vit() -> nn.Module:
    """timm's ``vit_tiny_patch16_224``, of 5.5 million parameters, 36 patches."""
    timm = require("timm", extra="recipes")
    made: nn.Module = timm.create_model("vit_tiny_patch16_224", img_size=PIXELS, num_classes=10)
    return made


CASES: dict[str, Callable[[], nn.Module]] = {
    f"ResNet-18, {PIXELS} px, batch {BATCH}": resnet18,
    f"ViT-Tiny, {PIXELS} px, batch {BATCH}": small_vit,
}


def step_of(case: str, way: str, device: torch.device) -> Callable[[], None]:
    """One training step in one way, with a model of its own."""
    model = CASES[case]().to(device).train()
    groups = depth_groups(model)
    if way == HEAD:
        open_last(model, groups, 1)
    elif way == HALF:
        open_last(model, groups, (len(groups) + 1) // 2)
    elif way in (FLAGS, LIMIT):
        kept = set(groups[-1].parameters)
        for name, parameter in model.named_parameters():
            parameter.requires_grad = name in kept
    x = torch.randn(BATCH, 3, PIXELS, PIXELS, device=device)
    y = torch.randint(0, 10, (BATCH,), device=device)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    forward = _limit(model) if way == LIMIT else model

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(forward(x), y).backward()
        optimizer.step()

    return step


def _limit(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """The backbone in eval and without a graph, and then its head."""
    name = "fc" if hasattr(model, "fc") else "head"
    head: nn.Module = getattr(model, name)
    setattr(model, name, nn.Identity())
    model.eval()

    def forward(x: Tensor) -> Tensor:
        with torch.no_grad():
            features = model(x)
        return head(features)  # type: ignore[no-any-return]

    # The optimizer steps on the head, which is the only one with gradients.
    return forward


def seconds(*, case: str, seed: int, device: str, rounds: int) -> dict[str, list[float]]:
    """Times of a step in every round, for each way."""
    torch.manual_seed(seed)
    where = torch.device(device)
    steps = {way: step_of(case, way, where) for way in WAYS}
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    for number in range(rounds + 1):
        shift = number % len(WAYS)
        for way in WAYS[shift:] + WAYS[:shift]:
            took = _seconds_of(steps[way], where)
            if number:
                times[way].append(took)
    return times


def _seconds_of(step: Callable[[], None], device: torch.device) -> float:
    if device.type == "cuda":
        return timing.once(step, device)
    began = time.process_time()
    step()
    return time.process_time() - began


def peak(*, case: str, way: str, device: str) -> float:
    """Bytes at the peak of some steps, above what there was before the model."""
    where = torch.device(device)
    before = _held(where, peak=False)
    if where.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    step = step_of(case, way, where)
    for _ in range(_STEPS):
        step()
    return _held(where, peak=True) - before


def _held(device: torch.device, *, peak: bool) -> float:
    if device.type == "cuda":
        read = torch.cuda.max_memory_allocated if peak else torch.cuda.memory_allocated
        return float(read())
    # Freed memory that the allocator keeps counts, as it does for the machine.
    name = "VmHWM" if peak else "VmRSS"
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024.0 * int(next(line for line in lines if line.startswith(name)).split()[1])


def measure(run: Run) -> dict[str, Any]:
    """Times one after the other, for they share the machine; then memory."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    alone = Run(run.section, run.record, seeds=run.seeds, processes=1)
    cases: dict[str, Any] = {}
    for case in CASES:
        settings = {"case": case, "device": device}
        jobs = {
            f"{case}: seconds {seed}": Job(seconds, {**settings, "seed": seed, "rounds": ROUNDS})
            for seed in range(run.seeds)
        }
        found = list(alone.all(jobs).values())
        peaks = {way: Job(peak, {**settings, "way": way}) for way in WAYS}
        held = {way: _alone(run, f"{case}: memory, {way}", job) for way, job in peaks.items()}
        cases[case] = {
            way: {
                "time": [_ratio(times, way) for times in found],
                "memory": held[way] / held[ALL],
                "megabytes": held[way] / 2**20,
                "seconds": statistics.median(t for times in found for t in times[way]),
            }
            for way in WAYS
        }
    return {"cases": cases, "device": device}


def _alone(run: Run, name: str, job: Job) -> float:
    """In a fresh process, so that nothing of another way is in its memory."""
    known = run.record.known(run.section, name, job)
    if known is None:
        with ProcessPoolExecutor(1, get_context("spawn"), initializer=prepare) as pool:
            known = pool.submit(job.work, **job.settings).result()
        run.record.add(run.section, name, job, known)
    return float(known)


def _ratio(times: dict[str, list[float]], way: str) -> float:
    pairs = zip(times[way], times[ALL], strict=True)
    return statistics.median(mine / whole for mine, whole in pairs)


def table(result: dict[str, Any]) -> str:
    """Markdown; one row for each case and way."""
    lines = [
        f"| {result['device']}, ratios to everything trainable | time of a step | over seeds | "
        "peak memory |",
        "|---|---|---|---|",
    ]
    for case, ways in result["cases"].items():
        for way, found in ways.items():
            middle = statistics.median(found["time"])
            least, most = min(found["time"]), max(found["time"])
            numbers = f"{middle:.2f} | {least:.2f} to {most:.2f} | {found['memory']:.2f}"
            lines.append(f"| {case}: {way} | {numbers} |")
    return "\n".join(lines)
