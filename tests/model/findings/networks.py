"""Small healthy networks for the rules' tests to break, and how a finding is looked up."""

import torch
from torch import nn

import stablelightning as sl


def table(rows=64, columns=20, classes=10):
    return torch.randn(rows, columns), torch.randint(classes, (rows,))


def stack(depth=4, width=48, activation=nn.ReLU, *, gain=2**0.5, between=None, inputs=20):
    """Linear layers, each with ``between`` (a function of the width) and an activation behind."""
    layers, size = [], inputs
    for _ in range(depth):
        linear = nn.Linear(size, width)
        nn.init.normal_(linear.weight, std=gain / size**0.5)
        nn.init.zeros_(linear.bias)
        layers += [linear, *([between(width)] if between else []), activation()]
        size = width
    head = nn.Linear(size, 10)
    nn.init.zeros_(head.bias)
    return nn.Sequential(*layers, head)


def findings(model, batch=None, loss=None, **options):
    return sl.diagnose(model, table() if batch is None else batch, loss, **options).findings


def find(code, model, batch=None, loss=None, **options):
    """The first finding of that code; ``None`` where it is not said."""
    found = findings(model, batch, loss, **options)
    return next((f for f in found if f.code == code), None)
