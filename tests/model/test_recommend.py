"""Every rule of the recommendation, with its reason, and what contradicting targets are told."""

import numpy as np
import pytest
import torch
from torch import nn

import stablelightning as sl
from stablelightning.errors import DataError, ModelError, RecipeError, StableLightningWarning
from stablelightning.model.activation_names import activation_choice
from stablelightning.nn import MLP

recommend = sl.recommend_activation


def plain(depth, act=nn.ReLU):
    layers = [layer for _ in range(depth - 1) for layer in (nn.Linear(8, 8), act())]
    return nn.Sequential(*layers, nn.Linear(8, 3))


HIDDEN = [
    ({"recurrent": True, "latency": True}, "tanh", "bounded state"),
    ({"latency": True, "depth": 40}, "relu", "latency comes first"),
    ({"latency": True, "dead_units": 0.3}, "leaky_relu(0.1)", "revives"),
    ({"dead_units": 0.3, "depth": 40}, "leaky_relu(0.1)", "30% of the units are dead"),
    ({"activation": "sigmoid", "depth": 6}, "scaled_sigmoid", "slope 1 through the origin"),
    ({"activation": "sigmoid", "depth": 2}, "sigmoid", "leave it"),
    ({"attention": True, "depth": 24, "normalized": True}, "gelu", "transformers"),
    ({"depth": 30, "standardized": True}, "selu", "30 layers without norms"),
    ({"depth": 30, "standardized": False}, "leaky_relu(0.2)", "mean 0 and variance 1"),
    ({"depth": 30, "normalized": True}, "relu", "keep the scale"),
    ({"depth": 3}, "relu", "no signal is lost"),
    ({}, "relu", "no signal is lost"),
]


@pytest.mark.parametrize(("facts", "name", "reason"), HIDDEN, ids=lambda v: str(v)[:40])
def test_rules_for_hidden_layers(facts, name, reason):
    said = recommend(**facts)
    assert said.name == name
    assert reason in said.reason
    assert said.initialization
    assert name not in said.alternatives
    for other in (said.name, *said.alternatives):
        assert activation_choice(other).name


def test_random_slopes_need_much_data():
    little, much = (recommend(dead_units=0.2, rows=rows) for rows in (500, 50_000))
    assert "rrelu" in much.alternatives
    assert "rrelu" not in little.alternatives
    assert any("not RReLU" in note and "500 rows" in note for note in little.notes)


def test_selu_says_what_it_stands_on():
    said = recommend(depth=30)
    assert any("standardise the inputs" in note for note in said.notes)
    assert any("AlphaDropout" in note for note in said.notes)
    assert "LeCun" in str(said)


@pytest.mark.parametrize(
    ("model", "name"),
    [
        (plain(30), "selu"),
        (plain(3), "relu"),
        (plain(6, nn.Sigmoid), "scaled_sigmoid"),
        (nn.Sequential(*plain(30), nn.BatchNorm1d(3)), "relu"),
        (nn.TransformerEncoderLayer(8, 2), "gelu"),
        (nn.LSTM(3, 3), "tanh"),
        (nn.ModuleList([nn.GRU(3, 3), nn.Linear(3, 2)]), "tanh"),
    ],
    ids=["deep", "shallow", "sigmoids", "norm", "transformer", "lstm", "gru"],
)
def test_the_model_tells_what_is_not_given(model, name):
    assert recommend(model).name == name


def test_facts_beat_the_model():
    assert recommend(plain(30), latency=True).name == "relu"
    assert recommend(plain(30), depth=2).name == "relu"


# ---- the output ---------------------------------------------------------------------------------


MULTI_HOT = torch.tensor([[1, 0, 1], [0, 1, 0], [0, 0, 0]])
OUTPUT = [
    (torch.tensor([0, 2, 1, 1]), None, "softmax", "0 to 2"),
    (np.array([0.0, 2.0, 1.0]), "classification", "softmax", "0 to 2"),
    (torch.eye(3).repeat(5, 1), None, "softmax", "exactly one label"),
    (torch.tensor([[0.2, 0.8], [0.5, 0.5]]), None, "softmax", "add up to 1"),
    ([0, 1, 1, 0], None, "sigmoid", "yes or no"),
    ([0, 1, 1, 0], "classification", "softmax", "0 to 1"),
    (MULTI_HOT, None, "sigmoid", "33% of the rows"),
    (MULTI_HOT.float(), "multilabel", "sigmoid", "independent"),
    (torch.linspace(-1, 1, 9), None, "tanh", "[-1, 1]"),
    (torch.linspace(-0.1, 0.1, 9), None, "linear", "far inside"),
    (torch.linspace(0, 0.9, 9), None, "sigmoid", "shares"),
    (torch.linspace(25, 346, 9), "regression", "linear", "bounds nothing"),
    (torch.randn(50) * 5, None, "linear", "both sides of zero"),
    (torch.randn(50, 4, 3) * 5, "regression", "linear", "both sides of zero"),
    (None, "classification", "softmax", "no targets were given"),
    (None, "multilabel", "sigmoid", "no targets were given"),
    (None, "regression", "linear", "no targets were given"),
]


