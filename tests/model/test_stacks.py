import pytest
import torch
import torch.nn.functional as F
from torch import nn

from stablelightning.model.attribution import attribute
from stablelightning.model.stacks import plain_stacks

X = torch.randn(4, 6)


def names(model, x=X):
    return [[r.name for r in s.layers] for s in plain_stacks(attribute(model, x), model=model)]


def linear():
    return nn.Linear(6, 6)


class Own(nn.Module):
    def __init__(self, forward):
        super().__init__()
        self.a, self.b, self.c = linear(), linear(), linear()
        self.function = forward

    def forward(self, x):
        return self.function(self, x)


def test_layers_in_a_row_through_functions_of_any_kind():
    model = Own(lambda m, x: m.c(torch.tanh(m.b(F.dropout(F.gelu(m.a(x)), 0.1, m.training)))))
    assert names(model) == [["a", "b", "c"]]
    by_hand = Own(lambda m, x: m.c((h := m.b(torch.relu(m.a(x)))) * torch.sigmoid(h)))
    assert names(by_hand) == [["a", "b", "c"]]


@pytest.mark.parametrize(
    ("forward", "expected"),
    [
        (lambda m, x: m.c(F.relu(m.b(m.a(x)))), [["b", "c"]]),  # no function between a and b
        (lambda m, x: m.c(F.relu(m.b(F.layer_norm(F.relu(m.a(x)), (6,))))), [["b", "c"]]),
        (lambda m, x: m.c(F.relu(m.b(F.relu(m.a(x))) + m.a(x))), []),
        (lambda m, x: m.b(F.relu(m.a(x))) + m.c(F.relu(m.a(x))), []),
        (lambda m, x: m.c(F.relu(m.a(x)) * m.b(x)), []),
        (lambda m, x: m.c(F.relu(m.a(x)) + F.relu(m.b(x))), []),
    ],
)
def test_norms_joins_and_second_readers_end_a_stack(forward, expected):
    assert names(Own(forward)) == expected


def test_what_the_model_returns_as_well_ends_a_stack():
    def forward(m, x):
        h = F.relu(m.a(x))
        return m.c(F.relu(m.b(h))), h

    assert ["a", "b"] not in [s[:2] for s in names(Own(forward))]


def test_images_through_average_pooling_and_flattening_keep_their_halves():
    first, second = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3)
    head = [nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(16, 2)]
    model = nn.Sequential(first, nn.ReLU(), second, *head)
    assert names(model, torch.randn(2, 1, 8, 8)) == [["0", "2", "6"]]
    head[1] = nn.MaxPool2d(2)
    model = nn.Sequential(first, nn.ReLU(), second, *head)
    assert names(model, torch.randn(2, 1, 8, 8)) == [["0", "2"]]


def test_a_transpose_moves_the_units():
    model = Own(lambda m, x: m.b(F.relu(m.a(x)).transpose(1, 2)))
    assert names(model, torch.randn(2, 6, 6)) == []


def test_functions_between():
    (stack,) = plain_stacks(
        attribute(m := nn.Sequential(linear(), nn.ReLU(), linear()), X), model=m
    )
    (function,) = stack.functions
    assert torch.equal(function(X), F.relu(X))
