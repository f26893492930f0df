"""Which weight each operation uses, and whose it is."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from stablelightning.model.attribution import LayerRole, attribute
from stablelightning.model.trace import watch
from stablelightning.model.weights import weight_uses
from tests.model.written import ROWS, Written

IMAGES = torch.randn(2, 3, 6, 6)
TOKENS = torch.randint(10, (3, 4))


def roles(model: nn.Module, inputs: Any = ROWS) -> dict[str, LayerRole]:
    return {role.name: role for role in attribute(model, inputs).layers}


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape))


def then_relu(layer: Callable[[nn.Module, Tensor], Tensor], **members: Any) -> nn.Module:
    """A layer written by hand, a ReLU and a head."""
    return Written(lambda s, x: s.head(torch.relu(layer(s, x))), **members)


# ---- tied weights -------------------------------------------------------------------------------


def test_tied_input_and_output_embeddings_are_one_layer():
    model = Written(lambda s, x: F.linear(torch.tanh(s.e(x)), s.e.weight), e=nn.Embedding(10, 6))
    (role,) = roles(model, TOKENS).values()
    assert (role.name, role.kind, role.uses, role.consumer.name) == ("e", "embedding", 2, "tanh")


def test_an_autoencoder_that_transposes_its_weight():
    model = Written(lambda s, x: F.linear(torch.relu(s.a(x)), s.a.weight.t()), a=nn.Linear(4, 6))
    (role,) = roles(model).values()
    assert (role.uses, role.depth, role.is_input) == (2, 0, True)
    assert attribute(model, ROWS).depth == 2


def test_one_parameter_in_two_modules_is_one_layer():
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = first.weight
    (role,) = roles(nn.Sequential(first, nn.ReLU(), second)).values()
    assert (role.name, role.uses) == ("0", 2)


# ---- weights that are computed ------------------------------------------------------------------


class Symmetric(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.triu() + x.triu(1).transpose(-1, -2)


COMPUTED = {
    "weight norm": (parametrizations.weight_norm, "original1"),
    "spectral norm": (parametrizations.spectral_norm, "original"),
    "orthogonal": (parametrizations.orthogonal, "original"),
    "old weight norm": (nn.utils.weight_norm, "weight_v"),
    "old spectral norm": (nn.utils.spectral_norm, "weight_orig"),
}


@pytest.mark.parametrize(("norm", "parameter"), COMPUTED.values(), ids=COMPUTED)
@pytest.mark.parametrize("training", [True, False])
def test_normed_weights_are_one_use_of_their_layer(norm: Any, parameter: str, training: bool):
    model = nn.Sequential(norm(nn.Linear(4, 6)), nn.ReLU(), norm(nn.Linear(6, 6)), nn.Tanh())
    found = roles(model.train(training))
    assert [(r.name, r.consumer.name, r.uses) for r in found.values()] == [
        ("0", "relu", 1),
        ("2", "tanh", 1),
    ]
    assert any(name.endswith(parameter) for name in found["0"].parameters)


def test_a_parametrization_of_ones_own():
    layer = nn.Linear(4, 4)
    parametrize.register_parametrization(layer, "weight", Symmetric())
    found = roles(nn.Sequential(layer, nn.SiLU()))
    assert found["0"].parameters == ("0.parametrizations.weight.original",)
    assert found["0"].module is layer


def test_a_sum_with_a_low_rank_product_is_one_layer():
    model = then_relu(
        lambda s, x: F.linear(x, s.a.weight + s.up @ s.down),
        a=nn.Linear(4, 6),
        up=parameter(6, 2),
        down=parameter(2, 4),
        head=nn.Linear(6, 2),
    )
    found = roles(model)
    assert [(r.name, r.depth) for r in found.values()] == [("a", 0), ("head", 1)]
    assert set(found["a"].parameters) == {"a.weight", "up", "down"}
    assert found["a"].consumer.name == "relu"


def test_low_rank_layers_beside_a_layer():
    model = then_relu(
        lambda s, x: s.a(x) + s.up(s.down(x)),
        a=nn.Linear(4, 6),
        up=nn.Linear(2, 6, bias=False),
        down=nn.Linear(4, 2, bias=False),
        head=nn.Linear(6, 2),
    )
    found = roles(model)
    assert {n: r.consumer.name for n, r in found.items()} == {
        "a": "relu",
        "down": "linear",
        "up": "relu",
        "head": "linear",
    }


def test_a_weight_scaled_at_run_time_belongs_to_its_layer():
    model = then_relu(
        lambda s, x: F.linear(x, s.w * 0.5 - s.w.mean(1, keepdim=True), s.b),
        w=parameter(6, 4),
        b=parameter(6),
        head=nn.Linear(6, 2),
    )
    first, _ = roles(model).values()
    assert (first.name, first.parameters, first.uses) == ("", ("w",), 1)


# ---- weights without a module of their own ------------------------------------------------------

FUNCTIONAL: dict[str, tuple[Any, tuple[int, ...], Any, nn.Module, str]] = {
    "linear": (lambda s, x: F.linear(x, s.w), (6, 4), ROWS, nn.Linear(6, 2), "linear"),
    "matmul": (lambda s, x: x @ s.w, (4, 6), ROWS, nn.Linear(6, 2), "linear"),
    "data": (lambda s, x: F.linear(x, s.w.data), (6, 4), ROWS, nn.Linear(6, 2), "linear"),
    "einsum": (
        lambda s, x: torch.einsum("bi,oi->bo", x, s.w), (6, 4), ROWS, nn.Linear(6, 2), "linear",
    ),
    "einsum of groups": (
        lambda s, x: torch.einsum("bi,gio->bgo", x, s.w).flatten(1), (2, 4, 3), ROWS,
        nn.Linear(6, 2), "linear",
    ),
    "conv": (lambda s, x: F.conv2d(x, s.w), (4, 3, 3, 3), IMAGES, nn.Conv2d(4, 2, 1), "conv"),
    "transposed": (
        lambda s, x: F.conv_transpose2d(x, s.w), (3, 4, 2, 2), IMAGES, nn.Conv2d(4, 2, 1),
        "transposed_conv",
    ),
    "embedding": (
        lambda s, x: F.embedding(x, s.w), (10, 6), TOKENS, nn.Linear(6, 2), "embedding",
    ),
    "bag": (lambda s, x: F.embedding_bag(x, s.w), (10, 6), TOKENS, nn.Linear(6, 2), "embedding"),
    "bilinear": (
        lambda s, x: F.bilinear(x, x, s.w), (6, 4, 4), ROWS, nn.Linear(6, 2), "linear",
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("layer", "shape", "inputs", "head", "kind"), FUNCTIONAL.values(), ids=FUNCTIONAL
)
def test_functional_weights(layer: Any, shape: Any, inputs: Any, head: nn.Module, kind: str):
    first, last = roles(then_relu(layer, w=parameter(*shape), head=head), inputs).values()
    assert (first.name, first.parameters, first.kind) == ("", ("w",), kind)
    assert (first.consumer.name, first.uses, first.is_input) == ("relu", 1, True)
    assert (last.name, last.depth) == ("head", 1)


def test_bilinear_and_bag_modules():
    model = then_relu(lambda s, x: s.b(x, x), b=nn.Bilinear(4, 4, 6), head=nn.Linear(6, 2))
    assert (roles(model)["b"].kind, roles(model)["b"].consumer.name) == ("linear", "relu")
    model = then_relu(lambda s, x: s.b(x), b=nn.EmbeddingBag(10, 6), head=nn.Linear(6, 2))
    assert roles(model, TOKENS)["b"].kind == "embedding"


def test_a_weight_that_another_layer_makes_is_a_signal():
    model = Written(
        lambda s, x: torch.bmm(torch.relu(s.make(x)).view(-1, 2, 4), x[:, :, None]).flatten(1),
        make=nn.Linear(4, 8),
    )
    assert roles(model)["make"].consumer.name == "relu"


# ---- what only meets parameters -----------------------------------------------------------------


def test_learned_queries_are_signals_and_no_weights():
    def forward(s: nn.Module, x: Tensor) -> Tensor:
        latent = s.latent.expand(len(x), -1, -1)
        scores = s.query(latent) @ s.key(x).transpose(1, 2)
        latent = latent + s.out(scores.softmax(-1) @ s.value(x))
        return s.head(latent + s.down(torch.relu(s.up(latent))))

    layers = {n: nn.Linear(4, 4) for n in ("query", "key", "value", "out", "up", "down", "head")}
    model = Written(forward, latent=parameter(3, 4), **layers)
    found = attribute(model, torch.randn(2, 5, 4))
    consumers = {r.name: r.consumer.name for r in found.layers}
    assert consumers["query"] == consumers["key"] == "attention"
    assert "" not in consumers
    assert {r.uses for r in found.layers} == {1}
    assert {r.parameters for r in found.layers} == {(f"{name}.weight",) for name in layers}
    assert [b.layers for b in found.branches][-1] == ("up", "down")


def test_learned_positions_are_added_and_no_layer_of_the_stream():
    model = Written(
        lambda s, x: s.head(torch.relu(s.a(x) + s.places(torch.arange(3)))),
        a=nn.Linear(4, 6),
        places=nn.Embedding(3, 6),
        head=nn.Linear(6, 2),
    )
    found = roles(model)
    assert {n: r.consumer.name for n, r in found.items()} == {
        "a": "relu",
        "places": "relu",
        "head": "linear",
    }


def test_every_use_is_listed_in_order():
    layer = nn.Linear(4, 4)
    model = nn.Sequential(layer, nn.ReLU(), layer)
    uses = weight_uses(model, watch(model, ROWS))
    assert [(u.name, u.operation.name) for u in uses] == [("0", "addmm"), ("0", "addmm")]
    assert uses[0].output.users[0].name == "relu"
