"""A copy trains as Lightning would train the module, and nothing of it reaches the trainer."""

import copy

import pytest
import torch
from torch import Tensor, nn

from stablelightning.callbacks.contestant import LightningContestant, copy_of, unlogged
from stablelightning.errors import ModelError
from tests.callbacks.modules import Plain, data, loader, quiet_trainer


def batches():
    return list(loader(24))


def contestant(module, **settings):
    trainer = quiet_trainer(**settings)
    module._trainer = trainer
    return LightningContestant(copy_of(module, trainer), trainer)


class Scheduled(Plain):
    """A rate that falls with every batch, and dropout drawn from its number."""

    def __init__(self, rate: float = 0.5):
        super().__init__(rate=rate)

    def training_step(self, batch, batch_idx):
        torch.manual_seed(batch_idx)
        self.log("loss", 1.0)
        return {"loss": super().training_step(batch, batch_idx)}

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), lr=0.1)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"gradient_clip_val": 0.01},
        {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"},
        {"precision": "bf16-mixed"},
    ],
    ids=str,
)
def test_the_same_weights_as_the_trainer_would_give(settings):
    torch.manual_seed(0)
    module = Scheduled()
    racer = contestant(copy.deepcopy(module), **settings)
    for number, batch in enumerate(batches()):
        racer.learn(batch, number)
    trainer = quiet_trainer(max_epochs=1, **settings)
    trainer.fit(module, loader(24))
    pairs = zip(racer.module.parameters(), module.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_the_original_and_the_trainer_are_left_alone():
    module = Scheduled()
    trainer = quiet_trainer()
    module._trainer = trainer
    before = copy.deepcopy(module.state_dict())
    racer = LightningContestant(copy_of(module, trainer), trainer)
    racer.learn(batches()[0], 0)
    assert racer.module.trainer is trainer is module.trainer
    assert trainer.optimizers == []
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())
    assert "log" not in vars(racer.module)


def test_the_loss_is_read_in_eval_without_learning():
    racer = contestant(Scheduled(rate=0.9))
    batch = batches()[0]
    before = [p.clone() for p in racer.module.parameters()]
    assert racer.loss(batch) == racer.loss(batch)
    assert all(map(torch.equal, before, racer.module.parameters()))
    assert all(p.grad is None for p in racer.module.parameters())


class Skips(Plain):
    def training_step(self, batch: object, batch_idx: int) -> Tensor | None:
        return None if batch_idx == 0 else super().training_step(batch, batch_idx)


def test_a_skipped_batch_changes_nothing():
    racer = contestant(Skips())
    before = [p.clone() for p in racer.module.parameters()]
    racer.learn(batches()[0], 0)
    assert all(map(torch.equal, before, racer.module.parameters()))
    racer.learn(batches()[0], 1)
    assert not all(map(torch.equal, before, racer.module.parameters()))


@pytest.mark.parametrize(
    "configured",
    [
        lambda o, s: o,
        lambda o, s: [o],
        lambda o, s: ([o], [s]),
        lambda o, s: ([o], [{"scheduler": s, "interval": "epoch"}]),
        lambda o, s: {"optimizer": o},
        lambda o, s: {"optimizer": o, "lr_scheduler": s},
        lambda o, s: [{"optimizer": o, "lr_scheduler": {"scheduler": s}}],
    ],
)
def test_every_way_of_naming_one_optimizer(configured):
    module = Plain()

    def configure():
        optimizer = torch.optim.LBFGS(module.parameters(), lr=0.1, max_iter=3)
        return configured(optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 1))

    module.configure_optimizers = configure
    trainer = quiet_trainer()
    module._trainer = trainer
    racer = LightningContestant(module, trainer)
    batch = batches()[0]
    start = racer.loss(batch)
    racer.learn(batch, 0)
    assert racer.loss(batch) < start


def test_what_cannot_race_is_told():
    two, none, manual, stepless = Plain(), Plain(), Plain(), Plain()
    two.configure_optimizers = lambda: [torch.optim.SGD(two.parameters(), lr=0.1)] * 2
    none.configure_optimizers = lambda: None
    manual.automatic_optimization = False
    for module, told in ((two, "gives 2"), (none, "gives 0"), (manual, "optimizes by itself")):
        module._trainer = quiet_trainer()
        with pytest.raises(ModelError, match=told):
            LightningContestant(module, module._trainer)
    stepless.lock = torch.zeros(1, requires_grad=True) * 2  # no leaf: torch copies none
    with pytest.raises(ModelError, match="must be copied"):
        copy_of(stepless, quiet_trainer())


def test_the_users_own_logging_comes_to_nothing(tmp_path):
    from lightning.pytorch.loggers import CSVLogger

    trainer = quiet_trainer(logger=CSVLogger(str(tmp_path)))
    logger = trainer.logger

    def step():
        trainer.logger.log_metrics({"a": 1.0})
        trainer.logger.experiment.whatever("b")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), unlogged(trainer):
        step()
    assert trainer.logger is logger
    assert not list(tmp_path.rglob("*.csv"))


def test_half_precision_converts_the_copy():
    racer = contestant(nn.Module.float(Plain()), precision="bf16-true")
    assert {p.dtype for p in racer.module.parameters()} == {torch.bfloat16}
    racer.learn(batches()[0], 0)
    assert len(data()) == 20
