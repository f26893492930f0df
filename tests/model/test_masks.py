"""masks=: the same in every engine, balanced over the samples, the same for every row."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import stablelightning as sl
from stablelightning.errors import EngineError, ModelError, NothingRandomError, RecipeError
from stablelightning.nn import LockedDropout
from tests.model import modules as m
from tests.model.cases import CASES, Case, each, tensors

ENGINES = ["loop", "replay", "vmap", "repeat", "auto"]
DEALT = ["consistent", "balanced", "balanced_consistent"]


def small(p: float = 0.5) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(8, 16), nn.ReLU(), nn.Dropout(p), nn.Linear(16, 16), nn.ReLU(), nn.Dropout(p),
        nn.Linear(16, 4),
    )  # fmt: skip


def sampled(model: nn.Module, x: Any, masks: str, **settings: Any) -> Tensor:
    settings = {"samples": 12, "seed": 0} | settings
    return sl.sample_predictions(model, x, masks=masks, **settings)


# ---- one set of masks, whatever computes the samples -------------------------------------------

_SHARED = {
    "dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout",
    "in_place_dropout", "dropout_first", "wide", "functional", "attention", "attention_weights",
    "causal_attention", "transformer_encoder", "lstm", "gru", "stochastic_depth_row", "drop_path",
    "python_loop", "torchvision_mobilenet", "timm_convnext", "structured", "bfloat16", "compiled",
}  # fmt: skip


@each([case for case in CASES if case.name in _SHARED])
@pytest.mark.parametrize("masks", ["balanced", "consistent"])
def test_every_engine_deals_the_same_masks(case: Case, masks: str) -> None:
    found: dict[str, list[Tensor]] = {}
    for engine in ENGINES:
        model, inputs = case.build()
        try:
            output = sampled(model, inputs, masks, samples=6, engine=engine, chunk_size=4)
        except EngineError:
            assert engine in ("vmap", "repeat")
            continue
        found[engine] = tensors(output)
    for mine, its in zip(found["loop"], found["replay"], strict=True):
        assert torch.equal(mine, its)
    rounding = 0.05 if case.name == "bfloat16" else 1e-3
    for output in found.values():
        for mine, its in zip(found["loop"], output, strict=True):
            torch.testing.assert_close(mine, its, rtol=rounding, atol=rounding)
    assert len(found) > 2


@pytest.mark.parametrize("masks", DEALT)
@given(samples=st.integers(1, 20), chunk=st.integers(1, 20), seed=st.integers(0, 2**62))
@settings(max_examples=12, deadline=None)
def test_masks_do_not_depend_on_how_many_share_a_pass(
    masks: str, samples: int, chunk: int, seed: int
) -> None:
    model, x = small(), torch.ones(3, 8)
    whole = sampled(model, x, masks, samples=samples, seed=seed, engine="loop")
    for engine in ("vmap", "repeat"):
        parts = sampled(
            model, x, masks, samples=samples, seed=seed, engine=engine, chunk_size=chunk
        )
        torch.testing.assert_close(whole, parts)


class Operations(TorchDispatchMode):
    """Counts the matrix products that are really computed."""

    def __init__(self) -> None:
        super().__init__()
        self.products = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.products += func.overloadpacket in (torch.ops.aten.addmm, torch.ops.aten.mm)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("masks", DEALT)
def test_the_prefix_is_paid_once(masks: str) -> None:
    body = nn.Sequential(*[nn.Linear(8, 8) for _ in range(10)])
    model, x = nn.Sequential(body, nn.Dropout(0.5), nn.Linear(8, 4)), torch.randn(3, 8)
    sampled(model, x, masks, engine="replay")  # where the rows are is asked once
    with Operations() as seen:
        sampled(model, x, masks, engine="replay", samples=12)
    assert seen.products == 10 + 12


def test_balanced_masks_share_passes_under_auto() -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Dropout(0.5), nn.Linear(64, 4))
    for rows, engine in ((1, "repeat"), (512, "vmap")):
        prediction = sl.mc_dropout(model, torch.randn(rows, 64), samples=32, masks="balanced")
        assert prediction.engine.startswith(engine)


# ---- balanced ----------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("masks", ["balanced", "balanced_consistent"])
@pytest.mark.parametrize("p", [0.25, 0.3])
def test_each_unit_is_dropped_equally_often(engine: str, masks: str, p: float) -> None:
    model = nn.Sequential(nn.Dropout(p))
    output = sampled(model, torch.ones(4, 50), masks, samples=20, engine=engine, chunk_size=6)
    dropped = (output == 0).sum(0)
    assert (dropped == round(20 * p)).all()
    assert (output == 0).sum((1, 2)).unique().numel() > 1  # of one sample's units any number


@pytest.mark.parametrize("make", [nn.Dropout2d, nn.FeatureAlphaDropout])
def test_units_of_a_channel_dropout_are_channels(make: Any) -> None:
    output = sampled(make(0.5), torch.ones(3, 8, 4, 4), "balanced", samples=10)
    assert (output == output[..., :1, :1]).all()
    first = output[..., 0, 0]
    assert ((first == first.amin()).sum(0) == 5).all()


def test_a_module_that_is_called_twice_draws_twice() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop = nn.Dropout(0.5)

        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([self.drop(x), self.drop(x)], 1)

    for masks in DEALT:
        output = sampled(Twice(), torch.ones(2, 400), masks, samples=10)
        first, second = output[:, :, 0] == 0, output[:, :, 1] == 0
        if masks != "consistent":
            assert (first.sum(0) == 5).all()
            assert (second.sum(0) == 5).all()
        assert 0.4 < float((first == second).float().mean()) < 0.6


def test_fewer_samples_than_there_may_be_are_the_first_of_them() -> None:
    model, x = small(), torch.randn(6, 8)
    settings = {"samples": 400, "seed": 1, "keep_samples": True, "masks": "balanced"}
    stopped = sl.mc_dropout(model, x, tolerance=0.03, **settings)
    assert 8 <= stopped.samples_used < 400
    whole = sl.mc_dropout(model, x, **settings)
    torch.testing.assert_close(stopped.samples, whole.samples[: stopped.samples_used])


def error_and_spread(masks: str, samples: int) -> tuple[float, float]:
    """Squared error of the mean, and the mean of the epistemic variance, both over seeds."""
    torch.manual_seed(0)
    model, x = small(0.3), torch.randn(20, 8)
    exact = sl.mc_dropout(model, x, samples=20_000, seed=1, task="regression")
    errors, spreads = [], []
    for seed in range(60):
        found = sl.mc_dropout(model, x, samples=samples, seed=seed, task="regression", masks=masks)
        errors.append((found.mean - exact.mean).square().mean())
        spreads.append(found.epistemic.mean() / exact.epistemic.mean())
    return float(torch.stack(errors).mean()), float(torch.stack(spreads).mean())


def test_balanced_masks_need_less_than_half_of_the_samples() -> None:
    independent, _ = error_and_spread("independent", 20)
    for masks in ("balanced", "balanced_consistent"):
        error, spread = error_and_spread(masks, 20)
        assert error < independent / 2
        assert 1 - 1.2 / 19 < spread < 1.01  # its bias: at most 1/(T-1), and never upwards


def test_other_draws_are_left_alone_beside_masks() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop = nn.Dropout(0.5)

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([self.drop(x), torch.randn_like(x)], 1)

    output = sampled(Both(), torch.ones(2, 30), "balanced", samples=10)
    assert ((output[..., :30] == 0).sum(0) == 5).all()
    assert output[..., 30:].flatten(1).unique(dim=0).shape[0] == 10


# ---- consistent --------------------------------------------------------------------------------

_ROWWISE = {
    "dropout", "dropout1d", "dropout2d", "alpha_dropout", "feature_alpha_dropout", "attention",
    "attention_weights", "transformer_encoder", "lstm", "gru", "stochastic_depth_row",
    "stochastic_depth_batch", "drop_path", "timm_vit", "torchvision_convnext", "latent", "gumbel",
}  # fmt: skip


@each([case for case in CASES if case.name in _ROWWISE])
def test_a_row_is_predicted_alike_in_any_batch(case: Case) -> None:
    model, inputs = case.build()
    x = torch.cat([inputs, inputs.flip(0) * 1.5, inputs + 1])
    whole = sampled(model, x, "consistent", samples=5)
    for start, stop in ((0, 1), (0, 2), (1, len(x))):
        part = sampled(model, x[start:stop], "consistent", samples=5)
        torch.testing.assert_close(part, whole[:, start:stop], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("masks", ["consistent", "balanced_consistent"])
@given(cuts=st.lists(st.integers(1, 19), unique=True, max_size=5), seed=st.integers(0, 2**62))
@settings(max_examples=10, deadline=None)
def test_batches_of_any_size_make_one_data_set(masks: str, cuts: list[int], seed: int) -> None:
    model, x = small(), torch.linspace(-1, 1, 160).view(20, 8)
    whole = sampled(model, x, masks, seed=seed)
    parts = [sampled(model, part, masks, seed=seed) for part in x.tensor_split(sorted(cuts))]
    torch.testing.assert_close(whole, torch.cat(parts, 1))


def test_all_rows_share_a_mask_and_samples_do_not() -> None:
    output = sampled(nn.Dropout(0.5), torch.ones(7, 60), "consistent", samples=9)
    assert (output == output[:, :1]).all()
    assert output[:, 0].unique(dim=0).shape[0] == 9


def test_rows_need_not_lie_on_the_first_axis_of_an_activation() -> None:
    class StepsFirst(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop, self.locked = nn.Dropout(0.5), LockedDropout(0.5)

        def forward(self, x: Tensor) -> Tensor:
            steps = x.transpose(0, 1)
            flat = self.drop(steps.flatten(0, 1)).view_as(steps)  # rows innermost
            return (self.drop(flat) + self.locked(steps)).transpose(0, 1)

    output = sampled(StepsFirst(), torch.ones(3, 5, 40), "consistent", samples=4)
    assert (output == output[:, :1]).all()
    assert not (output[:, :, 0] == output[:, :, 1]).all()
    with pytest.raises(EngineError, match="rows that come first"):
        sampled(StepsFirst(), torch.ones(3, 5, 40), "consistent", engine="repeat")


class Multinomial(m.OneDropout):
    """Draws which features stay."""

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)[:, torch.ones(4).multinomial(2)]


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (m.SubtractsMean(), "influence each other"),
        (m.KeepsNorm(), "influence each other"),
        (m.HyperNetwork(), "influence each other"),
        (Multinomial(), "draws by multinomial"),
    ],
    ids=["mean", "norm", "weights", "multinomial"],
)
@pytest.mark.parametrize("masks", ["consistent", "balanced_consistent"])
def test_what_cannot_be_shared_is_refused(model: nn.Module, reason: str, masks: str) -> None:
    with pytest.raises(ModelError, match=reason):
        sampled(model, torch.randn(3, 8), masks)


def test_rows_that_cannot_be_told_are_refused() -> None:
    class Reads(nn.Module):
        def forward(self, number: int) -> Tensor:
            return F.dropout(torch.ones(number, 4), 0.5)

    with pytest.raises(ModelError, match="no tensor of the inputs has rows"):
        sampled(Reads(), {"number": 3}, "consistent")


# ---- settings ----------------------------------------------------------------------------------


@pytest.mark.parametrize("masks", ["balance", "", None, 3])
@pytest.mark.parametrize("verb", [sl.sample_predictions, sl.mc_dropout])
def test_an_unknown_kind_is_told_the_known_ones(verb: Any, masks: Any) -> None:
    with pytest.raises(RecipeError, match=r"masks must be one of independent.*balanced.*, got"):
        verb(small(), torch.randn(3, 8), samples=3, masks=masks)


def test_what_is_no_mask_cannot_be_balanced() -> None:
    with pytest.raises(ModelError, match=r"balanced masks need .* draws by randn_like; use masks="):
        sampled(m.Latent(), torch.randn(3, 8), "balanced")


@pytest.mark.parametrize("masks", DEALT)
@pytest.mark.parametrize("engine", ENGINES)
def test_nothing_random_is_still_an_error(masks: str, engine: str) -> None:
    with pytest.raises(NothingRandomError):
        sampled(small(0.0), torch.randn(3, 8), masks, engine=engine)
    with pytest.raises(NothingRandomError):
        sampled(small(0.0), torch.randn(3, 8), masks, engine=engine, seed=None)


@pytest.mark.parametrize("masks", DEALT)
@pytest.mark.parametrize("engine", ENGINES)
def test_one_sample(masks: str, engine: str) -> None:
    output = sampled(nn.Dropout(0.3), torch.ones(20, 500), masks, samples=1, engine=engine)
    assert output.shape == (1, 20, 500)
    assert 0.6 < float((output > 0).float().mean()) < 0.8


@pytest.mark.parametrize("masks", DEALT)
def test_a_seed_leaves_the_generators_and_none_moves_them_on(masks: str) -> None:
    model, x = small(), torch.randn(3, 8)
    before = torch.get_rng_state()
    first = sampled(model, x, masks)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, sampled(model, x, masks))
    assert not torch.equal(first, sampled(model, x, masks, seed=1))
    one, two = (sampled(model, x, masks, seed=None) for _ in range(2))
    assert not torch.equal(one, two)
    torch.set_rng_state(before)
    assert torch.equal(one, sampled(model, x, masks, seed=None))


@pytest.mark.parametrize("masks", DEALT)
def test_a_mask_that_changes_its_shape_is_refused(masks: str) -> None:
    class Grows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop = nn.Dropout(0.5)

        def forward(self, x: Tensor) -> Tensor:
            kept = self.drop(x)
            wider = x.repeat(1, 1 + int((kept[0] > 0).sum()))
            return self.drop(wider).sum(1, keepdim=True) + 0 * kept

    with pytest.raises(ModelError, match=r"one shape and rate|in which the rows of a batch"):
        sampled(Grows(), torch.ones(2, 60), masks, engine="loop")
