"""The trial step is one of a copy of the optimizer, whatever its class."""

import pytest
import torch
from torch import nn

from stablelightning.model.trial import copied

OPTIMIZERS = ["SGD", "Adam", "AdamW", "NAdam", "RAdam", "RMSprop", "Adagrad", "Adamax"]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_torchs_optimizers_can_be_copied(name):
    torch.manual_seed(0)
    net = nn.Linear(3, 2)
    optimizer = getattr(torch.optim, name)(net.parameters(), lr=0.01, weight_decay=0.1)
    net(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    clone = copied(optimizer)
    assert clone.param_groups[0]["weight_decay"] == 0.1
    before = [p.detach().clone() for p in net.parameters()]
    clone.step()
    moved = [p.detach().clone() for p in net.parameters()]
    with torch.no_grad():
        for parameter, old in zip(net.parameters(), before, strict=True):
            parameter.copy_(old)
    optimizer.step()
    assert all(map(torch.equal, moved, net.parameters()))
