"""Clipping in training: what Lightning's own clipping does, in every way of stepping."""

import csv
import math
import warnings
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy
from torch import nn

from stablelightning.callbacks import (
    ClipGradientAdaptive,
    ClipGradientNorm,
    ClipGradientValue,
    MonitorSignals,
    NormalizeGradients,
)
from stablelightning.callbacks.recommended import recommended_callbacks
from stablelightning.errors import ModelError, RecipeError
from tests.callbacks.modules import Plain, loader, quiet_trainer

CLIPPERS = (ClipGradientNorm, ClipGradientValue, ClipGradientAdaptive, NormalizeGradients)
every_clipper = pytest.mark.parametrize("kind", CLIPPERS, ids=lambda k: k.__name__)


class Watched(Plain):
    """Notes the gradients that its optimizer is given, and the weights after each step."""

    def __init__(self, factor: float = 1.0, **settings: Any) -> None:
        super().__init__(rate=0.0)
        self.factor, self.settings = factor, settings
        self.given: list[torch.Tensor] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.factor * super().training_step(batch, batch_idx)

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        parts = [p.grad.flatten() for g in optimizer.param_groups for p in g["params"]]
        self.given.append(torch.cat(parts).clone())

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), **{"lr": 0.1, **self.settings})


class ByHand(Watched):
    """Two optimizers; the second one steps at every other batch."""

    def __init__(self) -> None:
        super().__init__(factor=20.0)
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        loss = super().training_step(batch, batch_idx)
        optimizers = self.optimizers()
        for optimizer in optimizers:
            optimizer.zero_grad()
        self.manual_backward(loss)
        for optimizer in optimizers[: 1 + batch_idx % 2]:
            optimizer.step()

    def configure_optimizers(self) -> Any:
        first, second = self.net[0].parameters(), self.net[3].parameters()
        return torch.optim.SGD(first, lr=0.01), torch.optim.SGD(second, lr=0.01)


def fitted(*callbacks: L.Callback, model: Any = None, **settings: Any) -> Any:
    torch.manual_seed(0)
    model = Watched() if model is None else model()
    trainer = quiet_trainer(*callbacks, **{"max_epochs": 2, **settings})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(model, loader())
    return model


def norms_given(model: Watched) -> list[float]:
    return [float(g.norm()) for g in model.given]


def equal(a: Any, b: Any) -> bool:
    return all(map(torch.equal, a.parameters(), b.parameters()))


def close(a: Any, b: Any, rtol: float = 1e-5) -> None:
    for one, other in zip(a.parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=rtol, atol=1e-6)


def half_precision(scale: float = 2.0**10) -> MixedPrecision:
    return MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=scale))


# ---- what is done -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [{}, {"accumulate_grad_batches": 2}, {"precision": "bf16-mixed"}, {"plugins": None}],
    ids=["plain", "accumulated", "bf16", "fp16"],
)
@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_clips_as_lightning_does(settings, algorithm):
    bound = 0.1 if algorithm == "norm" else 0.01
    ours = ClipGradientNorm(bound) if algorithm == "norm" else ClipGradientValue(bound)
    runs = []
    for callbacks, more in (
        ([], {"gradient_clip_val": bound, "gradient_clip_algorithm": algorithm}),
        ([ours], {}),
    ):
        given = {**settings, **more}
        if "plugins" in given:
            given["plugins"] = half_precision()
        runs.append(fitted(*callbacks, **given))
    close(*runs)
    assert ours.records[0].clipped == ours.records[0].steps == len(runs[1].given)
    assert not equal(runs[1], fitted())


@pytest.mark.parametrize(
    "clipper",
    [ClipGradientNorm(1e6), ClipGradientValue(1e6), ClipGradientAdaptive(1e6)],
    ids=lambda c: type(c).__name__,
)
def test_to_the_bit_the_same_where_nothing_is_clipped(clipper):
    assert equal(fitted(clipper), fitted())
    assert clipper.records[0].clipped == 0


@pytest.mark.parametrize("norm_type", [1.0, 3.0, math.inf])
def test_other_norms(norm_type):
    model = fitted(ClipGradientNorm(0.05, norm_type=norm_type))
    for gradient in model.given:
        norm = torch.linalg.vector_norm(gradient, norm_type)
        assert norm == pytest.approx(0.05, rel=1e-5)


def test_each_optimizer_has_its_own_threshold():
    clip = ClipGradientNorm(steps=2, bounds=(1e-3, 1e3))
    free = ClipGradientNorm(1e9)
    fitted(clip, model=ByHand)
    fitted(free, model=ByHand)
    assert [record.steps for record in clip.records] == [6, 2]
    assert [len(first) for first in clip.first_norms] == [2, 2]
    for first, threshold in zip(clip.first_norms, clip.thresholds, strict=True):
        assert threshold == pytest.approx(2 * sum(first) / 2)
    assert clip.thresholds[0] != clip.thresholds[1]
    assert clip.first_norms[0] == pytest.approx(
        [free.records[0].highs[0], free.records[0].highs[1]]
    )


