import pytest
import torch
from torch import nn

from stablelightning.callbacks import SelectActivation
from tests.callbacks.modules import Plain, loader, quiet_trainer

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
def test_one_gpu(precision):
    select = SelectActivation(["relu", "prelu"], steps=6, seeds=2, finalists=2)
    states = []

    class Plainer(Plain):
        def on_fit_start(self):
            states.append(torch.cuda.get_rng_state())

    before = torch.cuda.get_rng_state()
    trainer = quiet_trainer(select, accelerator="gpu", precision=precision, max_epochs=1)
    trainer.fit(Plainer(), loader())
    assert all(row[2] is not None for row in select.evidence["rows"])
    assert torch.equal(states[0], before)


def test_one_candidate_is_made_where_the_model_is():
    model = Plain()
    trainer = quiet_trainer(SelectActivation(["prelu"]), accelerator="gpu", max_epochs=1)
    trainer.fit(model, loader())
    assert isinstance(model.net[1], nn.PReLU)
    assert len({p.device for p in model.parameters()}) == 1
