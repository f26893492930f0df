"""What guard and clipping cost together, in the paired way of ``tests.benchmarks.monitor``.

Each contender is switched on and off in turn within one training, for a period of steps at a time;
a period with it is compared with the mean of the two without it around it. ``nothing`` is switched
as well, and shows the noise. Times are of the processor, for the machine may be shared. Whether a
training with both is, without trouble, that without them, is compared to the bit; there the clip's
bound is out of reach, so that nothing is clipped.
"""

import logging
import tempfile
from typing import Any

import lightning as L
import torch
from torch.utils.data import DataLoader, TensorDataset

from stablelightning.callbacks.clip import ClipGradientNorm
from stablelightning.callbacks.guard import GuardTraining
from tests.benchmarks import monitor
from tests.benchmarks.monitor import CASES, EVERY, WARM_UP, Stopwatch, Switch, Training

TITLE = "Guard and clipping together, against neither"

#: Largest ratio of the mean step.
BOUND = 1.03

#: A bound that no gradient reaches.
_OUT_OF_REACH = 1e30

#: Periods with a contender for each seed.
PAIRS = 3


def switch_of(*callbacks: L.Callback) -> Switch:
    """Puts callbacks into the Trainer and takes them out, between two batches."""
    begun = False

    def switch(trainer: L.Trainer, model: Training, on: bool) -> None:
        nonlocal begun
        if on and not begun:
            for callback in callbacks:
                callback.setup(trainer, model, "fit")
        begun = begun or on
        others = [c for c in trainer.callbacks if c not in callbacks]
        trainer.callbacks = [*callbacks, *others] if on else others
        for callback in callbacks:
            if on:
                callback.on_train_start(trainer, model)
            elif isinstance(callback, GuardTraining):
                while callback._restore:  # the methods of the module that it replaced
                    callback._restore.pop()()

    return switch


def contenders() -> dict[str, Switch]:
    """Fresh callbacks, in their default settings."""
    return {
        "nothing": switch_of(),
        "GuardTraining": switch_of(GuardTraining()),
        "ClipGradientNorm": switch_of(ClipGradientNorm()),
        "GuardTraining and ClipGradientNorm": switch_of(GuardTraining(), ClipGradientNorm()),
    }


def time_of(case: str, contender: str, pairs: int) -> dict[str, float]:
    """Ratios of one contender in one case, of processor time."""
    torch.manual_seed(0)
    network, x = CASES[case]()
    y = torch.randint(0, 10, (len(x),))
    steps = (2 * pairs + 1 + WARM_UP) * EVERY
    stopwatch = Stopwatch(contenders()[contender])
    with tempfile.TemporaryDirectory() as folder:
        trainer = _trainer(folder, [stopwatch], max_epochs=1)
        trainer.fit(Training(network), _loader(x, y, steps))
    return monitor.compared(stopwatch.times["processor"])


def is_equal(case: str, steps: int = 40) -> bool:
    """Whether weights after some steps are the same to the bit with both and with neither."""
    weights = []
    for callbacks in ([], [GuardTraining(), ClipGradientNorm(max_norm=_OUT_OF_REACH)]):
        torch.manual_seed(0)
        network, x = CASES[case]()
        y = torch.randint(0, 10, (len(x),))
        model = Training(network)
        with tempfile.TemporaryDirectory() as folder:
            _trainer(folder, callbacks, max_epochs=1).fit(model, _loader(x, y, steps))
        weights.append(model.state_dict())
    return all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def _loader(x: torch.Tensor, y: torch.Tensor, steps: int) -> DataLoader[Any]:
    return DataLoader(TensorDataset(x, y), batch_size=None, sampler=[slice(None)] * steps)


def _trainer(folder: str, callbacks: list[L.Callback], **settings: Any) -> L.Trainer:
    return L.Trainer(
        accelerator="cpu",
        logger=False,
        default_root_dir=folder,
        callbacks=callbacks,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **settings,
    )


def measure(seeds: int) -> dict[str, Any]:
    """Every case and contender; more seeds are more periods."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    times = {
        case: {name: time_of(case, name, PAIRS * seeds) for name in contenders()} for case in CASES
    }
    equal = {case: is_equal(case) for case in CASES}
    both = [found["GuardTraining and ClipGradientNorm"]["mean_step"] for found in times.values()]
    return {"times": times, "equal": equal, "largest": max(both), "bound": BOUND}


def table(result: dict[str, Any]) -> str:
    """Markdown; one row per case and contender."""
    lines = [
        "| ratios to the same training without it | mean step | p99 of the steps |",
        "|---|---|---|",
    ]
    for case, found in result["times"].items():
        for name, ratios in found.items():
            numbers = f"{ratios['mean_step']:.3f} | {ratios['p99_step']:.2f}"
            lines.append(f"| {case}: {name} | {numbers} |")
    equal = ", ".join(f"{case}: {value}" for case, value in result["equal"].items())
    lines += [
        "",
        f"Largest ratio of both: {result['largest']:.3f} (bound {result['bound']}). Equal to the "
        f"bit without trouble: {equal}.",
    ]
    return "\n".join(lines)
