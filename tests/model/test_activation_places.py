"""Hidden units, gates and outputs are told apart, by structure and by the flow of data."""

import pytest
import torch
from torch import nn

from stablelightning.errors import DataError
from stablelightning.model.activation_places import find_places

ROWS = torch.randn(3, 4)


def roles(model, example=None):
    return {place.path: place.role for place in find_places(model, example)}


class Gated(nn.Module):
    """A hidden ReLU, weighed by a gate whose name says nothing."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.act = nn.ReLU()
        self.weigh = nn.Sequential(nn.Linear(4, 4), nn.Sigmoid())
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        x = self.act(self.first(x))
        return self.head(x * self.weigh(x).view_as(x))


class Scaled(nn.Module):
    """A hidden sigmoid with a learned scale, which is no gate."""

    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Linear(4, 4), nn.Linear(4, 2)
        self.act = nn.Sigmoid()
        self.gamma = nn.Parameter(torch.ones(4))

    def forward(self, x):
        return self.head(self.gamma * self.act(self.first(x)))


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.act = nn.ReLU()
        self.one, self.two, self.body = nn.Linear(4, 2), nn.Linear(4, 2), nn.Linear(4, 4)
        self.bound, self.squash = nn.Tanh(), nn.Sigmoid()

    def forward(self, x):
        x = self.act(self.body(x))
        first = self.bound(self.one(x))
        return first, self.squash(self.two(x)), x


class LSTMCell(nn.Module):
    """A recurrent cell written by hand."""

    def __init__(self):
        super().__init__()
        self.gates = nn.Linear(8, 16)
        self.sigmoid, self.tanh, self.act = nn.Sigmoid(), nn.Tanh(), nn.ReLU()

    def forward(self, x):
        h = c = torch.zeros(len(x), 4)
        i, f, o, g = self.gates(torch.cat((self.act(x), h), 1)).chunk(4, 1)
        c = self.sigmoid(f) * c + self.sigmoid(i) * self.tanh(g)
        return self.sigmoid(o) * self.tanh(c)


class LSTMClassifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(4, 4, batch_first=True)
        self.middle, self.tanh, self.head = nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.tanh(self.middle(self.lstm(x.unsqueeze(1))[0][:, -1])))


def deep_sigmoid():
    layers = [nn.Linear(4, 4), nn.Sigmoid(), nn.Linear(4, 4), nn.Sigmoid(), nn.Dropout(0.1)]
    return nn.Sequential(nn.Sequential(*layers), nn.Linear(4, 2), nn.Sigmoid())


@pytest.mark.parametrize("example", [None, ROWS], ids=["structure", "flow"])
@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (deep_sigmoid(), {"0.1": "hidden", "0.3": "hidden", "2": "output"}),
        (nn.Sequential(nn.Linear(4, 4), nn.ReLU()), {"1": "output"}),
        (LSTMCell(), {"sigmoid": "recurrent", "tanh": "recurrent", "act": "hidden"}),
        (LSTMClassifier(), {"tanh": "hidden"}),
    ],
    ids=["sigmoids", "ends-in-relu", "cell", "lstm-classifier"],
)
def test_both_ways_agree(model, expected, example):
    assert roles(model, example) == expected


def test_flow_tells_what_structure_cannot():
    assert roles(Gated()) == {"act": "hidden", "weigh.1": "unclear"}
    assert roles(Gated(), ROWS) == {"act": "hidden", "weigh.1": "gate"}
    assert roles(Scaled())["act"] == "output"  # defined behind the last layer
    assert roles(Scaled(), ROWS) == {"act": "hidden"}


def test_several_outputs_features_among_them():
    expected = {"act": "hidden", "bound": "output", "squash": "output"}
    assert roles(TwoHeads(), ROWS) == expected
    assert roles(TwoHeads()) == expected


def test_the_model_is_left_as_it_was():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.ReLU()).train()
    model[0].weight.requires_grad_(False)
    model[2].eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    flags = [m.training for m in model.modules()]
    generator = torch.get_rng_state()
    find_places(model, ROWS)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert [m.training for m in model.modules()] == flags
    assert [p.requires_grad for p in model.parameters()] == [False, True, True, True]
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), generator)
    assert not [m for m in model.modules() if m._forward_hooks]


@pytest.mark.parametrize(
    "example",
    [torch.randn(3, 5), (ROWS, torch.zeros(3)), {"y": ROWS}, ROWS.long(), ROWS.to("meta")],
    ids=["width", "with-target", "keyword", "dtype", "device"],
)
def test_an_example_that_does_not_fit(example):
    with pytest.raises(DataError, match="must fit the forward of Sequential") as error:
        find_places(deep_sigmoid(), example)
    assert "\n" not in str(error.value)


def test_functions_in_attributes():
    class Holds(nn.Module):
        def __init__(self):
            super().__init__()
            self.act, self.final_act, self.squash = torch.tanh, torch.tanh, torch.sigmoid

    assert roles(Holds()) == {"act": "hidden", "final_act": "unclear", "squash": "unclear"}
