"""What a watched forward sees through: compilers, checkpoints, transforms and wrappers."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from stablelightning.model.attribution import attribute
from stablelightning.model.trace import watch
from tests.model.written import ROWS, Written, consumer


def gelu_block() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 6), nn.GELU())


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_children_run_eagerly(backend: str):
    child = torch.compile(gelu_block(), backend=backend)
    model = Written(lambda s, x: s.h(s.c(x)), c=child, h=nn.Linear(6, 2))
    found = attribute(model, ROWS)
    assert [r.name for r in found.layers] == ["c._orig_mod.0", "h"]
    assert found.layers[0].consumer.name == "gelu"


def test_a_child_compiled_in_place_runs_eagerly():
    model = nn.Sequential(gelu_block(), nn.Linear(6, 2))
    model[0].compile(backend="eager")
    assert consumer(model, layer="0.0") == "gelu"


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_children(reentrant: bool):
    model = Written(
        lambda s, x: s.h(checkpoint(s.c, x, use_reentrant=reentrant)),
        c=gelu_block(),
        h=nn.Linear(6, 2),
    )
    assert consumer(model, ROWS.clone().requires_grad_(), "c.0") == "gelu"


def test_a_scripted_child_is_followed_and_takes_no_hooks():
    model = nn.Sequential(torch.jit.script(gelu_block()), nn.Linear(6, 2))
    assert consumer(model, layer="0.0") == "gelu"


@pytest.mark.parametrize(
    "forward",
    [
        lambda s, x: s.h(torch.vmap(s.c)(x)),
        lambda s, x: s.h(torch.func.functional_call(s.c, dict(s.c.named_parameters()), (x,))),
        lambda s, x: s.h(torch.func.jvp(s.c, (x,), (x,))[0]),
        lambda s, x: s.h(torch.vmap(torch.vmap(s.c))(x[None])[0]),
    ],
    ids=["vmap", "functional_call", "jvp", "nested vmap"],
)
def test_function_transforms_inside_of_the_forward(forward: Callable[..., Tensor]):
    model = Written(forward, c=gelu_block(), h=nn.Linear(6, 2))
    found = attribute(model, ROWS)
    assert [r.name for r in found.layers] == ["c.0", "h"]
    assert found.layers[0].consumer.name == "gelu"


def test_gradients_inside_of_the_forward():
    def forward(s: nn.Module, x: Tensor) -> Tensor:
        return s.h(torch.func.grad(lambda z: s.c(z).sum())(x))

    model = Written(forward, c=gelu_block(), h=nn.Linear(4, 2))
    assert [r.name for r in attribute(model, ROWS).layers] == ["c.0", "h"]


def test_wrappers_like_data_parallel():
    found = attribute(nn.DataParallel(nn.Sequential(gelu_block(), nn.Linear(6, 2))), ROWS)
    assert [r.name for r in found.layers] == ["module.0.0", "module.1"]


def test_old_weight_norms_belong_to_their_layer():
    model = nn.Sequential(nn.utils.weight_norm(nn.Linear(4, 6)), nn.ReLU())
    trace = watch(model, ROWS)
    call = next(c for c in trace.calls if c.module is model[0])
    inside = [o.name for o in trace.operations[call.start : call.stop]]
    assert "_weight_norm_interface" in inside


def test_a_meta_model():
    found = attribute(nn.Sequential(gelu_block(), nn.Linear(6, 2)).to("meta"), ROWS.to("meta"))
    assert found["0.0"].consumer.name == "gelu"


def test_lazy_layers_get_their_shape_and_keep_their_names():
    model = nn.Sequential(nn.LazyLinear(6), nn.ReLU(), nn.LazyLinear(2))
    found = attribute(model, ROWS)
    assert [(r.name, r.parameters) for r in found.layers] == [
        ("0", ("0.weight",)),
        ("2", ("2.weight",)),
    ]
    assert found.notes == []
