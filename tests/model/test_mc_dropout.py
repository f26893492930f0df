"""mc_dropout: every number of a Prediction against a hand computation from the samples."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import stablelightning as sl
from stablelightning.errors import ModelError, RecipeError
from stablelightning.nn import MLP, Gaussian

ENGINES = ["auto", "loop", "replay", "vmap", "repeat"]


def net(outputs: int = 4, p: float = 0.5) -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Dropout(p), nn.Linear(16, outputs))


def xlogx(p: Tensor) -> Tensor:
    return torch.where(p > 0, p * p.clamp(min=1e-30).log(), 0.0)


def assert_classes_by_hand(prediction: sl.Prediction, probabilities: Tensor, dim: int = 1) -> None:
    """``probabilities``: ``(T, N, C, ...)`` with the classes on ``dim`` of a sample."""
    axis = dim + 1 if dim >= 0 else dim
    mean = probabilities.mean(0)
    expected = -xlogx(probabilities).sum(axis).mean(0)
    total = -xlogx(mean).sum(dim)
    votes = probabilities.argmax(axis)
    most = torch.stack([(votes == c).float().mean(0) for c in range(probabilities.shape[axis])])
    close = {"rtol": 1e-4, "atol": 1e-6}
    torch.testing.assert_close(prediction.mean, mean, **close)
    torch.testing.assert_close(prediction.expected_entropy, expected, **close)
    torch.testing.assert_close(prediction.predictive_entropy, total, **close)
    torch.testing.assert_close(prediction.mutual_information, (total - expected).clamp(0), **close)
    torch.testing.assert_close(prediction.variation_ratio, 1 - most.amax(0), **close)
    error = probabilities.std(0) / math.sqrt(len(probabilities))
    torch.testing.assert_close(prediction.standard_error, error, **close)
    assert prediction.samples_used == len(probabilities)


# ---- classification ----------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("samples", [1, 2, 7, 50])
def test_classification(engine: str, samples: int) -> None:
    model, x = net(), torch.randn(5, 8)
    if samples == 1:
        prediction = sl.mc_dropout(model, x, samples=1, seed=0, engine=engine, keep_samples=True)
        assert prediction.standard_error.isfinite().all()
        assert prediction.epistemic.abs().max() < 1e-6
        assert prediction.variation_ratio.max() == 0
        torch.testing.assert_close(prediction.mean, prediction.samples[0].softmax(1))
        return
    prediction = sl.mc_dropout(model, x, samples=samples, seed=0, engine=engine, keep_samples=True)
    assert prediction.task == "classification"
    assert prediction.samples.shape == (samples, 5, 4)
    assert_classes_by_hand(prediction, prediction.samples.softmax(2))
    assert prediction.epistemic.max() > 1e-3
    torch.testing.assert_close(prediction.total, prediction.aleatoric + prediction.epistemic)


@pytest.mark.parametrize("engine", ENGINES)
def test_the_samples_of_a_prediction_are_those_of_sample_predictions(engine: str) -> None:
    model, x = net(), torch.randn(5, 8)
    settings = {"samples": 20, "seed": 3, "engine": engine}
    prediction = sl.mc_dropout(model, x, keep_samples=True, **settings)
    assert torch.equal(prediction.samples, sl.sample_predictions(model, x, **settings))
    assert sl.mc_dropout(model, x, **settings).samples is None
    assert prediction.engine.startswith(engine) or engine == "auto"


@pytest.mark.parametrize("last", [nn.Softmax(1), nn.LogSoftmax(1)], ids=["softmax", "log"])
def test_logits_probabilities_and_their_logarithms_mean_the_same(last: nn.Module) -> None:
    model, x = net(), torch.randn(5, 8)
    logits = sl.mc_dropout(model, x, samples=30, seed=0, engine="loop")
    other = sl.mc_dropout(nn.Sequential(model, last), x, samples=30, seed=0, engine="loop")
    for name in ("mean", "total", "aleatoric", "epistemic", "variation_ratio", "standard_error"):
        torch.testing.assert_close(getattr(logits, name), getattr(other, name))


def test_probabilities_are_averaged_not_logits() -> None:
    """Samples that are sure of opposite classes: it is the model that does not know."""

    class Opposite(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            sure = 30 * (torch.rand(len(x), 1) < 0.5).float() - 15
            return torch.cat([sure, -sure], 1)

    prediction = sl.mc_dropout(Opposite(), torch.randn(40, 8), samples=400, seed=0)
    assert prediction.mean.sub(0.5).abs().max() < 0.15
    assert prediction.total.min() > 0.6
    assert prediction.aleatoric.max() < 1e-4
    assert prediction.variation_ratio.min() > 0.35


class Dense(nn.Module):
    """One prediction per pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.drop = nn.Conv2d(3, 8, 3, padding=1), nn.Dropout2d(0.5)
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"aux": x, "out": self.head(self.drop(self.body(x).relu()))}


