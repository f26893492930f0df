"""Which optimizer holds which parameter: identity decides."""

import torch
from torch import nn

from stablelightning.model.membership import missing_parameters, take_in_


def network() -> nn.Sequential:
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    for layer in net:
        nn.init.zeros_(layer.bias)  # equal values
    return net


def names_of(optimizer: torch.optim.Optimizer, net: nn.Module) -> list[list[str]]:
    called = {id(p): name for name, p in net.named_parameters()}
    return [[called[id(p)] for p in group["params"]] for group in optimizer.param_groups]


def test_equal_values_are_other_parameters():
    net = network()
    sgd = torch.optim.SGD(net[2].parameters(), lr=0.1)
    missing = missing_parameters([sgd], dict(net.named_parameters()))
    assert list(missing) == ["0.weight", "0.bias", "1.weight", "1.bias"]


def test_several_optimizers_hold_together():
    net = network()
    pair = [torch.optim.SGD(net[n].parameters(), lr=0.1) for n in (0, 2)]
    missing = missing_parameters(pair, dict(net.named_parameters()))
    assert list(missing) == ["1.weight", "1.bias"]


def test_groups_that_exist_take_them_in_by_kind():
    net = network()
    head = net[2]
    adam = torch.optim.AdamW(
        [
            {"params": [head.bias], "weight_decay": 0.0},
            {"params": [head.weight], "weight_decay": 0.1},
        ]
    )
    missing = missing_parameters([adam], dict(net.named_parameters()))
    take_in_([adam], missing, like=list(head.parameters()))
    assert names_of(adam, net) == [
        ["2.bias", "0.bias", "1.bias"],
        ["2.weight", "0.weight", "1.weight"],
    ]


def test_the_optimizer_of_the_head_takes_them_in():
    net = network()
    first = torch.optim.SGD(net[0].parameters(), lr=0.1)
    last = torch.optim.SGD(net[2].parameters(), lr=0.2)
    missing = missing_parameters([first, last], dict(net.named_parameters()))
    take_in_([first, last], missing, like=[*net[2].parameters(), *net[0].parameters()])
    assert names_of(last, net) == [["2.weight", "2.bias", "1.weight", "1.bias"]]
    assert names_of(first, net) == [["0.weight", "0.bias"]]


def test_names_stay_beside_parameters():
    net = network()
    named = [(f"2.{name}", p) for name, p in net[2].named_parameters()]
    sgd = torch.optim.SGD(named, lr=0.1)
    missing = missing_parameters([sgd], dict(net.named_parameters()))
    take_in_([sgd], missing, like=list(net[2].parameters()))
    group = sgd.param_groups[0]
    assert group["param_names"] == names_of(sgd, net)[0]


def test_an_optimizer_that_keeps_the_list_itself_steps_on_all():
    net = network()
    lbfgs = torch.optim.LBFGS(net[2].parameters(), lr=0.1)
    missing = missing_parameters([lbfgs], dict(net.named_parameters()))
    take_in_([lbfgs], missing, like=list(net[2].parameters()))
    before = net[0].weight.detach().clone()

    def closure() -> torch.Tensor:
        lbfgs.zero_grad()
        loss = net(torch.ones(3, 2)).square().sum()
        loss.backward()
        return loss

    lbfgs.step(closure)
    assert not torch.equal(net[0].weight, before)


def test_nothing_happens_without_a_group():
    take_in_([], dict(network().named_parameters()), like=[])
