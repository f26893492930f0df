"""masks= on a GPU: counted there, and the same for every row on every device."""

import pytest
import torch
from torch import nn

import stablelightning as sl
from stablelightning.errors import ModelError
from stablelightning.nn import MLP
from tests.model import modules as m

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("engine", ["loop", "replay", "vmap", "repeat", "auto"])
@pytest.mark.parametrize("masks", ["balanced", "balanced_consistent"])
def test_each_unit_is_dropped_equally_often(engine: str, masks: str) -> None:
    x = torch.ones(4, 50, device="cuda")
    output = sl.sample_predictions(
        nn.Dropout(0.3), x, samples=20, seed=0, engine=engine, masks=masks, chunk_size=6
    )
    assert ((output == 0).sum(0) == 6).all()


@pytest.mark.parametrize("masks", ["consistent", "balanced_consistent"])
@pytest.mark.parametrize("make", [lambda: MLP(8, 4), lambda: m.Attention(need_weights=False)])
def test_shared_masks_are_those_of_the_cpu(make: object, masks: str) -> None:
    model = make()  # type: ignore[operator]
    x = torch.randn(3, 8) if isinstance(model, MLP) else torch.randn(3, 5, 8)
    mine = sl.sample_predictions(model, x, samples=6, seed=0, masks=masks)
    its = sl.sample_predictions(model.cuda(), x.cuda(), samples=6, seed=0, masks=masks)
    torch.testing.assert_close(mine, its.cpu(), rtol=1e-3, atol=1e-4)


def test_dropout_inside_a_kernel_is_refused() -> None:
    model = m.Recurrent(nn.LSTM).cuda()
    with pytest.raises(ModelError, match="consistent masks need draws"):
        sl.sample_predictions(model, torch.randn(3, 5, 4).cuda(), samples=4, masks="consistent")
