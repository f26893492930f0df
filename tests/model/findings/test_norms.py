"""Batch norm over one row, behind dropout, and inside a recurrent loop."""

import torch
from torch import nn

from tests.model.findings.networks import find, findings, stack, table


def test_one_row_is_an_error_and_the_rest_is_measured():
    model = stack(between=nn.BatchNorm1d)
    inputs, target = table()
    first = findings(model, (inputs[:1], target[:1]))[0]
    assert (first.code, first.module, first.severity) == ("batch-norm-one-row", "1", "error")
    assert len(first.modules) == 4


def test_one_image_with_positions_is_a_warning():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(288, 10))
    found = find("batch-norm-one-row", model, (torch.randn(1, 3, 8, 8), torch.tensor([1])))
    assert (found.severity, found.module) == ("warning", "1")


def test_norms_in_eval_take_no_statistics():
    model = stack(between=nn.BatchNorm1d)
    for module in model:
        if isinstance(module, nn.BatchNorm1d):
            module.eval()
    inputs, target = table()
    assert find("batch-norm-one-row", model, (inputs[:1], target[:1])) is None


def before(norm):
    return lambda width: nn.Sequential(nn.Dropout(0.3), norm(width))


def test_dropout_right_before_batch_norm():
    found = find("dropout-before-norm", stack(between=before(nn.BatchNorm1d)))
    assert found.severity == "warning"
    assert found.cure_arguments == {"dropout": "1.0"}


def test_functional_dropout_is_seen_too():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.norm = nn.Linear(20, 32), nn.BatchNorm1d(32)
            self.head = nn.Linear(32, 10)

        def forward(self, x):
            x = nn.functional.dropout(self.layer(x), 0.3, self.training)
            return self.head(torch.relu(self.norm(x)))

    found = find("dropout-before-norm", Net())
    assert (found.module, found.cure_arguments) == ("norm", {})


def test_the_usual_order_and_layer_norm_are_fine():
    assert find("dropout-before-norm", stack(between=before(nn.LayerNorm))) is None
    usual = nn.Sequential(
        *(nn.Linear(20, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.3)),
        *(nn.Linear(32, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.3), nn.Linear(32, 10)),
    )
    assert find("dropout-before-norm", usual) is None
    silent = stack(between=lambda width: nn.Sequential(nn.Dropout(0.0), nn.BatchNorm1d(width)))
    assert find("dropout-before-norm", silent) is None


class Loop(nn.Module):
    """A recurrent cell by hand, with a norm inside or outside of the loop."""

    def __init__(self, *, inside):
        super().__init__()
        self.step, self.head = nn.Linear(8 + 16, 16), nn.Linear(16, 10)
        self.norm, self.inside = nn.BatchNorm1d(16), inside

    def forward(self, x):
        state = x.new_zeros(len(x), 16)
        for inputs in x.unbind(1):
            state = torch.tanh(self.step(torch.cat([inputs, state], 1)))
            state = self.norm(state) if self.inside else state
        return self.head(state if self.inside else self.norm(state))


def test_batch_norm_inside_a_loop():
    batch = torch.randn(32, 6, 8), torch.randint(10, (32,))
    assert find("recurrent-batch-norm", Loop(inside=True), batch).module == "norm"
    assert find("recurrent-batch-norm", Loop(inside=False), batch) is None


def test_a_norm_shared_by_two_towers_is_no_loop():
    class Siamese(nn.Module):
        def __init__(self):
            super().__init__()
            self.read, self.norm = nn.Linear(20, 16), nn.BatchNorm1d(16)
            self.head = nn.Linear(16, 10)

        def forward(self, x):
            left, right = self.norm(self.read(x)), self.norm(self.read(x.flip(1)))
            return self.head(torch.relu(left - right))

    assert find("recurrent-batch-norm", Siamese()) is None


def test_a_norm_that_amplifies_is_named_itself():
    model = stack(between=nn.LayerNorm)
    model[4].weight.data.fill_(100.0)
    found = findings(model)
    assert ("exploding-signal", "4") in [(f.code, f.module) for f in found[:2]]


def test_a_norm_whose_offset_silences_its_units_is_named_itself():
    model = stack(between=nn.BatchNorm1d)
    model[4].bias.data.fill_(-10.0)
    first = findings(model)[0]
    assert (first.code, first.module, first.severity) == ("dead-units", "4", "error")


def test_a_norm_with_a_zero_scale_is_a_start_of_a_branch():
    model = stack(between=nn.LayerNorm)
    model[4].weight.data.fill_(0.0)
    assert all(f.module != "4" for f in findings(model) if f.code == "exploding-signal")
