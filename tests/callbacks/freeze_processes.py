"""What two processes saw while groups were opened; started once for all tests."""

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import ConcatDataset, DataLoader, Subset

from stablelightning.callbacks import freeze_base
from stablelightning.callbacks.freeze import TrainLastGroups, UnfreezeGradually
from stablelightning.callbacks.freeze_base import Freezing
from stablelightning.errors import RecipeError
from tests.callbacks.frozen import FEATURES, WIDTH, Deep, made, rows, state
from tests.callbacks.modules import quiet_trainer
from tests.contracts.models import Resumable
from tests.processes import WORLD, reports_of

BATCH, BATCHES = 4, 6


class OnRanks(Deep):
    """Every process has rows of its own."""

    def train_dataloader(self) -> Any:
        return Resumable(DataLoader(rows(seed=self.global_rank), batch_size=BATCH))


class HeadOnly(OnRanks):
    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.net[-1].parameters(), lr=0.1, momentum=0.9)


class Manual(OnRanks):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(F.cross_entropy(self(batch[0]), batch[1]))
        optimizer.step()


class OfRows(OnRanks):
    """Nothing in it depends on the batch or on chance, so that rows can be shared out."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            *(nn.Linear(FEATURES, WIDTH), nn.Tanh()),
            *(nn.Linear(WIDTH, WIDTH), nn.Tanh()),
            *(nn.Linear(WIDTH, WIDTH), nn.Tanh()),
            nn.Linear(WIDTH, 3),
        )

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.net[-1].parameters(), lr=0.1, momentum=0.9)


class OfAllRows(OfRows):
    """The rows of both processes, batch by batch."""

    def train_dataloader(self) -> Any:
        both = [rows(seed=rank) for rank in range(WORLD)]
        batches = [range(n * BATCH, (n + 1) * BATCH) for n in range(BATCHES)]
        joined = ConcatDataset([Subset(one, batch) for batch in batches for one in both])
        return DataLoader(joined, batch_size=WORLD * BATCH)


class Watch(L.Callback):
    """How the parameters differ from those of the other process, after every step."""

    def __init__(self) -> None:
        self.differences: list[float] = []
        self.trained: list[int] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
        flat = torch.cat([p.detach().flatten() for p in pl_module.parameters()])
        both = [torch.zeros_like(flat) for _ in range(WORLD)]
        torch.distributed.all_gather(both, flat)
        self.differences.append(float((both[0] - both[1]).abs().max()))
        self.trained.append(sum(p.numel() for p in pl_module.parameters() if p.requires_grad))


class CountWrappers(L.Callback):
    """Wrappers that live, without the help of the garbage collector."""

    def __init__(self) -> None:
        self.counts: list[int] = []

    def on_fit_start(self, *_: Any) -> None:
        gc.collect()  # those of other runs
        gc.disable()

    def on_train_epoch_end(self, *_: Any) -> None:
        living = [o for o in gc.get_objects() if type(o) is DistributedDataParallel]
        self.counts.append(len(living))

    def teardown(self, *_: Any, **__: Any) -> None:
        gc.enable()


def fit(
    model: L.LightningModule, *callbacks: L.Callback, ckpt_path: Any = None, **settings: Any
) -> None:
    strategy = settings.pop("strategy", {})
    trainer = quiet_trainer(
        *callbacks,
        strategy=DDPStrategy(process_group_backend="gloo", **strategy),
        devices=WORLD,
        use_distributed_sampler=False,
        **{"max_epochs": 4, **settings},
    )
    trainer.fit(model, ckpt_path=ckpt_path)


def outcome(
    kind: type[L.LightningModule] = OnRanks,
    *callbacks: L.Callback,
    plan: Freezing | None = None,
    **settings: Any,
) -> dict[str, Any]:
    model, watch, plan = made(kind), Watch(), plan or UnfreezeGradually()
    before = state(model)
    fit(model, plan, watch, *callbacks, **settings)
    return {
        "before": before,
        "after": state(model),
        "differences": watch.differences,
        "trained": watch.trained,
        "opened": [change["opened"] for change in plan.history],
        "flags": [p.requires_grad for p in model.parameters()],
    }


def without_renewal() -> dict[str, Any]:
    """What is seen where DDP is told of the start alone."""
    usual = freeze_base.renew_wrapper
    calls: list[int] = []

    def only_at_the_start(trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        calls.append(1)
        if len(calls) == 1:
            usual(trainer, pl_module)

    freeze_base.renew_wrapper = only_at_the_start
    try:
        return outcome(HeadOnly)
    finally:
        freeze_base.renew_wrapper = usual


def plain() -> dict[str, Any]:
    count = CountWrappers()
    return {**outcome(OfRows, count), "wrappers": count.counts}


def single_process() -> dict[str, Tensor]:
    """What one process learns from the rows of both."""
    model = made(OfAllRows)
    quiet_trainer(UnfreezeGradually(), max_epochs=4).fit(model)
    return state(model)


def statistics() -> dict[str, Any]:
    """Buffers of the groups that stay frozen, before and after."""
    ran = outcome(plan=TrainLastGroups(2))
    frozen = [n for n in ran["before"] if "running" in n and n.startswith(("net.1.", "net.4."))]
    parts = {name: {n: ran[name][n] for n in frozen} for name in ("before", "after")}
    return {"frozen": {n.rpartition(".")[0] for n in frozen}, **parts}


def resumed(folder: Path) -> dict[str, Any]:
    """A run broken in the middle of the epoch in which the second group is open."""
    every = ModelCheckpoint(folder, "{step}", every_n_train_steps=2, save_top_k=-1)
    whole = outcome(OnRanks, every, enable_checkpointing=True)
    part = outcome(ckpt_path=folder / "step=10.ckpt")
    return {"whole": whole["after"], "part": part["after"], "differences": part["differences"]}


def refused(**strategy: Any) -> dict[str, Any]:
    try:
        fit(made(OnRanks), UnfreezeGradually(), strategy=strategy)
    except RecipeError as error:
        return {"refused": str(error)}
    return {"refused": ""}


def scenarios(folder: Path) -> dict[str, Callable[[], dict[str, Any]]]:
    by_steps = {"plan": UnfreezeGradually(every_n_steps=2), "max_epochs": 2}
    in_between = {"plan": UnfreezeGradually(every_n_steps=1), "max_epochs": 2}
    return {
        "epochs": outcome,
        "head only": lambda: outcome(HeadOnly),
        "steps": lambda: outcome(**by_steps),
        "accumulated": lambda: outcome(HeadOnly, accumulate_grad_batches=2),
        "steps accumulated": lambda: outcome(accumulate_grad_batches=4, **in_between),
        "finding unused": lambda: outcome(strategy={"find_unused_parameters": True}),
        "views": lambda: outcome(strategy={"gradient_as_bucket_view": True}),
        "manual": lambda: outcome(Manual),
        "rates": lambda: outcome(HeadOnly, plan=UnfreezeGradually(layer_decay=0.5)),
        "not told": without_renewal,
        "plain": plain,
        "statistics": statistics,
        "resumed": lambda: resumed(folder),
        "static graph": lambda: refused(static_graph=True),
    }


class _Report:
    """What a process reports, in a new process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, rank: int) -> dict[str, Any]:
        return {name: run() for name, run in scenarios(self.folder).items()}


def run_on_two_processes(folder: Path) -> list[dict[str, Any]]:
    """What each process reports, by rank."""
    return reports_of(_Report(folder), folder)
