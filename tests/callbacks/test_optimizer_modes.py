"""Schedule-free optimizers are in the right mode at the right moment, and resume to the bit."""

import importlib.util
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader, TensorDataset

from stablelightning.callbacks import SwitchOptimizerModes
from stablelightning.errors import RecipeError
from stablelightning.module import StableModule
from stablelightning.nn import MLP


class AveragingSGD(torch.optim.Optimizer):
    """Schedule-free SGD as in arXiv:2405.15682: gradients at y, steps of z, an average x.

    Written for these tests after the package's contract: parameters hold y in training mode and x
    in evaluation mode, and a step in the wrong mode is an error.
    """

    def __init__(self, params: Any, lr: float = 0.1, beta: float = 0.9) -> None:
        super().__init__(params, {"lr": lr, "beta": beta, "train_mode": False, "k": 0})

    def _move(self, training: bool) -> None:
        with torch.no_grad():
            for group in self.param_groups:
                if group["train_mode"] is training:
                    continue
                for p in group["params"]:
                    if "z" in self.state[p]:
                        weight = 1 - group["beta"] if training else 1 - 1 / group["beta"]
                        p.lerp_(self.state[p]["z"], weight)
                group["train_mode"] = training

    def train(self) -> None:
        self._move(True)

    def eval(self) -> None:
        self._move(False)

    def step(self, closure: Any = None) -> Any:
        if not self.param_groups[0]["train_mode"]:
            raise RuntimeError("step in evaluation mode")
        with torch.enable_grad():
            loss = None if closure is None else closure()
        with torch.no_grad():
            for group in self.param_groups:
                group["k"] += 1
                beta, share = group["beta"], 1 / group["k"]
                for p in group["params"]:
                    if p.grad is None:
                        continue
                    z = self.state[p].setdefault("z", p.clone())
                    x = p.lerp(z, 1 - 1 / beta)
                    z.sub_(p.grad, alpha=group["lr"])
                    x.lerp_(z, share)
                    p.copy_(x.lerp(z, 1 - beta))
        return loss


OPTIMIZERS: dict[str, Any] = {"stand-in": AveragingSGD}
if importlib.util.find_spec("schedulefree"):  # beside the stand-in, where it is installed
    import schedulefree

    OPTIMIZERS["SGDScheduleFree"] = partial(schedulefree.SGDScheduleFree, lr=0.1)
    OPTIMIZERS["AdamWScheduleFree"] = partial(schedulefree.AdamWScheduleFree, lr=0.01)


class Watch(L.Callback):
    """The mode at each moment, and the weights that were validated."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, bool]] = []
        self.validated: list[list[torch.Tensor]] = []
        self.trained: list[list[torch.Tensor]] = []

    def _note(self, what: str, trainer: L.Trainer) -> None:
        self.seen.append((what, trainer.optimizers[0].param_groups[0]["train_mode"]))

    def on_before_zero_grad(self, trainer, pl_module, optimizer) -> None:
        self._note("step", trainer)

    def on_validation_batch_start(self, trainer, pl_module, *_: Any) -> None:
        self._note("validation", trainer)
        self.validated.append([p.detach().clone() for p in pl_module.parameters()])

    def on_train_batch_end(self, trainer, pl_module, *_: Any) -> None:
        self.trained.append([p.detach().clone() for p in pl_module.parameters()])

    def on_fit_end(self, trainer, pl_module) -> None:
        self._note("end", trainer)


def module(optimizer: Any) -> StableModule:
    torch.manual_seed(0)
    net = MLP(4, 3, hidden=[5], dropout=0.0)
    return StableModule(net, task="classification", optimizer=optimizer)


def loader() -> DataLoader:
    x = torch.randn(40, 4, generator=torch.Generator().manual_seed(1))
    return DataLoader(TensorDataset(x, (x[:, 0] > 0).long()), batch_size=10)


def trainer(*callbacks: L.Callback, **settings: Any) -> L.Trainer:
    quiet = {
        "accelerator": "cpu",
        "max_epochs": 2,
        "logger": False,
        "enable_checkpointing": any(isinstance(c, ModelCheckpoint) for c in callbacks),
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    modes = SwitchOptimizerModes()
    return L.Trainer(callbacks=[*callbacks, modes], **{**quiet, **settings})


def equal(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_mode_is_right_at_every_moment(name):
    watch = Watch()
    trainer(watch, val_check_interval=2).fit(module(OPTIMIZERS[name]), loader(), loader())
    assert {mode for what, mode in watch.seen if what == "step"} == {True}
    assert {mode for what, mode in watch.seen if what == "validation"} == {False}
    assert watch.seen[-1] == ("end", False)
    # What is validated is not what is trained.
    assert not equal(watch.validated[-1], watch.trained[-1])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_best_checkpoint_holds_what_was_validated(name, tmp_path):
    watch = Watch()
    keep = ModelCheckpoint(tmp_path, "best", monitor="val/loss")
    trainer(watch, keep, max_epochs=1).fit(module(OPTIMIZERS[name]), loader(), loader())
    saved = torch.load(tmp_path / "best.ckpt", weights_only=True)
    assert equal(list(saved["state_dict"].values()), watch.validated[-1])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_checkpoint_between_two_steps_holds_the_average_and_training_goes_on(name, tmp_path):
    keep = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=3, save_top_k=-1)
    watch = Watch()
    model = module(OPTIMIZERS[name])
    trainer(watch, keep, max_epochs=1).fit(model, loader())
    saved = torch.load(tmp_path / "step=3.ckpt", weights_only=True)
    states = saved["optimizer_states"][0]
    assert [group["train_mode"] for group in states["param_groups"]] == [False]
    other = module(OPTIMIZERS[name])
    other.load_state_dict(saved["state_dict"])
    assert not equal(list(other.parameters()), watch.trained[2])
    optimizer = other.configure_optimizers()
    optimizer.load_state_dict(states)
    optimizer.train()
    pairs = zip(other.parameters(), watch.trained[2], strict=True)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in pairs)
    assert {mode for what, mode in watch.seen if what == "step"} == {True}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_resumed_run_is_the_unbroken_one_to_the_bit(name, tmp_path):
    keep = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
    unbroken, resumed = module(OPTIMIZERS[name]), module(OPTIMIZERS[name])
    trainer(keep, max_epochs=3).fit(unbroken, loader(), loader())
    path: Path = tmp_path / "epoch=0.ckpt"
    trainer(max_epochs=3).fit(resumed, loader(), loader(), ckpt_path=path)
    assert equal(list(unbroken.parameters()), list(resumed.parameters()))


def test_a_failing_run_leaves_the_average():
    class Fails(L.Callback):
        def on_train_batch_end(self, trainer, *_: Any) -> None:
            if trainer.global_step == 3:
                raise RuntimeError("enough")

    model = module(AveragingSGD)
    run = trainer(Fails())
    with pytest.raises(RuntimeError, match="enough"):
        run.fit(model, loader())
    assert run.optimizers[0].param_groups[0]["train_mode"] is False


def test_without_the_callback_it_is_refused_before_a_step():
    run = L.Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    with pytest.raises(RecipeError, match="needs SwitchOptimizerModes among the callbacks"):
        run.fit(module(AveragingSGD), loader())
