"""Every public callback in every way of stepping: several optimizers by hand, scaled losses."""

from contextlib import nullcontext
from functools import cache
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor

from stablelightning.callbacks import ClipGradientNorm, GuardTraining, MonitorSignals
from stablelightning.callbacks.order import put_in_order
from tests.callbacks.modules import quiet_trainer
from tests.contracts.models import Seeded, weights
from tests.contracts.public import AUTOMATIC, OBSERVERS, make, public_callbacks
from tests.contracts.test_callbacks import same

every_callback = pytest.mark.parametrize("kind", public_callbacks(), ids=lambda k: k.__name__)


class TwoOptimizers(Seeded):
    """Steps by hand: one optimizer for each half, the second at every other batch."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        first, second = self.optimizers()
        loss = super().training_step(batch, batch_idx)
        first.zero_grad()
        second.zero_grad()
        self.manual_backward(loss)
        first.step()
        if batch_idx % 2:
            second.step()

    def configure_optimizers(self) -> Any:
        parameters = list(self.parameters())
        return (
            torch.optim.Adam(parameters[:2], lr=0.01),
            torch.optim.SGD(parameters[2:], lr=0.1, momentum=0.9),
        )


def fitted(*callbacks: L.Callback, model: type[Seeded] = Seeded, **settings: Any) -> list[Tensor]:
    torch.manual_seed(0)
    module = model()
    quiet_trainer(*callbacks, max_epochs=2, **settings).fit(module)
    return weights(module)


@cache
def two_optimizers_alone() -> list[Tensor]:
    return fitted(model=TwoOptimizers)


@every_callback
def test_trains_with_two_optimizers_by_hand(kind):
    refused = pytest.raises(Exception, match="automatic")  # in a warning, or an error
    with refused if kind.__name__ in AUTOMATIC else nullcontext():
        trained = fitted(make(kind), model=TwoOptimizers)
        assert all(value.isfinite().all() for value in trained)
        if kind.__name__ in OBSERVERS:
            assert same(trained, two_optimizers_alone())


def scaled(device: str, scale: float = 2.0**10) -> MixedPrecision:
    return MixedPrecision("16-mixed", device, torch.amp.GradScaler(device, init_scale=scale))


@cache
def scaled_alone(device: str, scale: float) -> list[Tensor]:
    return fitted(plugins=scaled(device, scale), accelerator=device)


@every_callback
@pytest.mark.parametrize("scale", [2.0**10, 2.0**40], ids=["fits", "overflows at first"])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu])])
def test_trains_with_a_scaled_loss(kind, device, scale):
    trained = fitted(make(kind), plugins=scaled(device, scale), accelerator=device)
    assert all(value.isfinite().all() for value in trained)
    if kind.__name__ in OBSERVERS:
        assert same(trained, scaled_alone(device, scale))


def test_the_recommended_callbacks_act_in_order_whatever_the_list_says():
    wanted = [GuardTraining, MonitorSignals, ClipGradientNorm]
    trainer = quiet_trainer(*(kind() for kind in reversed(wanted)))
    put_in_order(trainer)
    assert [type(c) for c in trainer.callbacks if type(c) in wanted] == wanted
