"""sample_predictions: settings, refusals, structures in and out, chunks."""

from collections import UserDict
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import stablelightning as sl
from stablelightning.errors import EngineError, ModelError, NothingRandomError, RecipeError
from tests.model import modules as m

ENGINES = ["auto", "loop", "replay", "vmap", "repeat"]


def small(p: float = 0.5) -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Dropout(p), nn.Linear(16, 4))


# ---- settings ----------------------------------------------------------------------------------


@pytest.mark.parametrize("samples", [0, -1, True, 2.0, "3", None])
@pytest.mark.parametrize("verb", [sl.sample_predictions, sl.mc_dropout])
def test_samples_must_be_a_whole_number_from_one(verb: Any, samples: Any) -> None:
    with pytest.raises(RecipeError, match=r"samples must be a whole number >= 1, got"):
        verb(small(), torch.randn(3, 8), samples=samples)


@pytest.mark.parametrize("chunk_size", [0, -4, False, 1.5])
def test_chunk_size_must_be_a_whole_number_from_one(chunk_size: Any) -> None:
    with pytest.raises(RecipeError, match=r"chunk_size must be a whole number >= 1, got"):
        sl.sample_predictions(small(), torch.randn(3, 8), samples=3, chunk_size=chunk_size)


@pytest.mark.parametrize("engine", ["replays", "", "Loop", None])
@pytest.mark.parametrize("verb", [sl.sample_predictions, sl.mc_dropout])
def test_an_unknown_engine_is_told_the_known_ones(verb: Any, engine: Any) -> None:
    with pytest.raises(RecipeError, match=r"auto.*loop.*replay.*vmap.*repeat") as error:
        verb(small(), torch.randn(3, 8), samples=3, engine=engine)
    assert repr(engine) in str(error.value) or str(engine) in str(error.value)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("samples", [1, 2, 7, 65, 130])
def test_any_number_of_samples(engine: str, samples: int) -> None:
    found = sl.sample_predictions(small(), torch.randn(3, 8), samples=samples, engine=engine)
    assert found.shape == (samples, 3, 4)
    assert len(found.flatten(1).unique(dim=0)) == samples


@pytest.mark.parametrize("model", [lambda x: x, nn.Linear, None, "resnet18"])
@pytest.mark.parametrize("verb", [sl.sample_predictions, sl.mc_dropout])
def test_a_model_must_be_a_module(verb: Any, model: Any) -> None:
    with pytest.raises(ModelError, match="Module"):
        verb(model, torch.randn(3, 8), samples=3)


# ---- nothing random ----------------------------------------------------------------------------


class Asks(nn.Module):
    """Reads its flag, and draws nothing."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if self.training else x


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    "model",
    [
        nn.Linear(8, 4),
        small(p=0.0),
        nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8)),
        nn.Sequential(nn.Linear(8, 8), Asks()),
        m.Functional(p=0.0),
    ],
    ids=["linear", "rate 0", "norm", "asks", "functional rate 0"],
)
def test_a_model_with_nothing_random_is_told_the_cure(model: nn.Module, engine: str) -> None:
    flags = [module.training for module in model.modules()]
    for verb in (sl.sample_predictions, sl.mc_dropout):
        with pytest.raises(NothingRandomError) as error:
            verb(model, torch.randn(3, 8), samples=5, engine=engine)
        message = str(error.value)
        assert "sl.add_dropout(model" in message
        assert "Dropout" in message
        assert "drew no random number" in message
        assert "\n" not in message
    assert flags == [module.training for module in model.modules()]


@pytest.mark.parametrize("engine", ["auto", "loop", "replay"])
def test_rrelu_alone_is_nothing_random(engine: str) -> None:
    with pytest.raises(NothingRandomError):
        sl.sample_predictions(nn.RReLU(), torch.randn(3, 8), samples=5, engine=engine)


def test_the_cure_works() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    sl.add_dropout(model, p=0.1)
    samples = sl.sample_predictions(model, torch.randn(3, 8), samples=5)
    assert samples.std(0).max() > 0


@pytest.mark.parametrize("kind", [m.Recurrent(nn.LSTM), m.Recurrent(nn.GRU)])
def test_vmap_refuses_dropout_inside_a_fused_kernel(kind: nn.Module) -> None:
    with pytest.raises(EngineError, match=r"vmap must be able to batch Recurrent, and cannot"):
        sl.sample_predictions(kind, torch.randn(3, 5, 4), samples=5, engine="vmap")


def test_repeat_refuses_rows_that_influence_each_other() -> None:
    with pytest.raises(EngineError, match=r"SubtractsMean.*use engine='auto'"):
        sl.sample_predictions(m.SubtractsMean(), torch.randn(3, 8), samples=5, engine="repeat")


# ---- inputs ------------------------------------------------------------------------------------


class Sum(nn.Module):
    """Takes any arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)

    def forward(self, a: Tensor, b: Tensor | float = 0.0, *, c: Tensor | None = None) -> Tensor:
        return self.drop(a + b if c is None else a + b + c)


