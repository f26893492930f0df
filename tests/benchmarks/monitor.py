"""What watching a training costs: ours, ``wandb.watch`` and Lightning's ``grad_norm``, in one run.

    OMP_NUM_THREADS=1 taskset -c 1 python -m tests.benchmarks.monitor [--json FILE] [--pairs N]

Each contender trains one model in one Trainer with an offline W&B run, and is switched on and off
in turn, for one period of measuring (50 steps, one of them measured) at a time. A period with it is
compared with the mean of the two without it around it: the same weights, the same memory, seconds
apart. What is off is not there: no callback in the Trainer, no hook in the model. ``nothing`` is
switched as well, and shows the noise.

Times are of the processor (all threads; the machine may be shared). The mean step is that of a
period whose every step is the median over the periods; ratios of plain sums are in the JSON file,
as is wall-clock time. The bound is on the first.
"""

import argparse
import json
import logging
import platform
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
import torchvision
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import grad_norm
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from stablelightning.callbacks import MonitorSignals

#: Steps between measurements: the default of ``MonitorSignals``.
EVERY = MonitorSignals().every_n_steps

#: Largest overhead of the mean step, as a ratio.
BOUND = 1.03

#: Periods that are not counted: everything is new, and we look at each of the first steps.
WARM_UP = 2


def resnet18() -> tuple[nn.Module, Tensor]:
    """torchvision's, on images of 32 pixels, batch 32."""
    return torchvision.models.resnet18(num_classes=10), torch.randn(32, 3, 32, 32)


def deep_mlp() -> tuple[nn.Module, Tensor]:
    """60 layers of 128 units, batch 128."""
    layers: list[nn.Module] = [nn.Linear(64, 128), nn.ReLU()]
    for _ in range(58):
        layers += [nn.Linear(128, 128), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(128, 10)), torch.randn(128, 64)


CASES: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "ResNet-18, 32 px, batch 32": resnet18,
    "60-layer MLP, batch 128": deep_mlp,
}


