"""One trial step, against steps taken by hand."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from stablelightning.model.step import TrainingStep
from stablelightning.model.trial import copied, try_step


def patient():
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3))
    return model, (torch.randn(32, 6), torch.randint(3, (32,)))


def gradients_of(model, loss):
    parameters = list(model.parameters())
    return dict(zip(parameters, torch.autograd.grad(loss, parameters), strict=True))


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, lr=0.3, momentum=0.9, nesterov=True),
        lambda p: torch.optim.Adam(p, lr=0.01),
        lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
        lambda p: torch.optim.RMSprop(p, lr=0.01),
    ],
)
def test_the_loss_after_is_that_of_the_optimizers_own_step(make):
    model, batch = patient()
    step = TrainingStep(model, batch)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    trial = try_step(model, step, make(model.parameters()), gradients_of(model, step.run()))
    model.load_state_dict(state)
    optimizer = make(model.parameters())
    loss = F.cross_entropy(model(batch[0]), batch[1])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    assert trial.loss_before == pytest.approx(loss.item())
    assert trial.loss_after == pytest.approx(
        F.cross_entropy(model(batch[0]), batch[1]).item(), rel=1e-5
    )


def test_a_small_step_keeps_what_it_promises():
    model, batch = patient()
    step = TrainingStep(model, batch)
    sgd = torch.optim.SGD(model.parameters(), lr=1e-3)
    gradients = gradients_of(model, step.run())
    trial = try_step(model, step, sgd, gradients)
    squares = sum(float(g.square().sum()) for g in gradients.values())
    assert trial.promised == pytest.approx(1e-3 * squares, rel=1e-3)
    assert trial.loss_before - trial.loss_after == pytest.approx(trial.promised, rel=0.05)


def test_a_copy_goes_on_where_the_optimizer_is():
    model, (inputs, target) = patient()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    F.cross_entropy(model(inputs), target).backward()
    optimizer.step()
    twin = copied(optimizer)
    first = next(iter(model.parameters()))
    assert torch.equal(twin.state[first]["exp_avg"], optimizer.state[first]["exp_avg"])
    assert twin.state[first]["exp_avg"] is not optimizer.state[first]["exp_avg"]


def test_groups_keep_their_rates():
    model, _ = patient()
    groups = [{"params": model[0].parameters(), "lr": 1.0}, {"params": model[2].parameters()}]
    twin = copied(torch.optim.SGD(groups, lr=0.5))
    assert [group["lr"] for group in twin.param_groups] == [1.0, 0.5]


def test_an_optimizer_that_cannot_be_made_again_is_not_tried():
    class Odd(torch.optim.SGD):
        def __init__(self, model):
            super().__init__(model.parameters(), lr=0.1)

    model, _ = patient()
    assert copied(Odd(model)) is None
