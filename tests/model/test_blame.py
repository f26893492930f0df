"""The cause of a step that went wrong, and a model that is left as it was."""

import copy
import json
import math
from functools import partial

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchmetrics import MeanMetric

from stablelightning.model import blame
from stablelightning.model.blame import Cause, cause_of


def rows(number=16, width=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(number, width, generator=generator)
    return x, torch.randint(3, (number,), generator=generator)


class Module(L.LightningModule):
    """A classifier with everything that a step may move."""

    def __init__(self, middle=None):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(4, 8)
        self.norm = nn.BatchNorm1d(8)
        self.middle = middle or nn.ReLU()
        self.drop = nn.Dropout(0.2)
        self.last = nn.Linear(8, 3)
        self.metric = MeanMetric()
        self.calls = 0
        self.seen = []

    def forward(self, x):
        return self.last(self.drop(self.middle(self.norm(self.first(x)))))

    def training_step(self, batch, batch_idx):
        x, y = batch
        self.calls += 1
        self.seen.append(self.calls)
        x.add_(1.0)  # which is not for everybody to see
        loss = F.cross_entropy(self(x), y)
        self.metric.update(loss.detach())
        self.log("loss", loss)
        return loss


class Plain(nn.Module):
    """Runs a function of its input."""

    def __init__(self, function):
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.function = function

    def forward(self, x):
        return self.function(self.layer(x))


class Inner(nn.Module):
    """The module that is to be named."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def network(function):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), Inner(function), nn.Linear(4, 3))


def test_poisoned_rows_are_named():
    x, y = rows()
    x[[3, 7]] = math.nan
    cause = cause_of(Module(), (x, y))
    assert (cause.kind, cause.evidence) == ("poisoned batch", {"rows": [3, 7]})
    assert cause.message == "2 of the 16 rows of the batch (3, 7) are not finite"


def test_rows_far_off_are_named():
    x, y = rows()
    x[3] *= 1e4
    cause = cause_of(Module(), (x, y))
    assert cause.kind == "poisoned batch"
    assert cause.evidence["rows"] == [3]
    assert "times as large as is usual" in cause.message


def test_a_batch_far_off_as_a_whole_is_known_by_what_is_usual():
    x, y = rows()
    assert cause_of(Module(), (x * 1e5, y), usual=[3.0]).message.startswith("all 16 rows")


def test_weights_that_were_bad_before():
    model = Module()
    model.last.weight.data[0, 0] = math.nan
    cause = cause_of(model, rows())
    assert (cause.kind, cause.module) == ("non-finite output", "last")
    assert cause.message == "last.weight was not finite before the step"


def test_division_by_what_vanishes():
    cause = cause_of(network(lambda x: x / (x - x)), rows())
    assert (cause.kind, cause.module) == ("division by a vanishing value", "1")
    assert cause.message == "div in 1 was given 0"


def test_the_logarithm_of_zero():
    cause = cause_of(network(lambda x: (x * 0).log()), rows())
    assert (cause.kind, cause.module) == ("division by a vanishing value", "1")


def test_the_slope_of_a_root_at_zero():
    cause = cause_of(network(lambda x: (x - x).sqrt()), rows())
    assert (cause.kind, cause.module) == ("division by a vanishing value", "1")
    assert cause.evidence == {"operation": "backward of sqrt"}


def test_a_root_of_what_is_negative():
    cause = cause_of(network(lambda x: (-x.abs()).sqrt()), rows())
    assert (cause.kind, cause.module) == ("non-finite output", "1")
    assert "takes nothing below zero" in cause.message


def test_the_first_module_with_an_output_that_is_not_finite():
    cause = cause_of(network(lambda x: (x * 1e3).exp()), rows())
    assert (cause.kind, cause.module) == ("non-finite output", "1")
    assert cause.message == "exp in 1 makes the first infinity"


def test_weights_too_large():
    model = network(torch.relu)
    model[0].weight.data.mul_(1e20)
    model[2].weight.data.mul_(1e21)
    cause = cause_of(model, rows())
    assert (cause.kind, cause.module) == ("weights too large", "2")


def test_training_raised_the_loss_of_the_same_rows():
    model = Module()
    earlier = {name: value.detach().clone() for name, value in model.state_dict().items()}
    for parameter in model.last.parameters():
        parameter.data.mul_(80)  # below what is too large by itself
    cause = cause_of(model, rows(), earlier=earlier)
    assert cause.kind == "learning rate too high"
    assert cause.evidence["loss"] > 10 * cause.evidence["earlier_loss"]
    assert cause.evidence["moved"] > 1


def test_a_loss_that_is_large_for_no_reason_to_be_seen_is_a_spike():
    class Scaled(Module):
        def training_step(self, batch, batch_idx):
            return 1e4 * super().training_step(batch, batch_idx)

    model = Scaled()
    earlier = {name: value.detach() * 1.01 for name, value in model.state_dict().items()}
    cause = cause_of(model, rows(), earlier=earlier)
    assert cause.kind == "spike"
    assert cause.module in ("first", "norm", "last")
    assert "none of which stands out" in cause.message


def test_other_dropout_is_not_taken_for_other_weights():
    class Chance(Module):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx) * 10.0 ** (8 * torch.rand(()))

    model = Chance()
    earlier = {name: value.detach() * 1.01 for name, value in model.state_dict().items()}
    assert all(cause_of(model, rows(), earlier=earlier).kind == "spike" for _ in range(10))


def test_overflow_in_half_precision():
    model = network(lambda x: x * 1e4)
    autocast = partial(torch.autocast, "cpu", dtype=torch.float16)
    x, y = rows()
    cause = cause_of(model, (50 * x, y), context=autocast)
    assert cause.kind == "overflow in half precision"
    assert cause.message.endswith("left the range of float16 (65504), and is finite in float32")
    assert cause_of(model, (50 * x, y)).kind != "overflow in half precision"


def test_an_infinity_that_float32_cannot_hold_either_is_no_overflow_of_half_precision():
    autocast = partial(torch.autocast, "cpu", dtype=torch.float16)
    cause = cause_of(network(lambda x: x / 0), rows(), context=autocast)
    assert cause.kind == "division by a vanishing value"


def everything(model):
    return (
        {name: value.clone() for name, value in model.state_dict().items()},
        [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        [m.training for m in model.modules()],
        {
            name: copy.copy(value)
            for name, value in vars(model).items()
            if name in ("calls", "seen")
        },
        model.metric.metric_state["mean_value"].clone(),
        torch.get_rng_state(),
    )


def same(one, other):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other) or bool(((one == other) | (one != one)).all())
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


@pytest.mark.parametrize("trouble", ["none", "nan rows", "far rows", "weights", "raised", "raises"])
def test_everything_is_left_as_it_was(trouble):
    model, (x, y), earlier = Module(), rows(), None
    F.cross_entropy(model(x), y).backward()
    if trouble == "nan rows":
        x[0] = math.nan
    if trouble == "far rows":
        x[0] = 1e6
    if trouble == "weights":
        model.last.weight.data.fill_(math.inf)
    if trouble == "raised":
        earlier = {name: value.detach() * 0 for name, value in model.state_dict().items()}
    if trouble == "raises":
        y = y + 100
    model.drop.eval()
    before, batch = everything(model), x.clone()
    cause_of(model, (x, y), earlier=earlier)
    assert same(everything(model), before)
    assert torch.equal(x.nan_to_num(), batch.nan_to_num())


@pytest.mark.parametrize(
    "make",
    [
        lambda: cause_of(Module(), rows()),
        lambda: cause_of(network(lambda x: x / 0), rows()),
        lambda: cause_of(Module(), (rows()[0] * math.nan, rows()[1])),
    ],
)
def test_evidence_is_plain(make):
    cause = make()
    assert isinstance(cause, Cause)
    assert json.loads(json.dumps(cause.evidence)) == cause.evidence
    assert "\n" not in cause.message
    assert cause.message


def test_a_step_that_cannot_be_run_again_is_unknown():
    x, y = rows()
    cause = cause_of(Module(), (x, y + 100))
    assert cause.kind == "unknown"
    assert "could not be run again" in cause.message


def test_a_loss_without_a_graph_is_looked_at_all_the_same():
    model = network(torch.relu)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    assert cause_of(model, rows()).kind == "spike"


@pytest.fixture
def lonely_group(tmp_path):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("lonely_group")
def test_a_step_that_needs_other_processes_is_not_run():
    def gather(x):
        torch.distributed.all_reduce(x.detach())
        return x * math.nan

    cause = cause_of(network(gather), rows())
    assert cause == Cause("unknown", "", "other processes take part in it")


@pytest.mark.usefixtures("lonely_group")
def test_a_step_that_needs_none_is_run_among_several_processes_too():
    assert cause_of(network(lambda x: x / 0), rows()).module == "1"


def test_every_kind_has_a_remedy_of_its_own():
    from stablelightning.report.events import remedy

    kinds = [
        value for name, value in vars(blame).items() if name.isupper() and isinstance(value, str)
    ]
    assert len({remedy(kind) for kind in kinds if kind != "unknown"}) == len(kinds) - 1
