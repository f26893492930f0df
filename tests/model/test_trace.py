"""What a watched forward writes down: operations, views, calls, inputs and outputs."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from stablelightning.model.attribution import attribute
from stablelightning.model.trace import Trace, watch
from tests.model.written import ROWS, Written, between, consumer

STEPS = torch.randn(3, 5, 4)


def names(trace: Trace, kind: str | None = None) -> list[str]:
    return [o.name for o in trace.operations if kind in (None, o.kind)]


# ---- writes in place, and views -----------------------------------------------------------------


def relu_on_a_view(h: Tensor) -> Tensor:
    h.view(-1).relu_()
    return h


def relu_on_the_base(h: Tensor) -> Tensor:
    flat = h.view(-1)
    h.relu_()
    return flat.view(3, 6)


def into_a_buffer(h: Tensor) -> Tensor:
    return torch.empty_like(h).copy_(h.relu())


def out_variant(h: Tensor) -> Tensor:
    made = torch.empty(3, 6)
    torch.clamp_min(h, 0.0, out=made)
    return made


def slices_one_by_one(h: Tensor) -> Tensor:
    for column in range(6):
        h[:, column] = h[:, column].relu()
    return h


def rows_of_a_buffer(h: Tensor) -> Tensor:
    made = torch.zeros(3, 6)
    for row in range(3):
        made[row] = h[row].relu()
    return made


def masked(h: Tensor) -> Tensor:
    h[h < 0] = 0.0
    return h


def through_data(h: Tensor) -> Tensor:
    h.data.relu_()
    return h


@pytest.mark.parametrize(
    "middle",
    [
        relu_on_a_view,
        relu_on_the_base,
        into_a_buffer,
        out_variant,
        slices_one_by_one,
        rows_of_a_buffer,
        masked,
        through_data,
    ],
)
def test_a_relu_is_found_however_it_is_written(middle: Callable[[Tensor], Tensor]):
    assert consumer(between(middle)) == "relu"


@pytest.mark.parametrize("dim", [0, 1])
def test_a_write_into_one_chunk_leaves_its_siblings_alone(dim: int):
    def middle(h: Tensor) -> Tensor:
        left, right = h.chunk(2, dim=dim)
        left.tanh_()
        return right

    x = torch.randn(4, 4)
    trace = watch(between(middle, read=6 if dim == 0 else 3), x)
    (written,) = [o for o in trace.operations if o.name == "tanh"]
    assert written.outputs[0].users == []
    assert consumer(between(middle, read=6 if dim == 0 else 3), x) == "linear"


def test_each_chunk_has_its_own_function():
    def middle(h: Tensor) -> Tensor:
        left, right = h.chunk(2, dim=1)
        return left.tanh_() * right.sigmoid_()

    role = attribute(between(middle, read=3), ROWS)["a"]
    assert {c.name for c in (role.consumer, *role.others)} == {"tanh", "sigmoid"}


def test_a_view_is_new_after_a_write_into_its_base_and_old_before():
    def middle(h: Tensor) -> Tensor:
        view = h.view(-1)
        before = view.sin()
        h.tanh_()
        return (before + view.cos()).view(3, 6)

    trace = watch(between(middle), ROWS)
    sine, cosine, tanh = (
        next(o for o in trace.operations if o.name == n) for n in ("sin", "cos", "tanh")
    )
    assert sine.inputs()[0].maker.name == "view"
    assert cosine.inputs()[0].maker.inputs() == [tanh.outputs[0]]


def test_what_is_written_over_is_not_read():
    def middle(h: Tensor) -> Tensor:
        other = h.sin()
        other.copy_(h)
        return other

    trace = watch(between(middle), ROWS)
    (sine,) = [o for o in trace.operations if o.name == "sin"]
    assert sine.outputs[0].users == []
    assert not watch(between(Tensor.zero_), ROWS).operations[3].outputs[0].moving


def test_a_buffer_filled_in_a_loop_takes_operations_in_proportion():
    def fill(steps: int) -> int:
        def forward(s: nn.Module, x: Tensor) -> Tensor:
            made = torch.zeros(3, steps)
            for step in range(steps):
                made[:, step] = s.a(x)[:, 0]
            return made

        return len(watch(Written(forward, a=nn.Linear(4, 2)), ROWS).operations)

    assert fill(40) - fill(20) == 2 * (fill(20) - fill(10))


def test_a_residual_stream_that_is_added_to_in_place():
    def forward(s: nn.Module, x: Tensor) -> Tensor:
        stream = s.stem(x)
        for layer in (s.a, s.b):
            stream += torch.relu(layer(stream))
        return s.head(stream)

    layers = {"a": nn.Linear(6, 6), "b": nn.Linear(6, 6), "head": nn.Linear(6, 2)}
    found = attribute(Written(forward, stem=nn.Linear(4, 6), **layers), ROWS)
    assert [b.layers for b in found.branches] == [("a",), ("b",)]
    assert (found.depth, found.plain_depth) == (4, 2)


# ---- recurrent modules --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}])
def test_a_recurrent_module_is_one_operation(kind: type[nn.RNNBase], options: dict[str, Any]):
    model = Written(lambda s, x: s.r(x)[0], r=kind(4, 6, batch_first=True, **options))
    trace = watch(model, STEPS)
    assert names(trace) == ["input", kind.__name__.lower()]
    assert len(trace.operations[1].inputs()) == 1 + len(list(model.parameters()))


def test_a_recurrent_module_takes_keywords():
    model = Written(lambda s, x: s.h(s.r(input=x)[0]), r=nn.GRU(4, 6), h=nn.Linear(6, 2))
    found = attribute(model, STEPS)
    assert [(r.name, r.depth) for r in found.layers] == [("r", 0), ("h", 1)]


@pytest.mark.parametrize("kind", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_a_cell_is_one_operation_each_call(kind: type[nn.RNNCellBase]):
    def forward(s: nn.Module, x: Tensor) -> Tensor:
        hidden = None
        for step in x.unbind(1):
            hidden = s.c(step, hidden)
        return hidden[0] if isinstance(hidden, tuple) else hidden

    found = attribute(Written(forward, c=kind(4, 6)), STEPS)
    assert names(found.trace, "recurrent") == [kind.__name__.lower()] * 5
    (role,) = found.layers
    assert (role.kind, role.uses, role.consumer.name) == ("recurrent", 5, "recurrent")


def test_packed_sequences_are_followed():
    def forward(s: nn.Module, x: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(x, lengths, batch_first=True)
        made, _ = pad_packed_sequence(s.r(packed)[0], batch_first=True)
        return s.h(torch.tanh(s.g(made)))

    members = {"r": nn.LSTM(4, 6, batch_first=True), "g": nn.Linear(6, 5), "h": nn.Linear(5, 2)}
    found = attribute(Written(forward, **members), (STEPS, torch.tensor([5, 3, 2])))
    roles = [(r.name, r.consumer.name, r.depth) for r in found.layers]
    assert roles == [("r", "linear", 0), ("g", "tanh", 1), ("h", "linear", 2)]


def test_a_packed_sequence_is_one_input():
    packed = pack_padded_sequence(STEPS, torch.tensor([5, 3, 2]), batch_first=True)
    assert names(watch(nn.LSTM(4, 6), packed), "recurrent") == ["lstm"]


# ---- modules and calls --------------------------------------------------------------------------


def test_a_shared_module_is_called_twice_and_named_once():
    layer = nn.Linear(4, 4)
    trace = watch(nn.Sequential(OrderedDict(first=layer, act=nn.ReLU(), again=layer)), ROWS)
    assert [trace.names[c.module] for c in trace.calls] == ["first", "act", "first", ""]
    assert attribute(nn.Sequential(layer, layer), ROWS)["0"].uses == 2


def test_calls_know_what_they_read_made_and_ran():
    model = Written(
        lambda s, x: s.b(s.a(x), scale=x.mean()),
        a=nn.Linear(4, 4),
        b=Written(lambda s, x, scale: x * scale),
    )
    trace = watch(model, ROWS)
    first, second, whole = trace.calls
    assert (first.module, second.module, whole.module) == (model.a, model.b, model)
    assert second.inputs[0] is first.outputs[0]
    assert len(second.inputs) == 2  # the keyword too
    assert [o.name for o in trace.operations[second.start : second.stop]] == ["mul"]
    assert whole.outputs == second.outputs == trace.outputs


def test_a_module_that_raises_and_is_caught_is_left():
    def forward(s: nn.Module, x: Tensor) -> Tensor:
        try:
            return s.bad(x)
        except RuntimeError:
            return s.good(x)

    trace = watch(Written(forward, bad=nn.Linear(9, 2), good=nn.Linear(4, 2)), ROWS)
    assert trace.operations[-1].module is not None
    assert trace.names[trace.operations[-1].module] == "good"


@dataclass
class Answer:
    logits: Tensor
    hidden: list[Tensor]
    count: int = 1


class Pair(NamedTuple):
    first: Tensor
    second: Tensor


class OwnDict(dict):  # type: ignore[type-arg]
    """Of a class that torch does not know as a container."""


@pytest.mark.parametrize(
    "build",
    [
        lambda y: {"logits": y, "more": {"hidden": [y + 1], "name": "x"}},
        lambda y: (y, (y + 1, None)),
        lambda y: Pair(y, y + 1),
        lambda y: Answer(y, [y + 1]),
        lambda y: {"answer": [Answer(y, [y + 1])]},
        lambda y: OwnDict(a=y, b=y + 1),
    ],
    ids=["dict", "tuple", "named tuple", "dataclass", "nested", "own dict"],
)
def test_outputs_are_found_in(build: Callable[[Tensor], Any]):
    model = Written(lambda s, x: build(s.a(x)), a=nn.Linear(4, 2))
    found = attribute(model, ROWS)
    assert [v.maker.name for v in found.trace.outputs] == ["addmm", "add"]
    assert found["a"].is_output


@pytest.mark.parametrize("inputs", [{"x": ROWS}, (ROWS,), [ROWS]], ids=["dict", "tuple", "list"])
def test_inputs_are_given_as(inputs: Any):
    model = Written(lambda s, x: s.a(x), a=nn.Linear(4, 2))
    assert names(watch(model, inputs)) == ["input", "t", "addmm"]
