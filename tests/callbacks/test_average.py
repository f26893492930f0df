"""Lightning's own moving average around modules of this package, and beside the other callbacks."""

import copy

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from torch import nn

from stablelightning.callbacks import GuardTraining, RegularizeL1
from stablelightning.cli.checkpoint import KeepBest
from stablelightning.module import StableModule
from tests.callbacks.modules import loader, quiet_trainer
from tests.contracts.models import Resumable, weights

DECAY = 0.8


def module():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3))
    return StableModule(net, task="classification")


def fit(model, *callbacks, ckpt_path=None, **settings):
    trainer = quiet_trainer(*callbacks, **{"max_epochs": 3, **settings})
    more = {"ckpt_path": ckpt_path, "weights_only": True} if ckpt_path else {}
    trainer.fit(model, Resumable(loader(24)), loader(), **more)
    return trainer


def same(one, other):
    return all(map(torch.equal, one, other))


class Follow(L.Callback):
    """The average as a plain script would keep it, and the module's own weights."""

    def __init__(self):
        self.average, self.own = None, None

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.own = [p.detach().clone() for p in pl_module.parameters()]
        if self.average is None:
            self.average = copy.deepcopy(self.own)
        for mean, now in zip(self.average, self.own, strict=True):
            mean.lerp_(now, 1 - DECAY)


def test_what_is_left_is_the_average_of_a_training_that_is_not_changed():
    plain, averaged = Follow(), Follow()
    fit(module(), plain)
    model = module()
    fit(model, averaged, EMAWeightAveraging(decay=DECAY))
    assert same(averaged.own, plain.own)
    for mine, theirs in zip(plain.average, model.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("step", [3, 4], ids=["end-of-epoch", "mid-epoch"])
def test_a_resumed_run_has_the_same_average(step, tmp_path):
    every = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
    unbroken, resumed = module(), module()
    fit(unbroken, EMAWeightAveraging(decay=DECAY), every, enable_checkpointing=True)
    fit(resumed, EMAWeightAveraging(decay=DECAY), ckpt_path=tmp_path / f"step={step}.ckpt")
    assert same(weights(resumed), weights(unbroken))


def test_the_best_checkpoint_is_the_average_and_loads_by_itself(tmp_path):
    keeper = KeepBest(str(tmp_path))
    model = module()
    trainer = fit(model, EMAWeightAveraging(decay=DECAY), keeper, enable_checkpointing=True)
    again = StableModule.load_from_checkpoint(keeper.best_model_path, network=module().network)
    first, second = (
        L.Trainer.test(quiet_trainer(), m, loader(), verbose=False)[0]["test/loss"]
        for m in (again, model)
    )
    assert trainer.checkpoint_callback.best_model_score == pytest.approx(first, rel=1e-5)
    assert first == pytest.approx(second, rel=1e-5)  # the last epoch was the best


def test_a_skipped_step_leaves_the_average_finite():
    class Poisoned(StableModule):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            return loss * float("nan") if self.trainer.global_step == 4 else loss

    torch.manual_seed(0)
    model = Poisoned(nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)), "classification")
    with pytest.warns(UserWarning, match="GuardTraining"):
        fit(model, GuardTraining(), RegularizeL1(0.1), EMAWeightAveraging(decay=DECAY))
    assert all(value.isfinite().all() for value in weights(model))