def test_one_prediction_per_pixel() -> None:
    model, x = Dense(), torch.randn(2, 3, 5, 6)
    prediction = sl.mc_dropout(model, x, samples=20, seed=0, keep_samples=True)
    assert prediction.mean.shape == (2, 4, 5, 6)
    assert prediction.total.shape == prediction.variation_ratio.shape == (2, 5, 6)
    assert prediction.samples["out"].shape == (20, 2, 4, 5, 6)
    assert_classes_by_hand(prediction, prediction.samples["out"].softmax(2))


@pytest.mark.parametrize("class_dim", [-1, 2])
def test_one_prediction_per_token(class_dim: int) -> None:
    model, x = net(), torch.randn(2, 6, 8)
    prediction = sl.mc_dropout(model, x, samples=20, seed=0, keep_samples=True, class_dim=class_dim)
    assert prediction.mean.shape == (2, 6, 4)
    assert prediction.total.shape == (2, 6)
    assert_classes_by_hand(prediction, prediction.samples.softmax(-1), dim=class_dim)


@pytest.mark.parametrize("shape", [(5, 1), (5,)])
def test_one_score_is_no_classification(shape: tuple[int, ...]) -> None:
    model = nn.Sequential(net(1), nn.Flatten(0) if len(shape) == 1 else nn.Identity())
    x = torch.randn(5, 8)
    with pytest.raises(ModelError, match="two or more class scores"):
        sl.mc_dropout(model, x, samples=5, task="classification")


# ---- labels ------------------------------------------------------------------------------------


def test_independent_labels() -> None:
    model, x = net(), torch.randn(5, 8)
    prediction = sl.mc_dropout(
        model, x, samples=30, seed=0, task="multilabel", keep_samples=True, engine="loop"
    )
    p = prediction.samples.sigmoid()
    mean = p.mean(0)

    def entropy(p: Tensor) -> Tensor:
        return -(xlogx(p) + xlogx(1 - p))

    torch.testing.assert_close(prediction.mean, mean)
    torch.testing.assert_close(prediction.total, entropy(mean))
    torch.testing.assert_close(prediction.aleatoric, entropy(p).mean(0))
    torch.testing.assert_close(
        prediction.epistemic, (entropy(mean) - entropy(p).mean(0)).clamp(0), rtol=1e-4, atol=1e-6
    )
    yes = (p > 0.5).float().mean(0)
    torch.testing.assert_close(prediction.variation_ratio, torch.minimum(yes, 1 - yes))
    probabilities = sl.mc_dropout(
        nn.Sequential(model, nn.Sigmoid()), x, samples=30, seed=0, task="multilabel", engine="loop"
    )
    torch.testing.assert_close(probabilities.mean, prediction.mean)


# ---- regression --------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("outputs", [1, 3])
def test_regression(engine: str, outputs: int) -> None:
    model, x = net(outputs), torch.randn(5, 8)
    prediction = sl.mc_dropout(
        model, x, samples=30, seed=0, engine=engine, task="regression", keep_samples=True
    )
    samples = prediction.samples
    torch.testing.assert_close(prediction.mean, samples.mean(0))
    torch.testing.assert_close(prediction.epistemic, samples.var(0, correction=0))
    assert torch.equal(prediction.aleatoric, torch.zeros(5, outputs))
    assert torch.equal(prediction.total, prediction.epistemic)
    torch.testing.assert_close(prediction.standard_error, samples.std(0) / math.sqrt(30))
    torch.testing.assert_close(prediction.std.square(), prediction.variance)
    assert prediction.variation_ratio is None


