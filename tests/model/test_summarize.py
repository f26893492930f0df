"""Streaming samples into a Prediction: chunks make no difference, whatever their sizes."""

from collections import OrderedDict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stablelightning.errors import ModelError
from stablelightning.model.summarize import Summary, select_output
from stablelightning.nn import Gaussian

Y, Z = torch.randn(3, 2), torch.rand(3, 2)


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        (Y, Y),
        (Gaussian(Y, Z), Gaussian(Y, Z)),
        ((Y, Z), Y),
        ([Gaussian(Y, Z), "beside"], Gaussian(Y, Z)),
        ({"logits": Y, "mean": Z}, Y),
        (OrderedDict(aux=Z, out=Y), Y),
        ({"mean": Y, "variance": Z}, Gaussian(Y, Z)),
        ({"mean": Y, "variance": 3.0}, Y),
        (SimpleNamespace(logits=Y, loss=None), Y),
        (({"probabilities": Y},), Y),
    ],
)
def test_the_prediction_is_found_in_what_a_model_returns(output: Any, expected: Any) -> None:
    found = select_output(output)
    assert type(found) is type(expected)
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("output", [{}, {"features": Y}, (), None, 3, "text", ({"loss": Y},)])
def test_where_there_is_none_the_known_keys_are_named(output: Any) -> None:
    with pytest.raises(ModelError, match="logits, out, probabilities, mean"):
        select_output(output)


def summarised(task: Any, samples: Any, sizes: list[int], class_dim: int = 1) -> Any:
    summary, start = Summary(task, class_dim=class_dim), 0
    for size in sizes:
        end = start + size
        chunk = (
            Gaussian(samples.mean[start:end], samples.variance[start:end])
            if isinstance(samples, Gaussian)
            else samples[start:end]
        )
        summary.update_(chunk)
        start = end
    return summary.prediction(engine="loop")


@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=6), seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None)
@pytest.mark.parametrize("task", ["classification", "multilabel", "regression", "gaussian"])
def test_chunks_make_no_difference(task: str, sizes: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    samples: Any = torch.randn(sum(sizes), 4, 3, generator=generator)
    if task == "gaussian":
        task, samples = "regression", Gaussian(samples, samples.exp())
    whole = summarised(task, samples, [sum(sizes)])
    parts = summarised(task, samples, sizes)
    assert whole.samples_used == parts.samples_used == sum(sizes)
    for name in ("mean", "total", "aleatoric", "epistemic", "standard_error"):
        torch.testing.assert_close(getattr(whole, name), getattr(parts, name), rtol=1e-4, atol=1e-5)
        assert (getattr(whole, name) >= 0).all() or name == "mean"


@given(seed=st.integers(0, 999), scale=st.floats(0.01, 50), classes=st.integers(2, 5))
@settings(max_examples=25, deadline=None)
def test_uncertainties_stay_in_their_ranges(seed: int, scale: float, classes: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    samples = torch.randn(12, 6, classes, generator=generator) * scale
    found = summarised("classification", samples, [12])
    highest = torch.tensor(float(classes)).log() + 1e-5
    assert (found.total <= highest).all()
    assert (found.aleatoric <= found.total + 1e-5).all()
    assert ((found.variation_ratio >= 0) & (found.variation_ratio <= 1 - 1 / classes)).all()
    torch.testing.assert_close(found.mean.sum(1), torch.ones(6))


def test_classes_may_be_anywhere() -> None:
    samples = torch.randn(7, 2, 3, 5)
    first = summarised("classification", samples, [7], class_dim=1)
    for dim in (2, -1):
        last = summarised("classification", samples.movedim(2, 3), [7], class_dim=dim)
        torch.testing.assert_close(last.mean.movedim(-1, 1), first.mean)
        torch.testing.assert_close(last.total, first.total)
        torch.testing.assert_close(last.variation_ratio, first.variation_ratio)


@pytest.mark.parametrize("shape", [(7, 5), (7, 5, 1)])
def test_classes_need_two_scores(shape: tuple[int, ...]) -> None:
    with pytest.raises(ModelError, match="two or more class scores"):
        summarised("classification", torch.randn(shape), [7])


def test_one_kind_of_scores_throughout_a_stream() -> None:
    """Labels: a chunk whose logits all lie in [0, 1] by chance is a chunk of logits still."""
    logits: Tensor = torch.tensor([[[-3.0, 2.0]], [[0.2, 0.4]]])
    found = summarised("multilabel", logits, [1, 1])
    torch.testing.assert_close(found.mean, logits.sigmoid().mean(0))


def test_probabilities_of_half_precision_sum_to_one_again():
    summary = Summary("classification")
    summary.update_(torch.randn(4, 50, 30).softmax(2).bfloat16())
    mean = summary.prediction(engine="loop").mean
    assert mean.dtype == torch.float32
    torch.testing.assert_close(mean.sum(1), torch.ones(50))
