from types import SimpleNamespace

import lightning as L
import pytest
import torch
from torch import Tensor

from stablelightning.callbacks.batches import inputs_and_target
from stablelightning.errors import DataError

X, Y, Z = torch.zeros(2, 3), torch.ones(2), torch.full((2,), 2.0)


class One(L.LightningModule):
    def forward(self, x: Tensor) -> Tensor:
        return x


class WithMask(L.LightningModule):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return x


class Two(L.LightningModule):
    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return left


class Named(L.LightningModule):
    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return input_ids


class Whole(L.LightningModule):
    def forward(self, batch: object) -> object:
        return batch


class AnyKeyword(L.LightningModule):
    def forward(self, **entries: Tensor) -> Tensor:
        return next(iter(entries.values()))


class Own(One):
    def inputs_and_target(self, batch: object) -> tuple[Tensor, Tensor]:
        return Z, Y


@pytest.mark.parametrize(
    ("module", "batch", "inputs", "target"),
    [
        pytest.param(One(), X, X, None, id="tensor"),
        pytest.param(One(), [X], X, None, id="one-entry"),
        pytest.param(One(), [X, Y], X, Y, id="pair"),
        pytest.param(One(), (X, Y, Z), X, Y, id="pair-and-weights"),
        pytest.param(One(), ([X, X], Y), ([X, X],), Y, id="one-input-that-is-a-list"),
        pytest.param(WithMask(), (X, Y), X, Y, id="optional-argument-gets-no-target"),
        pytest.param(Two(), (X, Z, Y), (X, Z), Y, id="two-inputs"),
        pytest.param(Two(), (X, Y), (X, Y), Y, id="reads-its-target"),
        pytest.param(L.LightningModule(), (X, Z, Y), (X, Z), Y, id="no-forward"),
        pytest.param(Whole(), (X, Y), ((X, Y),), Y, id="whole-tuple"),
        pytest.param(Whole(), {"a": X, "y": Y}, ({"a": X, "y": Y},), Y, id="whole-dict"),
        pytest.param(One(), {"image": X, "label": Y}, X, Y, id="known-keys"),
        pytest.param(One(), {"x": X, "y": Y, "id": Z}, {"x": X}, Y, id="argument-name"),
        pytest.param(
            Named(),
            {"input_ids": X, "attention_mask": Z, "labels": Y, "id": Z},
            {"input_ids": X, "attention_mask": Z},
            Y,
            id="argument-names",
        ),
        pytest.param(Two(), {"left": X, "right": Z}, {"left": X, "right": Z}, None, id="no-target"),
        pytest.param(AnyKeyword(), {"a": X, "y": Y}, {"a": X}, Y, id="any-keyword"),
        pytest.param(Own(), "whatever", Z, Y, id="own-method"),
    ],
)
def test_rule(module, batch, inputs, target):
    read_inputs, read_target = inputs_and_target(module, batch)
    assert repr(read_inputs) == repr(inputs)
    assert read_target is target


def test_an_object_with_a_target_is_itself_the_input():
    graph = SimpleNamespace(y=Y)
    assert inputs_and_target(One(), graph) == ((graph,), Y)


@pytest.mark.parametrize(
    ("module", "batch", "said"),
    [
        pytest.param(One(), "text", "got str", id="text"),
        pytest.param(One(), [], "got list", id="empty"),
        pytest.param(One(), {"a": X, "b": Y}, "the keys a, b", id="unknown-keys"),
        pytest.param(Two(), [X], None, id="one-of-two"),
        pytest.param(WithMask(), (X, Y, Z), "does not say which is the target", id="ambiguous"),
    ],
)
def test_unreadable_batch_names_the_override(module, batch, said):
    if said is None:  # one entry is handed over alone; forward itself will complain
        assert inputs_and_target(module, batch) == (X, None)
        return
    with pytest.raises(DataError, match=rf"{said}.*inputs_and_target"):
        inputs_and_target(module, batch)