def test_a_step_without_gradients_is_none():
    class Guard(L.Callback):
        rank = 10

        def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
            if trainer.global_step == 1:
                for parameter in module.parameters():
                    parameter.grad = None

    class Unwatched(Watched):
        def on_before_optimizer_step(self, optimizer: Any) -> None:
            pass

    clip = ClipGradientNorm(0.1)
    fitted(clip, Guard(), model=Unwatched)
    assert clip.records[0].steps == 5


def test_what_is_not_finite_is_left_and_counts_for_nothing():
    class Poison(L.Callback):
        rank = 5

        def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
            if trainer.global_step in (1, 2):
                module.net[0].bias.grad[0] = math.nan if trainer.global_step == 1 else math.inf

    class Skips(Watched):
        def on_before_optimizer_step(self, optimizer: Any) -> None:
            super().on_before_optimizer_step(optimizer)
            optimizer.zero_grad()

    clip = ClipGradientNorm(steps=3, bounds=(1e-3, 1e3))
    model = fitted(clip, Poison(), model=Skips)
    clean = fitted(model=lambda: Watched(lr=0.0))
    for step in (1, 2):
        finite = model.given[step].isfinite()
        assert (~finite).sum() == 1
        assert torch.equal(model.given[step][finite], clean.given[step][finite])
    assert clip.records[0].not_finite == 2
    expected = [norms_given(clean)[n] for n in (0, 3, 4)]
    assert clip.first_norms[0] == pytest.approx(expected)
    assert clip.thresholds[0] == pytest.approx(2 * sum(expected) / 3)


# ---- the automatic threshold --------------------------------------------------------------------


def test_the_upper_bound_protects_while_it_measures():
    clip = ClipGradientNorm(steps=4, bounds=(0.01, 0.05))
    model = fitted(clip, model=lambda: Watched(factor=50.0, lr=1e-4))
    assert norms_given(model) == pytest.approx([0.05] * 6, rel=1e-4)


def test_the_default_bounds_hold_the_threshold_between_one_and_five():
    for factor, threshold in ((1e-3, 1.0), (1e3, 5.0)):
        clip = ClipGradientNorm(steps=3)
        fitted(clip, model=lambda f=factor: Watched(factor=f, lr=1e-6))
        assert clip.thresholds == [threshold]


def test_a_percentile_is_followed():
    clip = ClipGradientNorm(steps=2, bounds=(1e-9, 1e9), percentile=50)
    free = ClipGradientNorm(steps=2, bounds=(1e-9, 1e9))
    settings = {"max_epochs": 14, "model": lambda: Watched(lr=0.3)}
    fitted(clip, **settings)
    fitted(free, **settings)
    assert clip.thresholds[0] < free.thresholds[0]
    assert min(clip.records[0].highs) < clip.thresholds[0] < max(clip.records[0].highs)


# ---- scaled losses ------------------------------------------------------------------------------


@every_clipper
def test_fused_optimizers_are_clipped_in_the_unscaled_unit(kind):
    settings = {"ClipGradientNorm": {"max_norm": 0.1}, "ClipGradientValue": {"max_value": 0.01}}
    runs = []
    for fused in (False, True):
        clip = kind(**settings.get(kind.__name__, {}))
        model = fitted(clip, plugins=half_precision(), model=lambda f=fused: Watched(fused=f))
        runs.append((model, clip))
    (plain, clip), (fused, other) = runs
    close(plain, fused, rtol=1e-4)
    for one, scaled in zip(plain.given, fused.given, strict=True):
        torch.testing.assert_close(scaled / 2**10, one, rtol=1e-3, atol=1e-6)
    assert [r.clipped for r in clip.records] == [r.clipped for r in other.records]


@every_clipper
@pytest.mark.parametrize("fused", [False, True])
def test_an_overflow_is_left_to_the_scaler(kind, fused):
    plugin = half_precision(2.0**40)
    settings = {"plugins": plugin, "max_epochs": 10}
    model = fitted(kind(), model=lambda: Watched(fused=fused), **settings)
    assert plugin.scaler.get_scale() < 2.0**40
    assert not model.given[0].isfinite().all()
    assert all(p.isfinite().all() for p in model.parameters())


# ---- what is told -------------------------------------------------------------------------------