@pytest.mark.parametrize("engine", ENGINES)
def test_law_of_total_variance_of_a_gaussian_head(engine: str) -> None:
    model, x = MLP(8, hidden=(16,), dropout=0.5, variance=True), torch.randn(5, 8)
    prediction = sl.mc_dropout(model, x, samples=40, seed=0, engine=engine, keep_samples=True)
    means, variances = prediction.samples
    assert prediction.task == "regression"
    torch.testing.assert_close(prediction.mean, means.mean(0))
    torch.testing.assert_close(prediction.aleatoric, variances.mean(0))
    torch.testing.assert_close(prediction.epistemic, means.var(0, correction=0))
    second = (variances + means.square()).mean(0)
    torch.testing.assert_close(
        prediction.total, second - means.mean(0).square(), rtol=1e-3, atol=1e-5
    )
    assert prediction.epistemic.min() > 0


def test_a_gaussian_is_no_classification() -> None:
    model = MLP(8, hidden=(16,), dropout=0.5, variance=True)
    for task in ("classification", "multilabel"):
        with pytest.raises(ModelError, match="pass task='regression'"):
            sl.mc_dropout(model, torch.randn(5, 8), samples=5, task=task)


def test_a_large_mean_does_not_drown_a_small_variance() -> None:
    class Far(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 1e4 + torch.rand(len(x))

    prediction = sl.mc_dropout(Far(), torch.randn(5, 8), samples=3000, seed=0)
    assert prediction.variance.sub(1 / 12).abs().max() < 0.01


# ---- what the output is taken to be --------------------------------------------------------------


class Makes(nn.Module):
    """Turns dropped scores ``(N, 4)`` into any output."""

    def __init__(self, make: Any, **attributes: Any) -> None:
        super().__init__()
        self.net, self.make = net(), make
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, x: Tensor) -> Any:
        return self.make(self.net(x))


@pytest.mark.parametrize(
    ("model", "task"),
    [
        (Makes(lambda y: y), "classification"),
        (Makes(lambda y: y[:, :1]), "regression"),
        (Makes(lambda y: y[:, 0]), "regression"),
        (Makes(lambda y: Gaussian(y, y.exp())), "regression"),
        (Makes(lambda y: (y, "beside")), "classification"),
        (Makes(lambda y: {"logits": y}), "classification"),
        (Makes(lambda y: {"loss": y.sum(), "out": y}), "classification"),
        (Makes(lambda y: {"probabilities": y.softmax(1), "mean": y}), "classification"),
        (Makes(lambda y: {"mean": y[:, 0], "variance": y[:, 0].exp()}), "regression"),
        (Makes(lambda y: y, task="regression"), "regression"),
        (Makes(lambda y: y, task="multilabel"), "multilabel"),
        (Makes(lambda y: y, task="translation"), "classification"),
        (Makes(lambda y: y[:, :, None, None].expand(-1, -1, 2, 2)), "classification"),
    ],
)
def test_the_task_is_the_models_own_or_what_the_output_looks_like(
    model: nn.Module, task: str
) -> None:
    prediction = sl.mc_dropout(model, torch.randn(5, 8), samples=6, seed=0)
    assert prediction.task == task
    assert prediction.mean.shape[0] == 5


@pytest.mark.parametrize("task", ["classification", "regression", "multilabel"])
def test_a_task_that_is_named_wins(task: str) -> None:
    model = Makes(lambda y: y, task="regression")
    assert sl.mc_dropout(model, torch.randn(5, 8), samples=6, task=task).task == task


@pytest.mark.parametrize("task", ["classify", "", None])
def test_an_unknown_task_is_told_the_known_ones(task: Any) -> None:
    with pytest.raises(RecipeError, match="task must be auto, classification, multilabel"):
        sl.mc_dropout(net(), torch.randn(5, 8), samples=6, task=task)


@pytest.mark.parametrize("make", [lambda y: {"features": y}, lambda y: [], lambda y: "text"])
def test_an_output_without_a_prediction_is_refused(make: Any) -> None:
    with pytest.raises(ModelError, match=r"pass call= a function|Pass call= a function"):
        sl.mc_dropout(Makes(make), torch.randn(5, 8), samples=6, engine="loop")


def test_an_object_with_logits_is_understood() -> None:
    class Output(SimpleNamespace):
        pass

    torch.utils._pytree.register_pytree_node(
        Output, lambda o: ([o.logits], None), lambda leaves, _: Output(logits=leaves[0])
    )
    try:
        prediction = sl.mc_dropout(Makes(lambda y: Output(logits=y)), torch.randn(5, 8), samples=6)
    finally:
        torch.utils._pytree._deregister_pytree_node(Output)
    assert prediction.mean.shape == (5, 4)
