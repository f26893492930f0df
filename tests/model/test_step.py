"""The loss of a training step, by whatever rule there is."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from stablelightning.model.step import TrainingStep, split_batch
from stablelightning.nn.heads import GaussianHead


@pytest.mark.parametrize(
    ("outputs", "target", "rule"),
    [
        (3, torch.randint(3, (8,)), "cross entropy"),
        (3, torch.randn(8, 3), "mean squared error"),
        (1, torch.randn(8), "mean squared error"),
        (1, torch.randint(2, (8,)), "binary cross entropy of logits"),
        (3, torch.randint(2, (8, 3)), "binary cross entropy of logits"),
        (3, None, "a fixed random projection of the output"),
    ],
)
def test_the_default_follows_the_target(outputs, target, rule):
    inputs = torch.randn(8, 4)
    step = TrainingStep(nn.Linear(4, outputs), inputs if target is None else (inputs, target))
    assert torch.isfinite(step.run())
    assert step.rule == rule


def test_a_gaussian_head_is_a_regression():
    step = TrainingStep(GaussianHead(4, 1), (torch.randn(8, 4), torch.randn(8, 1)))
    assert step.run().requires_grad


def test_a_projection_is_the_same_each_time_and_reads_every_output():
    model, inputs = nn.Linear(4, 3), torch.randn(8, 4)
    step = TrainingStep(model, inputs)
    loss = step.run()
    assert loss.item() == step.run().item()
    (gradient,) = torch.autograd.grad(loss, [model.weight])
    assert (gradient.abs().sum(1) > 0).all()


def test_models_that_return_losses_are_taken_at_their_word():
    class Detector(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 1)

        def forward(self, x):
            return {"boxes": self.layer(x).mean(), "classes": self.layer(x).square().mean()}

    step = TrainingStep(Detector(), torch.randn(8, 4))
    assert step.run().item() == pytest.approx(sum(step.output.values()).item())


@pytest.mark.parametrize(
    ("batch", "expected"),
    [
        (("x", "y"), ("x", "y")),
        (["x", "y"], ("x", "y")),
        (("a", "b", "y"), (("a", "b"), "y")),
        (("x",), ("x", None)),
        ({"target": "y", "pixels": "x"}, ("x", "y")),
        ({"input": "x", "y": "y"}, ({"input": "x"}, "y")),
        ({"input": "x"}, ({"input": "x"}, None)),
        ("x", ("x", None)),
    ],
)
def test_how_a_batch_is_split(batch, expected):
    assert split_batch(nn.Linear(1, 1), batch) == expected


def test_the_models_own_rule_comes_first():
    class Own(nn.Linear):
        def inputs_and_target(self, batch):
            return batch["a"], batch["b"]

    assert split_batch(Own(1, 1), {"a": 1, "b": 2}) == (1, 2)


def test_tokens_are_scored_class_last():
    model = nn.Sequential(nn.Embedding(7, 8), nn.Linear(8, 7))
    tokens = torch.randint(7, (4, 5))
    loss = TrainingStep(model, (tokens, tokens)).run()
    assert loss.item() == pytest.approx(F.cross_entropy(model(tokens).mT, tokens).item())