def logged(path: Any) -> list[dict[str, str]]:
    with open(path / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    return [row for row in rows if any(row.get(k) for k in row if k.startswith("clip/"))]


def test_norms_before_and_after_are_logged(tmp_path):
    logger = CSVLogger(tmp_path, name="", version="")
    clip = ClipGradientNorm(steps=2, bounds=(0.01, 0.3))
    model = fitted(clip, logger=logger, log_every_n_steps=2, model=lambda: Watched(factor=5.0))
    rows = logged(tmp_path)
    assert [int(row["step"]) for row in rows] == [1, 3, 5]
    after = [float(row["clip/norm_after"]) for row in rows]
    assert after == pytest.approx([norms_given(model)[n] for n in (1, 3, 5)])
    assert after == pytest.approx([0.3] * 3, rel=1e-4)
    assert all(float(row["clip/norm"]) > 0.3 for row in rows)
    assert [float(row["clip/fraction"]) for row in rows] == [1, 1, 1]
    assert [float(row["clip/threshold"]) for row in rows] == pytest.approx([0.3] * 3)


@every_clipper
def test_every_clipper_tells_norms(kind, tmp_path):
    model = fitted(kind(), logger=CSVLogger(tmp_path, name="", version=""), log_every_n_steps=1)
    rows = logged(tmp_path)
    after = [float(row["clip/norm_after"]) for row in rows]
    assert after == pytest.approx(norms_given(model), rel=1e-4)
    assert (kind is NormalizeGradients) == ("clip/fraction" not in rows[0])


def test_several_optimizers_have_keys_of_their_own(tmp_path):
    clip = ClipGradientNorm(1.0)
    logger = CSVLogger(tmp_path, name="", version="")
    fitted(clip, logger=logger, log_every_n_steps=1, model=ByHand)
    keys = {key for row in logged(tmp_path) for key in row if key.startswith("clip/")}
    assert keys == {f"clip/{k}/{n}" for k in ("norm", "norm_after", "fraction") for n in (0, 1)}


def test_the_monitor_sees_gradients_before_they_are_clipped():
    free, clipped = MonitorSignals(every_n_steps=1), MonitorSignals(every_n_steps=1)
    fitted(free, model=lambda: Watched(lr=0.0))
    fitted(ClipGradientNorm(1e-3), clipped, model=lambda: Watched(lr=0.0))
    table = [monitor.history.table("grad_norm") for monitor in (free, clipped)]
    assert table[0] == pytest.approx(table[1])


# ---- the adaptive one ---------------------------------------------------------------------------


def test_the_head_is_left_alone():
    model = fitted(ClipGradientAdaptive(1e-6), max_epochs=1)
    clean = fitted(max_epochs=1)
    head = sum(p.numel() for p in model.net[3].parameters())
    assert torch.equal(model.given[0][-head:], clean.given[0][-head:])
    assert model.given[0][:-head].norm() < 1e-4 * clean.given[0][:-head].norm()


def test_what_is_named_is_left_alone():
    model = fitted(ClipGradientAdaptive(1e-6, exclude=["net.0"]), max_epochs=1)
    clean = fitted(max_epochs=1)
    body = sum(p.numel() for p in model.net[0].parameters())
    assert torch.equal(model.given[0][:body], clean.given[0][:body])
    assert model.given[0][body:].norm() < 1e-4 * clean.given[0][body:].norm()


def test_names_that_no_module_has_are_refused():
    with pytest.raises(RecipeError, match=r"got 'hed'; its first ones are net, net\.0"):
        fitted(ClipGradientAdaptive(exclude=["hed"]))


# ---- normalized ---------------------------------------------------------------------------------


def test_every_tensor_gets_unit_norm():
    model = fitted(NormalizeGradients())
    assert norms_given(model) == pytest.approx([2.0] * 6, rel=1e-4)  # of four tensors


def test_every_tensor_gets_unit_variance():
    model = fitted(NormalizeGradients(standardize=True))
    size = sum(p.numel() for p in model.parameters())
    assert norms_given(model) == pytest.approx([math.sqrt(size)] * 6, rel=1e-3)


# ---- what is refused ----------------------------------------------------------------------------


def test_a_loss_without_a_graph_is_refused_in_words():
    class Graphless(Watched):
        def training_step(self, batch, batch_idx):
            return torch.tensor(1.0)

    with pytest.raises(ModelError, match=r"Graphless\.training_step .* leave out \.detach\(\)"):
        fitted(ClipGradientNorm(), model=Graphless)


def test_who_took_the_recommended_callbacks_is_told_where_the_clipper_comes_from():
    with pytest.raises(RecipeError, match=r"gradient_clip_val=1\.0\); .*recommended_callbacks"):
        fitted(*recommended_callbacks(), gradient_clip_val=1.0)


@every_clipper
def test_a_second_clipping_is_refused(kind):
    with pytest.raises(RecipeError, match=r"clipped once, got .*gradient_clip_val=1\.0"):
        fitted(kind(), gradient_clip_val=1.0)
    other = ClipGradientValue() if kind is ClipGradientNorm else ClipGradientNorm()
    with pytest.raises(RecipeError, match=r"clipped once, got .* and .*; remove all but one"):
        fitted(kind(), other)


def with_strategy(clip: L.Callback, kind: type) -> Any:
    """A Trainer as ``setup`` sees it; the strategies themselves need other machines."""
    trainer = quiet_trainer(clip)
    trainer.strategy.__class__ = kind
    return trainer


@every_clipper
def test_deepspeed_is_refused_with_the_remedy(kind):
    clip = kind()
    with pytest.raises(RecipeError, match=r"DeepSpeed keeps them .*gradient_clip_val=1\.0"):
        clip._refuse(with_strategy(clip, DeepSpeedStrategy))


@pytest.mark.parametrize("kind", CLIPPERS[1:], ids=lambda k: k.__name__)
def test_shards_are_refused_by_those_that_need_whole_gradients(kind):
    clip = kind()
    with pytest.raises(RecipeError, match=r"whole gradients .*FSDPStrategy; use ClipGradientNorm"):
        clip._refuse(with_strategy(clip, FSDPStrategy))


class Sharded:
    """What FSDP offers of a root module."""

    def __init__(self, norm: float) -> None:
        self.norm, self.asked = norm, []

    def clip_grad_norm_(self, max_norm: float, norm_type: float = 2.0) -> torch.Tensor:
        self.asked.append((max_norm, norm_type))
        return torch.tensor(self.norm)


def fsdp_trainer(root: Sharded, optimizers: int = 1) -> Any:
    weights = [nn.Parameter(torch.ones(2)) for _ in range(optimizers)]
    for weight in weights:
        weight.grad = torch.ones(2)
    strategy = object.__new__(type("Fake", (FSDPStrategy,), {"model": root}))
    return SimpleNamespace(
        strategy=strategy,
        optimizers=[torch.optim.SGD([w], lr=0.1) for w in weights],
        precision_plugin=SimpleNamespace(scaler=None),
    )


def test_fsdp_is_asked_to_clip():
    root = Sharded(norm=9.0)
    clip = ClipGradientNorm(2.5, norm_type=1.0)
    trainer = fsdp_trainer(root)
    clip.on_before_optimizer_step(trainer, L.LightningModule(), trainer.optimizers[0])
    assert root.asked == [(2.5, 1.0)]
    assert clip.records[0].clipped == 1


def test_fsdp_with_two_optimizers_is_refused():
    trainer = fsdp_trainer(Sharded(norm=9.0), optimizers=2)
    with pytest.raises(RecipeError, match="whole module together, got 2 optimizers"):
        ClipGradientNorm(2.5).on_before_optimizer_step(
            trainer, L.LightningModule(), trainer.optimizers[0]
        )


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"max_norm": -1}, "max_norm must be a finite number > 0, got -1"),
        ({"max_norm": 0}, "max_norm must be"),
        ({"max_norm": math.nan}, "max_norm must be"),
        ({"max_norm": "automatic"}, "max_norm must be a number > 0 or auto, got 'automatic'"),
        ({"norm_type": 0.5}, "norm_type must be"),
        ({"steps": 0}, "steps must be"),
        ({"steps": 2.5}, "steps must be"),
        ({"multiple": 0}, "multiple must be"),
        ({"bounds": (5, 1)}, r"bounds must rise, got \[5, 1\]"),
        ({"bounds": (0, 1)}, "each of bounds must be"),
        ({"bounds": (1,)}, "bounds must be the least and the largest"),
        ({"percentile": 0}, r"percentile must be in \(0, 100\), got 0"),
        ({"percentile": 100}, r"percentile must be in \(0, 100\)"),
        ({"max_norm": 1.0, "percentile": 50}, "percentile must go with max_norm: auto"),
    ],
    ids=str,
)
def test_bad_settings_of_the_norm(settings, words):
    with pytest.raises(RecipeError, match=words) as caught:
        ClipGradientNorm(**settings)
    assert "\n" not in str(caught.value)


def test_bad_settings_of_the_others():
    for make, words in (
        (lambda: ClipGradientValue(0), "max_value must be"),
        (lambda: ClipGradientAdaptive(-0.1), "clipping must be"),
        (lambda: ClipGradientAdaptive(epsilon=0), "epsilon must be"),
        (lambda: ClipGradientAdaptive(exclude="head"), "exclude must be a list"),
    ):
        with pytest.raises(RecipeError, match=words):
            make()
