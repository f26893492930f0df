"""What a forward left behind is taken back, to the bit."""

import random

import pytest
import torch
from torch import nn
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.aggregation import CatMetric, MaxMetric

from stablelightning.model import undo as undo_module
from stablelightning.model.undo import ForwardUndo, KeptMetric

NAN = float("nan")


def test_batch_norm_is_as_before():
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    net(torch.randn(8, 3))
    before = {name: b.clone() for name, b in net.named_buffers()}
    undo = ForwardUndo(net)
    undo.take()
    net(torch.full((8, 3), NAN))
    assert net[1].running_mean.isnan().all()
    undo.restore()
    assert all(torch.equal(b, before[name]) for name, b in net.named_buffers())


def test_what_is_remembered_is_the_last_state_taken():
    net = nn.BatchNorm1d(3)
    undo = ForwardUndo(net)
    for _ in range(3):
        undo.take()
        net(torch.randn(4, 3))
    assert net.num_batches_tracked == 3
    undo.restore()
    assert net.num_batches_tracked == 2


class Own(nn.Module):
    """Replaces, resizes, adds and removes buffers; carries a state and a count."""

    def __init__(self):
        super().__init__()
        self.register_buffer("level", torch.zeros(2))
        self.register_buffer("gone", torch.ones(1))
        self.hidden = None
        self.calls = 0
        self.notes = []

    def forward(self, x):
        self.level = self.level + x.mean(0)
        self.calls += 1
        self.hidden = (x.detach(), x.detach() * 2)
        self.notes.append("kept")
        return x * self.level


def test_replaced_buffers_come_back_as_the_same_tensors():
    net = Own()
    first = net.level
    undo = ForwardUndo(net)
    undo.take()
    net(torch.full((3, 2), NAN))
    del net.gone
    net.register_buffer("new", torch.ones(1))
    undo.restore()
    assert net.level is first
    assert torch.equal(first, torch.zeros(2))
    assert list(dict(net.named_buffers())) == ["level", "gone"]


def test_buffers_replaced_before_are_followed():
    net = Own()
    undo = ForwardUndo(net)
    net(torch.ones(3, 2))
    net.register_buffer("new", torch.ones(1))
    undo.take()
    net(torch.full((3, 2), NAN))
    net.new.fill_(NAN)
    undo.restore()
    assert torch.equal(net.level, torch.ones(2))
    assert torch.equal(net.new, torch.ones(1))


def test_a_buffer_that_was_resized_in_place():
    net = Own()
    undo = ForwardUndo(net)
    undo.take()
    net.level.resize_(5).fill_(1.0)
    undo.restore()
    assert torch.equal(net.level, torch.zeros(2))
    net.level.resize_(5).fill_(1.0)
    undo.take()
    net.level.fill_(NAN)
    undo.restore()
    assert torch.equal(net.level, torch.ones(5))


def test_carried_states_and_counts_come_back_and_nothing_else():
    net = Own()
    net(torch.ones(3, 2))
    carried = net.hidden
    undo = ForwardUndo(net)
    undo.take()
    net(torch.full((3, 2), NAN))
    net.eval()
    net.title = "another"
    undo.restore()
    assert net.hidden is carried
    assert net.calls == 1
    assert net.notes == ["kept", "kept"]
    assert not net.training
    assert net.title == "another"


@pytest.mark.parametrize("in_place", [True, False])
def test_large_buffers_are_followed_by_their_version(monkeypatch, in_place):
    monkeypatch.setattr(undo_module, "_LARGE", 1)
    net = Own()
    undo = ForwardUndo(net)
    for number in range(3):
        undo.take()
        if in_place:
            net.level.add_(1)
        else:
            net.level = net.level + 1
        assert torch.equal(net.level, torch.full((2,), number + 1.0))
    undo.restore()
    assert torch.equal(net.level, torch.full((2,), 2.0))
    undo.restore()
    assert torch.equal(net.level, torch.full((2,), 2.0))


def test_generators_come_back_unless_told_otherwise():
    net = nn.Dropout()
    undo = ForwardUndo(net)
    undo.take()
    drawn = torch.rand(3), random.random()
    undo.restore()
    assert torch.equal(torch.rand(3), drawn[0])
    assert random.random() == drawn[1]
    undo.restore(draws=False)
    assert not torch.equal(torch.rand(3), drawn[0])


@pytest.mark.parametrize("kind", [MeanMetric, MaxMetric, CatMetric])
def test_metrics_in_the_model(kind):
    net = nn.ModuleDict({"metric": kind(nan_strategy="ignore")})
    net["metric"].update(torch.tensor([1.0, 2.0]))
    undo = ForwardUndo(net)
    undo.take()
    net["metric"](torch.tensor([1e9, 3e9]))
    net["metric"].compute()
    undo.restore()
    fresh = kind(nan_strategy="ignore")
    fresh.update(torch.tensor([1.0, 2.0]))
    assert torch.equal(torch.as_tensor(net["metric"].compute()), torch.as_tensor(fresh.compute()))
    assert net["metric"].update_count == 1


def test_metrics_that_share_their_states():
    metrics = MetricCollection({"a": MeanMetric(), "b": MeanMetric()}, compute_groups=[["a", "b"]])
    net = nn.ModuleDict({"metrics": metrics})
    metrics.update(1.0)
    metrics.update(3.0)
    undo = ForwardUndo(net)
    undo.take()
    metrics.update(100.0)
    undo.restore()
    assert metrics.compute() == {"a": torch.tensor(2.0), "b": torch.tensor(2.0)}


def test_a_metric_that_is_no_part_of_the_model():
    mean = MeanMetric()
    mean.update(1.0)
    assert mean.compute() == 1.0
    kept = KeptMetric(mean)
    mean.update(3.0)
    kept.restore()
    assert mean.compute() == 1.0
    mean.update(3.0)
    assert mean.compute() == 2.0
