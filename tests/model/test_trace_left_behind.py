"""A watched forward leaves nothing behind, and refuses what does not fit in one line."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stablelightning.errors import DataError, ModelError
from stablelightning.model.trace import watch
from tests.model.written import ROWS, Written

# ---- nothing is left behind ---------------------------------------------------------------------


class Untidy(nn.Module):
    """Counts, caches, draws, and moves the statistics of its norm."""

    def __init__(self, *, fails: bool = False) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)
        self.register_buffer("steps", torch.zeros(()))
        self.calls = 0
        self.cache: dict[str, Any] = {}
        self.seen: list[Tensor] = []
        self.fails = fails

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.steps += 1
        self.cache["x"] = x
        self.seen.append(x)
        self.new = random.random() + float(np.random.rand()) + float(torch.rand(()))
        if self.fails:
            raise ValueError("a failure of its own\nwith a second line")
        return self.norm(self.layer(x))


def state(model: nn.Module) -> dict[str, Any]:
    kept = {k: v.clone() for k, v in model.state_dict().items()}
    hooks = [
        (dict(m._forward_hooks), dict(m._forward_pre_hooks), dict(m._forward_hooks_with_kwargs),
         dict(m._forward_pre_hooks_with_kwargs), dict(m._forward_hooks_always_called))
        for m in model.modules()
    ]  # fmt: skip
    own = [sorted(set(vars(m)) - {"seen", "cache"}) for m in model.modules()]
    flags = [m.training for m in model.modules()]
    return {
        "tensors": {k: v.tolist() for k, v in kept.items()},
        "hooks": hooks,
        "own": own,
        "flags": flags,
        "requires": [(p.requires_grad, p.grad) for p in model.parameters()],
        "plain": (model.calls, dict(model.cache), list(model.seen)),
        "generators": (
            random.getstate(),
            np.random.get_state()[1].tolist(),
            torch.get_rng_state().tolist(),
        ),
        "modes": (
            torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(),
            torch.backends.mha.get_fastpath_enabled(),
            torch.is_autocast_cache_enabled(),
        ),
    }


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("fails", [False, True])
def test_a_forward_leaves_the_model_as_it_was(mode: Callable[[], Any], fails: bool):
    model = Untidy(fails=fails)
    model.norm.eval()
    with mode():
        x = torch.randn(5, 4)
        before = state(model)
        if fails:
            with pytest.raises(DataError, match="a failure of its own;"):
                watch(model, x)
        else:
            assert watch(model, x).operations[-1].module is model.norm
        assert state(model) == before


def test_the_graph_of_the_caller_is_not_touched():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    x = ROWS.clone().requires_grad_()
    loss = model(x).sum()
    trace = watch(model, x)
    assert all(value.grad_fn is None for value in (v.tensor for v in trace.outputs))
    loss.backward()
    assert model[0].weight.grad is not None
    assert x.grad is not None


def test_the_inputs_given_may_be_made_in_inference_mode():
    with torch.inference_mode():
        x = torch.randn(3, 4)
    assert watch(nn.Linear(4, 2), x).outputs[0].tensor.shape == (3, 2)


def test_draws_in_eval_are_told():
    noisy = Written(lambda s, x: s.a(x) + torch.rand(2), a=nn.Linear(4, 2))
    assert watch(noisy, ROWS).notes == ["the forward draws random numbers in eval"]
    assert watch(nn.Sequential(nn.Linear(4, 2), nn.Dropout()), ROWS).notes == []


def test_numbers_that_are_read_back_are_told():
    looping = Written(lambda s, x: s.a(x) if x.sum() > 0 else s.a(-x), a=nn.Linear(4, 2))
    (note,) = watch(looping, ROWS).notes
    assert "reads numbers back" in note


# ---- bad inputs ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "inputs", "words"),
    [
        (nn.Linear(4, 2), torch.randn(3, 5), "the example must fit the forward of Linear"),
        (nn.Linear(4, 2), {"y": ROWS}, "unexpected keyword"),
        (nn.Linear(4, 2), (ROWS, ROWS), "positional argument"),
        (nn.Linear(4, 2), "text", "the example must fit"),
        (nn.Linear(4, 2), None, "the example must fit"),
        (nn.Embedding(4, 2), torch.tensor([9]), "index out of range"),
        (nn.Linear(4, 2), ROWS.to("meta"), "must be on the model's device cpu, got meta"),
        (nn.Linear(4, 2).double(), ROWS, "the example must fit"),
    ],
)
def test_bad_inputs_are_refused_in_one_line(model: nn.Module, inputs: Any, words: str):
    with pytest.raises(DataError, match=words) as raised:
        watch(model, inputs)
    assert "\n" not in str(raised.value)
    assert watch(nn.Linear(4, 2), ROWS).outputs  # and the next one is watched


def test_a_scripted_model_is_refused():
    with pytest.raises(ModelError, match="pass the original"):
        watch(torch.jit.script(nn.Linear(4, 2)), ROWS)


def test_only_an_example_that_lies_elsewhere_as_a_whole_is_refused():
    model = Written(lambda s, x, n: s.a(x), a=nn.Linear(4, 2))
    assert watch(model, (ROWS, torch.ones(3, device="meta"))).outputs


def test_what_the_model_means_by_an_error_is_kept():
    def forward(s: nn.Module, x: Tensor) -> Tensor:
        raise ModelError("its own words")

    with pytest.raises(ModelError, match="its own words"):
        watch(Written(forward, a=nn.Linear(4, 2)), ROWS)


def test_functional_calls_outside_of_the_model():
    layer = nn.Linear(4, 2)
    trace = watch(layer, ROWS, call=lambda x: F.relu(layer(x)))
    assert trace.operations[-1].name == "relu"
    assert trace.operations[-1].module is None
