"""A module is run on two rows, by whatever call it has, and nothing of it is left."""

from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from stablelightning.callbacks.example_run import example_run
from stablelightning.errors import DataError
from tests.callbacks.frozen import Deep, made, moved, state
from tests.callbacks.modules import quiet_trainer


class Run(L.Callback):
    """Runs the module twice before it trains."""

    def on_fit_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        before, generator = state(pl_module), torch.get_rng_state()
        self.modes = [m.training for m in pl_module.modules()]
        run = example_run(trainer, pl_module)
        self.outputs = [run(), run()]
        assert moved(before, state(pl_module)) == set()
        assert torch.equal(torch.get_rng_state(), generator)
        assert self.modes == [m.training for m in pl_module.modules()]
        assert not [m for m in pl_module.modules() if m._forward_hooks]


def ran(model: Any, **settings: Any) -> Run:
    run = Run()
    short = {"max_epochs": 1, "limit_train_batches": 1, "limit_val_batches": 0}
    quiet_trainer(run, **short, **settings).fit(model)
    return run


def test_two_rows_through_the_forward():
    first, second = ran(made()).outputs
    assert first.shape == (2, 3)
    assert first.requires_grad
    assert torch.equal(first, second)  # dropout is drawn alike


@pytest.mark.parametrize("precision", ["bf16-true", "bf16-mixed", "64-true"])
def test_in_the_precision_of_the_trainer(precision):
    assert ran(made(), precision=precision).outputs[0].isfinite().all()


def test_a_step_where_there_is_no_forward():
    class Stepping(Deep):
        forward = L.LightningModule.forward

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            self.log("loss", 0.0)
            return self.net(batch[0]).square().mean()

    assert ran(made(Stepping)).outputs[0].ndim == 0


def test_its_own_example_where_the_batch_does_not_fit():
    class Generator(Deep):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False
            self.example_input_array = torch.zeros(5, 4)

        def training_step(self, batch: Any, batch_idx: int) -> None:
            pass

        def train_dataloader(self) -> Any:
            return DataLoader(TensorDataset(torch.zeros(8, 9), torch.zeros(8)), batch_size=4)

    assert ran(made(Generator)).outputs[0].shape == (5, 3)


def test_compiled_layers_are_run_as_they_were_written():
    model, seen = made(), []
    model.net.compile(backend="eager")
    model.net[0].register_forward_hook(lambda *_: seen.append(torch.compiler.is_compiling()))

    class Look(L.Callback):
        def on_fit_start(self, trainer: L.Trainer, pl_module: Any) -> None:
            example_run(trainer, pl_module)()

    quiet_trainer(Look(), max_epochs=1, limit_train_batches=1, limit_val_batches=0).fit(model)
    assert seen[:2] == [False, False]


def test_a_module_that_cannot_be_called_is_said_in_one_line():
    class Odd(Deep):
        def forward(self, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
            raise RuntimeError("odd\nand long")

        def training_step(self, batch: Any, batch_idx: int) -> None:
            raise KeyError("odd")

    with pytest.raises(DataError, match="must run on a batch of its training data") as error:
        ran(made(Odd))
    assert "\n" not in str(error.value)


def test_norms_keep_their_statistics():
    class Normed(Deep):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 3))

    assert ran(made(Normed)).outputs[0].shape == (2, 3)
