"""What five members cost: stacked, against one network and against five, one after the other.

Contenders take turns in every round, so that only ratios within one round count. A training is a
``Trainer.fit`` with data loader and logging as in a recipe; a step is the optimizer step alone,
without Lightning. Machines differ: the ratios hold for one thread of the one that is named.
"""

import contextlib
import logging
import statistics
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import stablelightning as sl
from stablelightning.ensemble import StableEnsemble
from stablelightning.model.ensemble import predict_ensemble
from stablelightning.model.stacked import StackedNetworks
from stablelightning.model.task import TASKS
from stablelightning.module import StableModule
from stablelightning.nn import MLP, ConvNet
from tests.benchmarks.record import Run
from tests.benchmarks.timing import median, paired, ratio

TITLE = "Five members, stacked: cost against one network, and against five one after the other"
NEEDS_ROOT = False

MEMBERS = 5

#: Seconds of all rounds of one comparison.
SECONDS = 8.0

#: Samples of each member where there is dropout.
SAMPLES = 20

_EPOCHS = 2
_ROWS, _BATCH = 1024, 64
_CPU = torch.device("cpu")

#: What is trained: a network, and the shape of its inputs.
CASES: Mapping[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "MLP, 50 units": (partial(MLP, 64, 8, hidden=[50], dropout=0.0), (64,)),
    "MLP, 50 units, dropout": (partial(MLP, 64, 8, hidden=[50], dropout=0.1), (64,)),
    "MLP, 2 x 64 units, dropout": (partial(MLP, 64, 8, hidden=[64, 64], dropout=0.2), (64,)),
    "MLP, 512 units, dropout": (partial(MLP, 64, 8, hidden=[512], dropout=0.5), (64,)),
    "ConvNet, digits": (partial(ConvNet, 1, 8, channels=[32, 64], dropout=0.1), (1, 8, 8)),
}


def measure(run_: Run) -> dict[str, Any]:
    """The numbers of all cases."""
    del run_  # nothing here is drawn from seeds, and nothing read from a folder
    return run()


def run(cases: Mapping[str, Any] = CASES, *, seconds: float = SECONDS) -> dict[str, Any]:
    """Time every case.

    Returns:
        By case and by what is done (``training``, ``step``, ``prediction``): ``one`` (seconds),
        ``stacked`` and ``sequential`` (times as much as one), and ``saved``: sequential over
        stacked.
    """
    found: dict[str, Any] = {}
    for name, (make, shape) in cases.items():
        torch.manual_seed(0)
        rows, target = torch.randn(_ROWS, *shape), torch.randint(8, (_ROWS,))
        with _quietly():
            found[name] = {
                "training": _ratios(_trainings(make, rows, target), seconds),
                "step": _ratios(_steps(make, rows[:_BATCH], target[:_BATCH]), seconds / 2),
                "prediction": _ratios(_predictions(make, rows[:_BATCH]), seconds / 2),
            }
    return {"members": MEMBERS, "samples": SAMPLES, "cases": found}


def table(result: Mapping[str, Any]) -> str:
    """A row for each case and deed."""
    lines = [
        "| network | what | one network, ms | 5 stacked | 5 in turn | in turn / stacked |",
        "|---|---|---|---|---|---|",
    ]
    for case, deeds in result["cases"].items():
        for deed, numbers in deeds.items():
            lines.append(
                f"| {case} | {deed} | {1000 * numbers['one']:.2f} | {numbers['stacked']:.2f} x "
                f"| {numbers['sequential']:.2f} x | {numbers['saved']:.2f} |"
            )
    least = statistics.median(d["training"]["stacked"] for d in result["cases"].values())
    lines += ["", f"Training five stacked members costs {least:.2f} times one (median of cases)."]
    return "\n".join(lines)


def _ratios(contenders: dict[str, Callable[[], Any]], seconds: float) -> dict[str, float]:
    times = paired(contenders, device=_CPU, seconds=seconds)
    return {
        "one": median(times["one"]),
        "stacked": ratio(times, "stacked", "one"),
        "sequential": ratio(times, "sequential", "one"),
        "saved": ratio(times, "sequential", "stacked"),
    }


def _trainings(
    make: Callable[[], nn.Module], rows: Tensor, target: Tensor
) -> dict[str, Callable[[], Any]]:
    settings: dict[str, Any] = {
        "task": "classification",
        "optimizer": partial(torch.optim.AdamW, lr=1e-3),
    }

    def fit(module: L.LightningModule) -> None:
        loader = DataLoader(TensorDataset(rows, target), batch_size=_BATCH, shuffle=True)
        trainer = L.Trainer(
            accelerator="cpu", max_epochs=_EPOCHS, logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(module, loader)

    def sequential() -> None:
        for _ in range(MEMBERS):
            fit(StableModule(make(), **settings))

    return {
        "one": lambda: fit(StableModule(make(), **settings)),
        "stacked": lambda: fit(StableEnsemble(make, members=MEMBERS, **settings)),
        "sequential": sequential,
    }


def _steps(
    make: Callable[[], nn.Module], rows: Tensor, target: Tensor
) -> dict[str, Callable[[], Any]]:
    loss = TASKS["classification"].loss
    one, many = make(), [make() for _ in range(MEMBERS)]
    stacked = StackedNetworks([make() for _ in range(MEMBERS)])
    optimizers = {
        id(network): torch.optim.AdamW(network.parameters(), lr=1e-3)
        for network in (one, stacked, *many)
    }

    def step(network: nn.Module, losses: Callable[[], Tensor]) -> None:
        optimizer = optimizers[id(network)]
        optimizer.zero_grad()
        losses().backward()
        optimizer.step()

    def sequential() -> None:
        for network in many:
            step(network, lambda network=network: loss(network(rows), target))

    return {
        "one": lambda: step(one, lambda: loss(one(rows), target)),
        "stacked": lambda: step(
            stacked, lambda: MEMBERS * loss(stacked(rows).flatten(0, 1), target.repeat(MEMBERS))
        ),
        "sequential": sequential,
    }


def _predictions(make: Callable[[], nn.Module], rows: Tensor) -> dict[str, Callable[[], Any]]:
    """With dropout each member is sampled; without, each predicts once."""
    one, many = make().eval(), [make().eval() for _ in range(MEMBERS)]
    stacked = StackedNetworks([make() for _ in range(MEMBERS)]).eval()
    return {
        "one": lambda: predict_ensemble([one], rows, samples=SAMPLES),
        "stacked": lambda: sl.mc_dropout(stacked, rows, samples=SAMPLES),
        "sequential": lambda: predict_ensemble(many, rows, samples=SAMPLES),
    }


@contextlib.contextmanager
def _quietly() -> Any:
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    logger.setLevel(level)


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(table(run()))
