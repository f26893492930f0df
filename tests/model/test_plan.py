"""Plans: what auto chooses, when it chooses anew, and that it forgets with the model."""

import copy
import gc
import pickle

import pytest
import torch
import torchvision
from torch import nn

import stablelightning as sl
from stablelightning.model import plan as plans
from stablelightning.model.auto import study
from stablelightning.model.plan import Plan, chunk_for, largest_for
from tests.model import modules as m

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize("device", [CPU, CUDA, torch.device("meta")])
def test_chunks_shrink_as_samples_grow(device: torch.device) -> None:
    chunks = [chunk_for(size, device) for size in (0, 1e3, 1e5, 1e6, 1e7, 1e8, 1e9, 1e11)]
    assert chunks == sorted(chunks, reverse=True)
    assert chunks[0] == 64
    assert chunks[-1] == 0
    for size, chunk in zip((1e5, 1e6, 1e7, 1e8), chunks[2:], strict=False):
        assert chunk <= 1 or size * chunk <= largest_for(chunk, device)


def test_a_plan_can_be_limited_and_never_widened() -> None:
    plan = Plan("vmap", 16, "because")
    assert plan.limited(None) is plan
    assert plan.limited(99).chunk == 16
    assert plan.limited(4) == Plan("vmap", 4, "because")
    assert plan.describe() == "vmap (because)"
    assert Plan("repeat", 2).describe() == "repeat"


def engine(model: nn.Module, x: torch.Tensor, samples: int = 20) -> str:
    prediction = sl.mc_dropout(model, x, samples=samples, seed=0, task="regression")
    return prediction.engine.partition(" ")[0]


def test_what_auto_chooses() -> None:
    """A small model repeats its rows; a large prefix is paid once; large tensors come singly."""
    x = torch.randn(3, 8)
    assert engine(m.OneDropout(), x) == "repeat"
    assert engine(m.SubtractsMean(), x) == "vmap"
    assert engine(m.OneDropout(), x, samples=1) == "replay"
    resnet = torchvision.models.resnet18(num_classes=5)
    resnet.fc = nn.Sequential(nn.Dropout(0.2), resnet.fc)
    assert engine(resnet, torch.randn(2, 3, 32, 32)) == "vmap"
    large = nn.Sequential(nn.Dropout(0.5), nn.Flatten(), nn.Linear(1 << 22, 1))
    assert engine(large, torch.randn(4, 1 << 22), samples=3) == "replay"


def test_auto_is_studied_once_and_again_when_something_changes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    studies = 0

    def counted(*args, **kwargs):
        nonlocal studies
        studies += 1
        return study(*args, **kwargs)

    monkeypatch.setattr("stablelightning.model.sample.study", counted)
    model, x = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), nn.Linear(8, 2)), torch.randn(3, 8)

    def new_studies(**settings) -> int:
        before = studies
        sl.sample_predictions(model, settings.pop("x", x), **{"samples": 10, **settings})
        return studies - before

    assert new_studies() == 1
    assert new_studies() == new_studies(seed=3) == new_studies(x=x + 1) == 0
    assert new_studies(x=x[:2]) == 1
    assert new_studies(x=x[:2]) == new_studies() == 0
    model[1].p = 0.25
    assert new_studies() == 1
    model[1] = nn.AlphaDropout(0.25)
    assert new_studies() == 1
    model.train(), model.eval()
    assert new_studies() == 0
    with torch.autocast("cpu", torch.bfloat16):
        assert new_studies() == 1
    model.double()
    assert new_studies(x=x.double()) == 1


def test_plans_are_forgotten_with_their_model_and_do_not_pile_up() -> None:
    gc.collect()
    before = len(plans._PLANS)
    model = m.OneDropout()
    for rows in range(1, 50):
        sl.sample_predictions(model, torch.randn(rows, 8), samples=2)
    assert len(plans._PLANS) == before + 1
    assert len(plans._PLANS[model]) <= plans._PLANS_KEPT
    del model
    gc.collect()
    assert len(plans._PLANS) == before


def test_a_model_that_was_sampled_can_still_be_pickled_and_copied() -> None:
    model, x = m.Functional(), torch.randn(3, 8)
    sl.sample_predictions(model, x, samples=5)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        a, b = (sl.sample_predictions(n, x, samples=5, seed=0) for n in (model, other))
        assert torch.equal(a, b)
