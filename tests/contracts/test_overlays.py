"""Every overlay trains on a start, taking turns; ``python -m`` this file trains each on each."""

import sys
import tempfile
import warnings
from itertools import cycle
from pathlib import Path

import pytest
import torch

from stablelightning.errors import DataError, ModelError
from tests.contracts.test_recipes import OVERLAYS, STARTS, session

#: Enough for a schedule to move, for a norm to be measured, and for a checkpoint.
SETTINGS = (
    "--trainer.max_epochs=2",
    "--trainer.limit_train_batches=3",
    "--trainer.limit_val_batches=2",
    "--trainer.logger=false",
    "--trainer.devices=1",
    "--trainer.strategy=auto",
)


#: Of what trains many networks to find one, a few short trainings show that it works. The trainings
#: of full length are those of the callbacks' own tests.
SHORTER = {
    "select_activation": (
        "--stable.activation.candidates=[relu,selu,tanh]",
        "--stable.activation.steps=4",
        "--stable.activation.seeds=2",
        "--stable.activation.finalists=2",
    ),
    "find_learning_rate": (
        "--stable.learning_rate.steps=20",
        "--stable.learning_rate.confirm_steps=5",
    ),
    "digits_transfer": ("--stable.pretrain.max_epochs=1",),
}

#: Overlays that not every start has the data or the task for, and the starts that have. Elsewhere
#: they build, and end in one line before the first step.
FITTING = {
    "rotation": ("digits_cnn", "digits_transfer", "images", "pretrain"),
    "ensemble": tuple(start for start in STARTS if start != "pretrain"),
    # Few labels are few to calibrate on, and the photographs here are a handful.
    "risk_sensitive": tuple(s for s in STARTS if s not in ("digits_transfer", "images")),
}

#: What such an overlay says, where it is not its own name that needs something.
NEEDS = {"risk_sensitive": "Calibrate needs 30 validation rows or more"}


def fits(start: str, overlay: str) -> bool:
    return start in FITTING.get(overlay, STARTS)


def turns() -> list[tuple[str, str]]:
    """Every overlay with a start, another one each time where it does not matter."""
    pairs = zip(cycle(STARTS), OVERLAYS, strict=False)
    return [(s if fits(s, o) else FITTING[o][0], o) for s, o in pairs]


def trained(folder: Path, start: str, overlay: str) -> None:
    settings = (*SETTINGS, *SHORTER.get(start, ()), *SHORTER.get(overlay, ()))
    cli = session(folder, start, OVERLAYS[overlay], settings=settings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cli.trainer.fit(cli.model, datamodule=cli.datamodule)
    assert cli.trainer.global_step > 0
    assert all(value.isfinite().all() for value in cli.model.parameters())


@pytest.mark.parametrize(("start", "overlay"), turns())
def test_an_overlay_trains(tmp_path, start, overlay):
    trained(tmp_path, start, overlay)


@pytest.mark.parametrize(
    ("start", "overlay"), [(s, o) for o in FITTING for s in STARTS if not fits(s, o)]
)
def test_an_overlay_that_does_not_fit_says_so_in_one_line(tmp_path, start, overlay):
    with pytest.raises(
        (DataError, ModelError), match=NEEDS.get(overlay, f"{overlay} needs ")
    ) as told:
        trained(tmp_path, start, overlay)
    assert "\n" not in str(told.value)


def main(overlays: list[str]) -> int:
    """Train every overlay, or those that are named, on every start; print what fails."""
    torch.set_num_threads(1)
    failed = 0
    for overlay in overlays or OVERLAYS:
        for start in (start for start in STARTS if fits(start, overlay)):
            try:
                with tempfile.TemporaryDirectory() as folder:
                    trained(Path(folder), start, overlay)
            except Exception as error:
                failed += 1
                print(f"{start} + {overlay}: {type(error).__name__}: {error}", flush=True)
    print(f"{failed} failed", flush=True)
    return failed


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