@pytest.mark.parametrize("engine", ENGINES)
def test_inputs_are_splatted_by_their_kind(engine: str) -> None:
    x, model = torch.rand(3, 40) + 1, Sum()

    def top(inputs: Any) -> Tensor:
        return sl.sample_predictions(model, inputs, samples=30, engine=engine).amax(0) / 2

    torch.testing.assert_close(top(x), x)
    torch.testing.assert_close(top((x, x)), 2 * x)
    torch.testing.assert_close(top([x, 3.0]), x + 3)
    torch.testing.assert_close(top({"a": x, "c": x, "b": 1.0}), 2 * x + 1)
    torch.testing.assert_close(top(UserDict(a=x, b=2.0)), x + 2)


class Tokens(nn.Module):
    """Whole numbers in."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.drop = nn.Embedding(10, 4), nn.Dropout(0.5)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.drop(self.embed(tokens)).sum(1)


@pytest.mark.parametrize("engine", ENGINES)
def test_whole_numbers_as_inputs(engine: str) -> None:
    tokens = torch.randint(10, (3, 6))
    assert sl.sample_predictions(Tokens(), tokens, samples=9, engine=engine).shape == (9, 3, 4)


class Generator(nn.Module):
    """Needs no input at all."""

    def __init__(self) -> None:
        super().__init__()
        self.start, self.drop = nn.Parameter(torch.ones(5, 3)), nn.Dropout(0.5)

    def forward(self) -> Tensor:
        return self.drop(self.start)


@pytest.mark.parametrize("engine", ["auto", "loop", "replay", "vmap"])
def test_no_inputs(engine: str) -> None:
    assert sl.sample_predictions(Generator(), (), samples=9, engine=engine).shape == (9, 5, 3)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_dtype_of_the_model_is_kept(engine: str, dtype: torch.dtype) -> None:
    model, x = small().to(dtype), torch.randn(3, 8, dtype=dtype)
    assert sl.sample_predictions(model, x, samples=9, engine=engine).dtype == dtype


# ---- outputs -----------------------------------------------------------------------------------


class Point(NamedTuple):
    x: Tensor
    y: Any


class Returns(nn.Module):
    """Returns what a function makes of a random tensor."""

    def __init__(self, make: Any) -> None:
        super().__init__()
        self.drop, self.make = nn.Dropout(0.5), make

    def forward(self, x: Tensor) -> Any:
        return self.make(self.drop(x), x)


@pytest.mark.parametrize("engine", ["auto", "loop", "replay", "vmap"])
def test_any_structure_out(engine: str) -> None:
    model = Returns(lambda y, x: {"a": [y, (Point(y.sum(), "name"), None)], "plain": x, "n": 3})
    x = torch.ones(3, 8)
    found = sl.sample_predictions(model, x, samples=9, engine=engine)
    assert list(found) == ["a", "plain", "n"]
    y, (point, nothing) = found["a"]
    assert y.shape == (9, 3, 8)
    assert isinstance(point, Point)
    torch.testing.assert_close(point.x, y.sum((1, 2)))
    assert point.y == "name"
    assert nothing is None
    assert torch.equal(found["plain"], x.expand(9, 3, 8))
    assert found["n"].tolist() == [3] * 9
    found["plain"][0] += 1  # memory of its own
    assert found["plain"][1].max() == x.max() == 1


@pytest.mark.parametrize("engine", ["auto", "loop", "replay"])
def test_numbers_of_python_are_stacked(engine: str) -> None:
    model = Returns(lambda y, x: (y, float(y.sum())))
    samples, numbers = sl.sample_predictions(model, torch.ones(3, 8), samples=9, engine=engine)
    torch.testing.assert_close(numbers.float(), samples.sum((1, 2)))


@pytest.mark.parametrize("engine", ["auto", "loop", "replay"])
def test_outputs_that_differ_from_pass_to_pass_are_refused(engine: str) -> None:
    x = torch.randn(3, 8)
    shapes = Returns(lambda y, x: y[y > 0])
    with pytest.raises(ModelError, match="every sample must have the same output shape"):
        sl.sample_predictions(shapes, x, samples=9, seed=0, engine=engine)
    keys = Returns(lambda y, x: {str(float(y.sum())): y})
    with pytest.raises(ModelError, match="every sample must have the same output structure"):
        sl.sample_predictions(keys, x, samples=9, seed=0, engine=engine)
    words = Returns(lambda y, x: (y, str(float(y.sum()))))
    with pytest.raises(ModelError, match="not a tensor must be the same in every sample"):
        sl.sample_predictions(words, x, samples=9, seed=0, engine=engine)


# ---- another door than forward -----------------------------------------------------------------


class Predicts(nn.Module):
    """A method of its own beside forward, with dropout that follows the flag."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        raise AssertionError("another door was asked for")

    def predict(self, x: Tensor, scale: float = 1.0) -> Tensor:
        return F.dropout(self.body(x), 0.5, self.training) * scale