class Training(L.LightningModule):
    """An ordinary classifier, which can log gradient norms as Lightning's documentation does."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.logs_gradients = False

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("loss", loss)
        return loss

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        if self.logs_gradients and (self.trainer.global_step + 1) % EVERY == 0:
            self.log_dict(grad_norm(self, norm_type=2))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-4)


Switch = Callable[[L.Trainer, Training, bool], None]


def nothing(trainer: L.Trainer, model: Training, on: bool) -> None:
    """The noise of the comparison."""


def monitor_signals() -> Switch:
    """Ours, in its default settings."""
    monitor = MonitorSignals()

    def switch(trainer: L.Trainer, model: Training, on: bool) -> None:
        others = [c for c in trainer.callbacks if c is not monitor]
        trainer.callbacks = [monitor, *others] if on else others

    return switch


def wandb_watch(trainer: L.Trainer, model: Training, on: bool) -> None:
    """``wandb.watch(log="all")``: histograms of all gradients and weights."""
    run = trainer.logger.experiment
    if on:
        run.watch(model, log="all", log_freq=EVERY)
    else:
        run.unwatch(model)


def lightning_grad_norm(trainer: L.Trainer, model: Training, on: bool) -> None:
    """Lightning's utility: the norm of every parameter's gradient."""
    model.logs_gradients = on


CONTENDERS: dict[str, Callable[[], Switch]] = {
    "nothing": lambda: nothing,
    "MonitorSignals": monitor_signals,
    'wandb.watch(log="all")': lambda: wandb_watch,
    "grad_norm": lambda: lightning_grad_norm,
}


class Stopwatch(L.Callback):
    """Times whole steps, hooks and loops included; throws the switch between periods."""

    def __init__(self, switch: Switch) -> None:
        self.switch = switch
        self.times: dict[str, list[float]] = {"processor": [], "wall": []}
        self._began = (0.0, 0.0)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._began = _clocks()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        for times, now, began in zip(self.times.values(), _clocks(), self._began, strict=True):
            times.append(now - began)
        steps = len(self.times["wall"])
        if steps % EVERY == 0:
            self.switch(trainer, pl_module, steps // EVERY % 2 == 1)
        self._began = _clocks()


def _clocks() -> tuple[float, float]:
    return time.process_time(), time.perf_counter()


def measure(case: str, contender: str, pairs: int) -> dict[str, Any]:
    """Train one model, the contender switched on in every second period."""
    import wandb

    torch.manual_seed(0)
    network, x = CASES[case]()
    y = torch.randint(0, 10, (len(x),))
    steps = (2 * pairs + 1 + WARM_UP) * EVERY
    loader = DataLoader(TensorDataset(x, y), batch_size=None, sampler=[slice(None)] * steps)
    stopwatch = Stopwatch(CONTENDERS[contender]())
    with tempfile.TemporaryDirectory() as folder:
        settings = wandb.Settings(silent=True, console="off")
        run = wandb.init(mode="offline", dir=folder, project="monitor", settings=settings)
        L.Trainer(
            accelerator="cpu",
            max_epochs=1,
            logger=WandbLogger(experiment=run),
            log_every_n_steps=EVERY,
            callbacks=[stopwatch],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        ).fit(Training(network), loader)
        run.finish()
    return {clock: compared(times) for clock, times in stopwatch.times.items()}


def compared(times: list[float]) -> dict[str, float]:
    """Periods with a contender against those without it, before and after."""
    periods = [times[i : i + EVERY] for i in range(0, len(times), EVERY)][WARM_UP:]
    off, on = periods[::2], periods[1::2]
    around = [(statistics.median(a) + statistics.median(b)) / 2 for a, b in pairwise(off)]
    # In units of a plain step at that time, and of each place in the period its median: another
    # program that gets in the way for a while makes single steps slow, not the same one every time.
    mine, plain = typical(on, around), typical(off, around)
    return {
        "plain_step_seconds": statistics.median(t for period in off for t in period),
        "mean_step": statistics.fmean(mine) / statistics.fmean(plain),
        "p99_step": percentile(mine, 0.99) / statistics.fmean(plain),
        "mean_step_raw": statistics.median(
            2 * sum(period) / (sum(before) + sum(after))
            for period, (before, after) in zip(on, pairwise(off), strict=True)
        ),
        "periods": len(on),
    }


def typical(periods: list[list[float]], around: list[float]) -> list[float]:
    """Each step of a period, the median over the periods, relative to plain steps around it."""
    relative = [[t / plain for t in period] for period, plain in zip(periods, around, strict=False)]
    return [statistics.median(place) for place in zip(*relative, strict=True)]


def percentile(times: list[float], share: float) -> float:
    """The smallest time that ``share`` of them do not exceed."""
    return sorted(times)[min(int(share * len(times)), len(times) - 1)]


def table(results: dict[str, dict[str, Any]]) -> str:
    """Markdown; one row per case and contender."""
    lines = [
        "| ratios to the same training without it | mean step | measured step, which is p99 |",
        "|---|---|---|",
    ]
    for case, contenders in results.items():
        for name, clocks in contenders.items():
            found = clocks["processor"]
            lines.append(f"| {case}: {name} | {found['mean_step']:.3f} | {found['p99_step']:.2f} |")
    return "\n".join(lines)


def main() -> int:
    """Measure, print, and say by the exit status whether the bound holds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write all numbers there")
    parser.add_argument("--pairs", type=int, default=10, help="periods with each contender")
    parser.add_argument("--only", nargs="*", default=[], help="parts of names of cases")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    cases = [c for c in CASES if not arguments.only or any(part in c for part in arguments.only)]
    results = {
        case: {name: measure(case, name, arguments.pairs) for name in CONTENDERS} for case in cases
    }
    print(table(results))
    largest = max(r["MonitorSignals"]["processor"]["mean_step"] for r in results.values())
    print(f"largest overhead of the mean step: {largest:.3f}, bound {BOUND}")
    if arguments.json:
        facts = {"torch": torch.__version__, "python": platform.python_version(), "every": EVERY}
        text = json.dumps({**facts, "bound": BOUND, "results": results}, indent=1)
        arguments.json.write_text(text)
    return int(largest > BOUND)


if __name__ == "__main__":
    sys.exit(main())
