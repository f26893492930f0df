"""The tape under replay: what is kept, what is only pretended, and when it must be given up."""

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

import stablelightning as sl
from stablelightning.errors import StableLightningWarning
from stablelightning.model.replay import Replay
from stablelightning.model.tape import CannotReplay, Tape
from tests.model import modules as m


@contextmanager
def replayed(model: nn.Module, x: Any) -> Iterator[Replay]:
    """A replay of ``model(x)`` in eval, with every dropout live."""
    model.eval()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.train()
    with torch.no_grad(), closing(Replay(lambda: model(x), model)) as again:
        yield again


def size_of(tensor: Tensor) -> int:
    """Bytes behind a tensor, asked for without anybody noticing."""
    with torch._C.DisableTorchFunction(), torch._C._DisableTorchDispatch():
        return tensor.untyped_storage().nbytes()


class Looks(nn.Module):
    """Notes what the tensors of a prefix look like on each pass."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.drop = nn.Linear(8, 16), nn.Linear(16, 4), nn.Dropout(0.5)
        self.sizes: list[list[int]] = []
        self.layouts: list[Any] = []

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        turned = hidden.t().exp().t()
        kept = self.second(turned)
        self.sizes.append([size_of(hidden), size_of(turned), size_of(kept)])
        self.layouts.append([(t.shape, t.stride(), t.dtype) for t in (hidden, turned, kept)])
        del hidden, turned
        return self.drop(kept)


def test_what_nobody_can_read_any_more_takes_no_memory() -> None:
    model = Looks()
    with replayed(model, torch.randn(3, 8)) as again:
        for _ in range(3):
            again()
    full = [3 * 16 * 4, 3 * 16 * 4, 3 * 4 * 4]
    assert model.sizes[0] == full
    assert model.sizes[1] == model.sizes[2] == [0, 0, full[2]]
    assert model.layouts[0] == model.layouts[1] == model.layouts[2]


def test_each_pass_is_the_plain_call() -> None:
    model, x = m.PythonLoop(), torch.randn(3, 8)
    with replayed(model, x) as again:
        for seed in range(4):
            torch.manual_seed(seed)
            expected = model(x)
            torch.manual_seed(seed)
            assert torch.equal(again(), expected)
        assert again.gave_up is None


def test_a_model_without_a_draw_is_simply_run() -> None:
    model, x = nn.Linear(8, 4), torch.randn(3, 8)
    with replayed(model, x) as again:
        for _ in range(3):
            torch.testing.assert_close(again(), model(x))


class Wrapped(Tensor):
    """A tensor that runs code of its own."""


def gives_up(model: nn.Module, x: Any) -> str:
    with replayed(model, x) as again:
        for seed in range(4):
            torch.manual_seed(seed)
            expected = model(x)
            torch.manual_seed(seed)
            assert torch.equal(again(), expected)
        return again.gave_up or ""


class Around(m.OneDropout):
    """Puts a function between its layer and its dropout."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def between(self, x: Tensor) -> Tensor:
        return self.function(x)


OUTSIDE = torch.zeros(3, 4)


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (
            lambda x: (x.as_subclass(Wrapped) * 2).as_subclass(Tensor),
            "Wrapped runs code of its own",
        ),
        (lambda x: x.to_sparse().to_dense(), "layout"),
        (lambda x: x + torch.from_numpy(x.numpy()), "Python reads or shares"),
        (lambda x: x + torch.tensor(x.tolist()), "Python reads or shares"),
        (lambda x: torch.add(x, 1, out=OUTSIDE), "lives on after the pass"),
        (lambda x: x.clone().resize_(12).view(3, 4), ""),
        (lambda x: x + torch.randint(2, (1,), generator=torch.Generator()), None),
    ],
    ids=["subclass", "sparse", "numpy", "tolist", "out", "resize", "private"],
)
def test_reasons_to_give_up(function: Callable[[Tensor], Tensor], reason: str | None) -> None:
    said = gives_up(Around(function), torch.randn(3, 8))
    if reason is not None:
        assert reason in said


def test_what_talks_to_other_processes_runs_on_every_pass(tmp_path: Path) -> None:
    def reduced(x: Tensor) -> Tensor:
        x = x.clone()
        dist.all_reduce(x)
        return x

    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/f", rank=0, world_size=1)
    try:
        assert "talks to other processes" in gives_up(Around(reduced), torch.randn(3, 8))
    finally:
        dist.destroy_process_group()


def test_text_of_a_prefix_tensor_is_right_on_every_pass() -> None:
    texts = []

    def said(x: Tensor) -> Tensor:
        texts.append(f"{x!r} {x} {x.sum()}")
        return x

    with pytest.warns(StableLightningWarning, match="fell back"):
        sl.sample_predictions(Around(said), torch.randn(3, 8), samples=4, engine="replay")
    assert len(texts) == 4
    assert len(set(texts)) == 1


def test_a_nested_structure_cannot_be_taped() -> None:
    tape = Tape(frozenset())
    operation = tape.describe(torch.ops.aten.add.Tensor, (torch.ones(1), torch.ones(1)), {})
    with pytest.raises(CannotReplay, match="nested structure"):
        tape.add(operation, (), [[torch.ones(1)]])