@pytest.mark.parametrize(("targets", "task", "name", "reason"), OUTPUT)
def test_rules_for_the_output(targets, task, name, reason):
    said = recommend(position="output", targets=targets, task=task)
    assert (said.name, said.position) == (name, "output")
    assert reason in said.reason


def test_targets_at_the_ends_and_logits_are_noted():
    at_the_end = recommend(position="output", targets=[-1.0, 0.2, 1.0])
    assert any("in the limit only" in note for note in at_the_end.notes)
    assert not recommend(position="output", targets=[-0.9, 0.2, 0.9]).notes
    assert any("logits" in note for note in recommend(position="output", targets=[0, 1, 2]).notes)


CONTRADICTIONS = [
    (MULTI_HOT, {"task": "classification"}, "classes must be exclusive"),
    (torch.randn(9), {"task": "classification"}, "needs class indices"),
    ([-1, 0, 1], {"task": "classification"}, "needs class indices"),
    ([0, 1, 2], {"task": "multilabel"}, "must be 0 or 1 each"),
    (MULTI_HOT, {"activation": "softmax"}, "makes classes exclusive"),
    ([-2.0, 0.3], {"activation": "tanh"}, r"in \[-1, 1\]"),
    ([-2.0, 0.3], {"activation": "relu"}, r"in \[0, inf\]"),
    ([0.0, float("nan")], {}, "must be finite"),
    ([], {}, "must hold real numbers"),
    (["a", "b"], {}, "must be numbers"),
    (None, {}, "neither targets nor a task"),
]


@pytest.mark.parametrize(("targets", "facts", "told"), CONTRADICTIONS)
def test_contradictions_are_errors(targets, facts, told):
    with pytest.raises(DataError, match=told) as error:
        recommend(position="output", targets=targets, **facts)
    assert "\n" not in str(error.value)


def test_a_head_too_narrow_for_the_classes():
    with pytest.raises(DataError, match="it has 3 for indices up to 4; give it 5"):
        recommend(MLP(4, 3), position="output", targets=torch.arange(5))
    assert recommend(MLP(4, 5), position="output", targets=torch.arange(5)).name == "softmax"


@pytest.mark.parametrize(
    ("targets", "facts", "told"),
    [
        (torch.eye(3).repeat(5, 1), {"task": "multilabel"}, "look exclusive"),
        (torch.arange(3).repeat(20), {"task": "regression"}, "if they name classes"),
        (torch.eye(3).repeat(5, 1), {"activation": "sigmoid"}, "lets several be true"),
        ([-0.1, 0.1], {"activation": "tanh"}, "asks for no bound"),
    ],
)
def test_doubts_are_warnings(targets, facts, told):
    with pytest.warns(StableLightningWarning, match=told):
        recommend(position="output", targets=targets, **facts)


# ---- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"position": "middle"}, "position must be"),
        ({"task": "ranking"}, "task must be one of"),
        ({"dead_units": 30}, "share in"),
        ({"depth": 0}, "depth must be"),
        ({"rows": 1.5}, "rows must be"),
        ({"width": 3}, "got width"),
        ({"activation": "seluu"}, "did you mean"),
    ],
)
def test_settings_out_of_range(arguments, told):
    with pytest.raises(RecipeError, match=told):
        recommend(**arguments)


def test_targets_of_hidden_units_and_things_that_are_no_model():
    with pytest.raises(DataError, match="belong to the output"):
        recommend(targets=[0, 1])
    with pytest.raises(ModelError, match=r"must be a torch\.nn\.Module"):
        recommend("resnet18")


def test_it_is_plain():
    said = recommend(depth=30).to_dict()
    assert said["name"] == "selu"
    assert isinstance(said["alternatives"], dict)
