"""The doctor on a CUDA device says what it says on the CPU."""

import pytest
import torch
from torch import nn

import stablelightning as sl

pytestmark = pytest.mark.gpu


def sick():
    model = nn.Sequential(
        *(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten()),
        *(nn.Linear(8 * 36, 32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 10)),
    )
    model[4].bias.data.fill_(-30.0)
    return model


def test_findings_and_profile_are_those_of_the_cpu():
    model, batch = sick(), (torch.randn(32, 3, 8, 8), torch.randint(10, (32,)))
    here = sl.diagnose(model, batch)
    optimizer = torch.optim.Adam(model.cuda().parameters())
    there = sl.diagnose(model, batch, optimizer=optimizer)  # the batch is moved to the model
    assert there.findings[0].code == here.findings[0].code == "dead-units"
    for mine, other in zip(here.layers[:2], there.layers[:2], strict=True):
        assert other.std == pytest.approx(mine.std, rel=1e-2)


def test_generators_and_weights_of_the_device_stay():
    model = sick().cuda()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = torch.cuda.get_rng_state()
    sl.diagnose(model, (torch.randn(32, 3, 8, 8), torch.randint(10, (32,))))
    assert torch.equal(torch.cuda.get_rng_state(), state)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
