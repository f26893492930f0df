"""A callback learns in ``setup`` that a checkpoint will be loaded, which Lightning says later."""

import lightning as L
import pytest

from stablelightning.callbacks.resume import checkpoint_to_load
from tests.callbacks.modules import Plain, loader, quiet_trainer


class Asks(L.Callback):
    def __init__(self):
        self.told = []

    def setup(self, trainer, pl_module, stage):
        self.told.append((str(stage), checkpoint_to_load(trainer)))

    def on_fit_start(self, trainer, pl_module):
        self.told.append(("start", checkpoint_to_load(trainer)))


@pytest.fixture
def checkpoint(tmp_path):
    trainer = quiet_trainer(max_steps=1)
    trainer.fit(Plain(), loader())
    trainer.save_checkpoint(tmp_path / "some.ckpt")
    return tmp_path / "some.ckpt"


@pytest.mark.parametrize("loop", ["fit", "validate", "test", "predict"])
def test_the_path_is_known_before_it_is_read(loop, checkpoint):
    asks = Asks()
    model = Plain()
    model.predict_step = lambda batch, batch_idx: model(batch[0])
    trainer = quiet_trainer(asks, max_steps=2)
    getattr(trainer, loop)(model, loader(), ckpt_path=checkpoint)
    assert {path for _, path in asks.told} == {checkpoint}


def test_a_fresh_run_loads_nothing(checkpoint):
    asks = Asks()
    trainer = quiet_trainer(asks, max_steps=1)
    trainer.fit(Plain(), loader())
    trainer.validate(Plain(), loader(), verbose=False)
    assert {path for _, path in asks.told} == {None}


def test_another_trainer_further_down_the_stack_is_not_asked(checkpoint):
    inner = Asks()

    class Nested(L.Callback):
        def setup(self, trainer, pl_module, stage):
            quiet_trainer(inner, max_steps=1).fit(Plain(), loader())

    quiet_trainer(Nested(), max_steps=2).fit(Plain(), loader(), ckpt_path=checkpoint)
    assert {path for _, path in inner.told} == {None}


def test_a_trainer_that_does_not_run_loads_nothing():
    assert checkpoint_to_load(quiet_trainer()) is None