@pytest.mark.parametrize("engine", ENGINES)
def test_a_bound_method_is_sampled(engine: str) -> None:
    model, x = Predicts(), torch.randn(3, 8)
    samples = sl.sample_predictions(model, (x, 4.0), samples=30, engine=engine, call=model.predict)
    torch.testing.assert_close(samples.abs().amax(0), 8 * model.body(x).abs())


@pytest.mark.parametrize("engine", ENGINES)
def test_calls_of_one_model_are_told_apart(engine: str) -> None:
    model, x = small(), torch.randn(3, 8)
    for scale in (1.0, 100.0):
        samples = sl.sample_predictions(
            model, x, samples=9, seed=0, engine=engine, call=lambda x, s=scale: model(x) * s
        )
        if scale == 1.0:
            first = samples
    torch.testing.assert_close(samples, first * 100)


# ---- chunks ------------------------------------------------------------------------------------


class LargestTensor(TorchDispatchMode):
    """The most bytes that any operation's result has."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        for leaf in output if isinstance(output, list | tuple) else (output,):
            if isinstance(leaf, Tensor):
                self.bytes = max(self.bytes, leaf.nbytes)
        return output


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("chunk_size", [1, 2, 3, 5])
def test_no_more_samples_are_computed_at_once_than_allowed(engine: str, chunk_size: int) -> None:
    """Also not while planning: 30 samples of this layer are 30 times as large as one."""
    model = nn.Sequential(nn.Linear(8, 64), nn.Dropout(0.5), nn.Linear(64, 1))
    with LargestTensor() as largest:
        samples = sl.sample_predictions(
            model, torch.randn(4, 8), samples=30, engine=engine, chunk_size=chunk_size
        )
    assert samples.shape == (30, 4, 1)
    one = 4 * 64 * 4
    trials = 2  # the check of rows joins two batches
    assert largest.bytes <= one * max(chunk_size, trials)


@pytest.mark.parametrize("engine", ["vmap", "repeat", "auto"])
@pytest.mark.parametrize(("samples", "chunk_size"), [(7, 3), (10, 4), (5, 8), (17, 16), (9, 9)])
def test_the_last_chunk_may_be_smaller(engine: str, samples: int, chunk_size: int) -> None:
    found = sl.sample_predictions(
        small(), torch.randn(3, 8), samples=samples, engine=engine, chunk_size=chunk_size
    )
    assert found.shape == (samples, 3, 4)
    assert len(found.flatten(1).unique(dim=0)) == samples


@pytest.mark.parametrize("engine", ["vmap", "repeat"])
def test_a_larger_chunk_makes_fewer_passes(engine: str) -> None:
    calls: list[int] = []
    model = small()
    model[2].register_forward_hook(lambda module, args, output: calls.append(len(args[0])))

    def passes(chunk_size: int) -> int:
        calls.clear()
        sl.sample_predictions(
            model, torch.randn(3, 8), samples=24, engine=engine, chunk_size=chunk_size
        )
        return len(calls)

    passes(2), passes(12)  # the first call also checks
    assert (passes(2), passes(12)) == (12, 2)
