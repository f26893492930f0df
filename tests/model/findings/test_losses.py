"""Logits where probabilities are due, and the reverse."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.model.findings.networks import find, findings, stack, table


def ended(end):
    return nn.Sequential(*stack(2), end)


def labels():
    return torch.randn(64, 20), torch.randint(2, (64, 10)).float()


@pytest.mark.parametrize(
    ("end", "loss", "batch", "code"),
    [
        (nn.Softmax(-1), F.cross_entropy, table, "loss-expects-logits"),
        (nn.Softmax(-1), nn.CrossEntropyLoss(), table, "loss-expects-logits"),
        (nn.Softmax(-1), None, table, "loss-expects-logits"),
        (nn.Sigmoid(), F.binary_cross_entropy_with_logits, labels, "loss-expects-logits"),
        (nn.Identity(), F.nll_loss, table, "loss-expects-probabilities"),
        (nn.Identity(), nn.BCELoss(), labels, "loss-expects-probabilities"),
    ],
)
def test_the_wrong_end_for_the_loss(end, loss, batch, code):
    first = findings(ended(end), batch(), loss)[0]
    assert (first.code, first.severity) == (code, "error")
    assert first.module == "4"


@pytest.mark.parametrize(
    ("end", "loss", "batch"),
    [
        (nn.Identity(), F.cross_entropy, table),
        (nn.LogSoftmax(-1), F.nll_loss, table),
        (nn.LogSoftmax(-1), F.cross_entropy, table),
        (nn.Sigmoid(), F.binary_cross_entropy, labels),
        (nn.Identity(), F.binary_cross_entropy_with_logits, labels),
    ],
)
def test_the_right_end_for_the_loss(end, loss, batch):
    for code in ("loss-expects-logits", "loss-expects-probabilities"):
        assert find(code, ended(end), batch(), loss) is None
