"""Footprint: what a forward leaves on its modules is noticed, and taken back."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stablelightning.model.footprint import Footprint


class Own(nn.Module):
    """A module with a bit of everything, and a child of torch."""

    def __init__(self) -> None:
        super().__init__()
        self.count, self.tensor, self.items = 0, torch.zeros(2), [torch.ones(1)]
        self.table: dict[str, Any] = {"a": 1}
        self.names = {"x"}
        self.register_buffer("buffer", torch.zeros(3))
        self.child = nn.Linear(2, 2)


def delete(own: Own) -> None:
    del own.tensor


def keep_gradient_free(own: Own) -> None:
    own.buffer.add_(1)


CHANGES: dict[str, Callable[[Own], Any]] = {
    "count": lambda own: setattr(own, "count", 1),
    "new attribute": lambda own: setattr(own, "cache", torch.ones(2)),
    "other tensor": lambda own: setattr(own, "tensor", torch.zeros(2)),
    "deleted": delete,
    "list grows": lambda own: own.items.append(torch.ones(1)),
    "list entry": lambda own: own.items.__setitem__(0, torch.ones(1)),
    "dict": lambda own: own.table.update(b=2),
    "dict entry": lambda own: own.table.update(a=torch.ones(1)),
    "set": lambda own: own.names.add("y"),
    "buffer is written": keep_gradient_free,
    "buffer is replaced": lambda own: setattr(own, "buffer", torch.zeros(3)),
    "module": lambda own: setattr(own, "child", nn.Linear(2, 2)),
    "hook": lambda own: own.register_forward_hook(lambda *_: None),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
@pytest.mark.parametrize("nested", [False, True])
def test_a_change_is_noticed_and_taken_back(change: Callable[[Own], Any], nested: bool) -> None:
    own = Own()
    model = nn.Sequential(own, nn.ReLU()) if nested else own
    before = {name: value for name, value in vars(own).items()}
    containers = [*own.items], dict(own.table), set(own.names), own.child, own.buffer
    with Footprint(model) as footprint:
        assert not footprint.changed()
        change(own)
        assert footprint.changed()
    assert vars(own).keys() == before.keys()
    assert all(vars(own)[name] is value for name, value in before.items())
    assert (own.items, own.table, own.names) == containers[:3]
    assert own.child is containers[3]
    assert own.buffer is containers[4]
    assert torch.equal(own.buffer, torch.zeros(3))


def test_flags_are_somebody_elses_business() -> None:
    own = Own()
    with Footprint(own) as footprint:
        own.eval()
        assert not footprint.changed()
    assert not own.training


def test_what_happens_before_an_error_is_taken_back() -> None:
    own = Own()
    with pytest.raises(ValueError, match="on the way"), Footprint(own):  # noqa: PT012
        own.count = 5
        raise ValueError("on the way")
    assert own.count == 0


def test_buffers_that_cannot_be_compared_are_let_be() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("sparse", torch.eye(2).to_sparse())
            self.lazy = nn.LazyBatchNorm1d()

    with Footprint(Odd()) as footprint:
        assert not footprint.changed()


def test_modules_of_torch_are_not_looked_at() -> None:
    linear = nn.Linear(2, 2)
    with Footprint(linear):
        linear.note = Tensor()
    assert hasattr(linear, "note")
