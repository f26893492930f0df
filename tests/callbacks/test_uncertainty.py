import math
import warnings
from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.demos.transformer import LightningTransformer
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import stablelightning as sl
from stablelightning.callbacks import EstimateUncertainty
from stablelightning.errors import (
    DataError,
    ModelError,
    NothingRandomError,
    RecipeError,
    StableLightningWarning,
)
from stablelightning.functional.scores import negative_log_likelihood
from tests.callbacks.modules import (
    CLASSES,
    FEATURES,
    AnyTest,
    NoisyRegressor,
    Plain,
    Regressor,
    Segmenter,
    SeveralLoaders,
    loader,
    quiet_trainer,
)


def estimate(**settings: Any) -> EstimateUncertainty:
    return EstimateUncertainty(**{"samples": 5, **settings})


def run_test(
    model: L.LightningModule, batches: Any, callback: EstimateUncertainty, **settings: Any
) -> L.Trainer:
    trainer = quiet_trainer(callback, **settings)
    trainer.test(model, batches, verbose=False)
    return trainer


# ---- what a test says ---------------------------------------------------------------------------


def test_scores_are_those_of_the_rows():
    callback = estimate()
    model = Plain()
    trainer = run_test(model, loader(), callback)
    rows, results = callback.rows, callback.results
    assert rows["index"].tolist() == list(range(20))
    assert torch.equal(rows["target"], loader().dataset.tensors[1])
    model.eval()
    plain = model(loader().dataset.tensors[0]).softmax(1)
    torch.testing.assert_close(rows["deterministic"], plain)
    for key, mean in (("", plain), ("_mc", rows["mean"])):
        nll = negative_log_likelihood(mean, rows["target"]).mean().item()
        accuracy = (mean.argmax(1) == rows["target"]).float().mean().item()
        assert results[f"uncertainty/nll{key}"] == pytest.approx(nll)
        assert results[f"uncertainty/accuracy{key}"] == pytest.approx(accuracy)
    for key in ("total", "aleatoric", "epistemic", "variation_ratio"):
        assert results[f"uncertainty/{key}"] == pytest.approx(rows[key].mean().item())
    assert results["uncertainty/samples_used"] == 5
    logged = {k: v for k, v in trainer.callback_metrics.items() if k.startswith("uncertainty/")}
    assert logged.keys() == results.keys()
    assert all(logged[k].item() == pytest.approx(v, abs=1e-6) for k, v in results.items())


def test_samples_are_those_of_mc_dropout():
    callback = estimate(samples=7)
    model = Plain()
    run_test(model, loader(8), callback)
    x = loader(8).dataset.tensors[0]
    seed = callback.seed_of(0, 0, 0)
    torch.testing.assert_close(
        callback.rows["mean"], sl.mc_dropout(model, x, samples=7, seed=seed).mean
    )


def test_step_of_the_user_runs_once_per_batch():
    model = Plain()
    trainer = run_test(model, loader(), estimate())
    assert model.test_steps == 3
    assert "test_loss" in trainer.callback_metrics


def test_regression_scores_and_units():
    class Data(L.LightningDataModule):
        target_scale = (100.0, 10.0)

        def test_dataloader(self) -> DataLoader[Any]:
            return loader(kind="values")

    callback = estimate()
    model = NoisyRegressor()
    run_test(model, loader(kind="values"), callback)
    before, rows = callback.results, callback.rows
    trainer = quiet_trainer(callback)
    trainer.test(model, datamodule=Data(), verbose=False)
    after = callback.results
    assert after["uncertainty/rmse"] == pytest.approx(10 * before["uncertainty/rmse"], rel=1e-5)
    assert after["uncertainty/total"] == pytest.approx(100 * before["uncertainty/total"], rel=1e-4)
    for key in ("nll", "nll_mc"):  # a density per ten units
        expected = before[f"uncertainty/{key}"] + math.log(10)
        assert after[f"uncertainty/{key}"] == pytest.approx(expected, abs=1e-4)
    torch.testing.assert_close(callback.rows["mean"], rows["mean"] * 10 + 100)
    torch.testing.assert_close(callback.rows["target"], rows["target"] * 10 + 100)
    assert 0 <= after["uncertainty/coverage_90"] <= 1
    # The law of total variance: what the head says on average, and how the samples differ.
    torch.testing.assert_close(rows["total"], rows["aleatoric"] + rows["epistemic"])
    assert (rows["aleatoric"] > 0).all()
    assert (rows["epistemic"] > 0).all()


def test_a_regression_without_noise_head_has_no_plain_likelihood():
    callback = estimate()
    run_test(Regressor(), loader(kind="values"), callback)
    assert {"uncertainty/rmse", "uncertainty/rmse_mc", "uncertainty/nll_mc"} <= set(
        callback.results
    )
    assert "uncertainty/nll" not in callback.results
    assert callback.rows["mean"].shape == (20,)
    assert "variation_ratio" not in callback.rows


def test_pixels_are_scored_without_rows():
    callback = estimate()
    x, y = torch.randn(6, 1, 5, 5), torch.randint(0, 3, (6, 5, 5))
    model = Segmenter()
    run_test(model, DataLoader(TensorDataset(x, y), batch_size=4), callback)
    assert callback.rows == {}
    accuracy = (model.eval()(x).argmax(1) == y).double().mean().item()
    assert callback.results["uncertainty/accuracy"] == pytest.approx(accuracy)


def test_a_batch_without_target_has_uncertainties_alone():
    callback = estimate()
    x = loader().dataset.tensors[0]
    run_test(AnyTest(), DataLoader(x, batch_size=8), callback)
    assert "uncertainty/total" in callback.results
    assert "uncertainty/nll_mc" not in callback.results
    assert "target" not in callback.rows


def test_independent_labels():
    callback = estimate()
    x = torch.randn(20, FEATURES)
    y = torch.randint(0, 2, (20, CLASSES)).float()
    model = AnyTest()
    run_test(model, DataLoader(TensorDataset(x, y), batch_size=20), callback)
    expected = F.binary_cross_entropy_with_logits(model.eval()(x), y)
    assert callback.results["uncertainty/nll"] == pytest.approx(expected.item(), abs=1e-5)
    assert callback.rows["epistemic"].shape == (20, CLASSES)


class SmallLogits(AnyTest):
    """Logits of labels: of both signs in the first batch, all within [0, 1] in the second."""

    def forward(self, x: Tensor) -> Tensor:
        return x + self.net(x)[:, :1] * 1e-4


def test_logits_stay_logits_in_a_batch_where_they_look_like_probabilities():
    x = torch.tensor([[-3.0, 2, 1, -1], [4, -2, 1, 2], [0.3, 0.4, 0.5, 0.6]])
    y = torch.tensor([[0, 1, 1, 0], [1, 0, 1, 1], [1, 0, 1, 0]])
    callback = estimate()
    run_test(SmallLogits(), DataLoader(TensorDataset(x, y), batch_size=2), callback)
    for key in ("mean", "deterministic"):
        torch.testing.assert_close(callback.rows[key], x.sigmoid(), atol=1e-3, rtol=0)


def test_tolerance_stops_early():
    callback = estimate(samples=200, tolerance=0.05)
    run_test(Plain(), loader(), callback)
    assert 5 < callback.results["uncertainty/samples_used"] < 200


# ---- what is left untouched ---------------------------------------------------------------------


class WithNorm(AnyTest):
    def __init__(self) -> None:
        super().__init__()
        self.net.insert(1, nn.BatchNorm1d(8))


@pytest.mark.parametrize("loop", ["test", "predict"])
def test_buffers_flags_generators_and_methods_are_left_as_they_were(loop):
    model = WithNorm()
    model.net[1].eval()
    flags = [m.training for m in model.modules()]
    buffers = {name: b.clone() for name, b in model.named_buffers()}
    batches = loader() if loop == "test" else DataLoader(loader().dataset.tensors[0], batch_size=8)
    generators = []
    for callbacks in ([], [estimate()]):
        torch.manual_seed(3)
        getattr(quiet_trainer(*callbacks), loop)(model, batches)
        generators.append(torch.get_rng_state())
    assert torch.equal(*generators)
    assert [m.training for m in model.modules()] == flags
    assert all(torch.equal(b, buffers[name]) for name, b in model.named_buffers())
    assert not {"predict_step", "log", "log_dict"} & set(vars(model))


def test_a_repeated_run_gives_the_same_numbers_and_another_seed_others():
    model = Plain()
    results = []
    for seed in (0, 0, 1):
        callback = estimate(seed=seed)
        run_test(model, loader(), callback)
        results.append(callback.results)
    assert results[0] == results[1]
    assert results[0]["uncertainty/nll_mc"] != results[2]["uncertainty/nll_mc"]
    assert results[0]["uncertainty/nll"] == results[2]["uncertainty/nll"]


def test_batches_are_sampled_from_different_seeds():
    callback = estimate()
    run_test(AnyTest(), DataLoader(torch.ones(2, FEATURES)), callback)
    first, second = callback.rows["mean"]
    assert not torch.equal(first, second)


# ---- predict ------------------------------------------------------------------------------------


def test_predict_returns_predictions_and_gives_the_step_back():
    model = Plain()
    callback = estimate()
    trainer = quiet_trainer(callback)
    predictions = trainer.predict(model, DataLoader(torch.randn(10, FEATURES), batch_size=4))
    assert [type(p) for p in predictions] == [sl.Prediction] * 3
    assert [p.mean.shape for p in predictions] == [(4, CLASSES), (4, CLASSES), (2, CLASSES)]
    assert predictions[0].samples_used == 5
    assert "predict_step" not in vars(model)
    assert not predictions[0].mean.is_inference()


def test_predictions_equal_the_rows_of_a_test_of_the_same_batches():
    model = Plain()
    callback = estimate()
    trainer = quiet_trainer(callback)
    predictions = trainer.predict(model, loader())
    trainer.test(model, loader(), verbose=False)
    torch.testing.assert_close(torch.cat([p.mean for p in predictions]), callback.rows["mean"])


def test_a_step_set_on_the_instance_is_given_back():
    model = Plain()

    def own(batch: Any, batch_idx: int) -> Tensor:
        return model(batch[0])

    model.predict_step = own
    predictions = quiet_trainer(estimate()).predict(model, loader())
    assert isinstance(predictions[0], sl.Prediction)
    assert model.predict_step is own


class Raises(Plain):
    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        if batch_idx == 1:
            raise KeyboardInterrupt if self.interrupted else RuntimeError("broken step")
        return self(batch[0])


@pytest.mark.parametrize("interrupted", [False, True])
def test_the_step_is_given_back_after_an_exception(interrupted):
    model = Raises()
    model.interrupted = interrupted
    flags = [m.training for m in model.modules()]
    with pytest.raises(SystemExit if interrupted else RuntimeError):
        quiet_trainer(estimate()).predict(model, loader())
    assert "predict_step" not in vars(model)
    assert "log" not in vars(model)
    assert [m.training for m in model.modules()] == [False] * len(flags)  # as Lightning leaves it


def test_several_predict_dataloaders():
    predictions = quiet_trainer(estimate()).predict(Plain(), [loader(), loader(10)])
    assert [len(p) for p in predictions] == [3, 2]


# ---- which method is sampled --------------------------------------------------------------------


class Logs(Plain):
    """Its own predict step: temperature 2, and it logs, which a predict hook must not."""

    def predict_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        x = batch[0]
        self.log("inside", 1.0)
        self.log_dict({"inside_too": 1.0})
        return {"logits": self(x) / 2, "chosen": self(x).argmax(1)}


def test_own_predict_step_is_sampled_with_logging_muted():
    callback = estimate()
    model = Logs()
    trainer = run_test(model, loader(), callback)
    assert not [k for k in trainer.callback_metrics if k.startswith("inside")]
    x = loader().dataset.tensors[0]
    torch.testing.assert_close(callback.rows["deterministic"], (model.eval()(x) / 2).softmax(1))
    assert isinstance(trainer.predict(model, loader())[0], sl.Prediction)


class ReadsInputsAlone(Plain):
    def predict_step(self, batch: Tensor) -> Tensor:
        return self(batch) / 2


def test_a_step_written_for_bare_inputs_gets_them():
    callback = estimate()
    model = ReadsInputsAlone()
    with pytest.warns(StableLightningWarning, match="predict_step on the inputs alone"):
        run_test(model, loader(), callback)
    x = loader().dataset.tensors[0]
    torch.testing.assert_close(callback.rows["deterministic"], (model.eval()(x) / 2).softmax(1))


class GivesClasses(Plain):
    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        return self(batch[0]).argmax(1)


@pytest.mark.parametrize("loop", ["test", "predict"])
def test_class_indices_cannot_be_averaged_and_forward_is_sampled_instead(loop):
    callback = estimate()
    trainer = quiet_trainer(callback)
    with pytest.warns(StableLightningWarning, match=r"samples GivesClasses.forward.*averaged"):
        result = getattr(trainer, loop)(GivesClasses(), loader())
    mean = callback.rows["mean"][:8] if loop == "test" else result[0].mean
    assert mean.shape == (8, CLASSES)


class SamplesItself(Plain):
    def predict_step(self, batch: Any, batch_idx: int) -> sl.Prediction:
        return sl.mc_dropout(self, batch[0], samples=2)


def test_samples_of_samples_are_not_taken():
    callback = estimate()
    with pytest.warns(StableLightningWarning, match="samples by itself"):
        (first, *_) = quiet_trainer(callback).predict(SamplesItself(), loader())
    assert first.samples_used == 5


class NoForward(L.LightningModule):
    def test_step(self, batch: Any, batch_idx: int) -> None:
        pass


def test_a_module_with_neither_is_told():
    with pytest.raises(ModelError, match="NoForward has neither"):
        run_test(NoForward(), loader(), estimate())


class OnlyBroken(AnyTest):
    def forward(self, x: Tensor) -> Tensor:
        raise ValueError("first line\nsecond line")


def test_what_went_wrong_is_told_with_the_override():
    with pytest.raises(ModelError, match=r"first line\); .*inputs_and_target") as caught:
        run_test(OnlyBroken(), loader(), estimate())
    assert isinstance(caught.value.__cause__, ValueError)


def test_a_batch_the_rule_cannot_read_names_the_override():
    batches = DataLoader([{"views": torch.randn(FEATURES), "kind": 1} for _ in range(4)])
    with pytest.raises(DataError, match="inputs_and_target"):
        run_test(AnyTest(), batches, estimate())

    class Views(EstimateUncertainty):
        def inputs_and_target(self, pl_module: L.LightningModule, batch: Any) -> tuple[Any, Any]:
            return batch["views"], batch["kind"]

    callback = Views(samples=5)
    run_test(AnyTest(), batches, callback)
    assert callback.rows["target"].tolist() == [1] * 4


# ---- models without randomness ------------------------------------------------------------------


@pytest.mark.parametrize("loop", ["test", "predict"])
def test_nothing_random_is_an_error_that_names_the_cure(loop):
    trainer = quiet_trainer(estimate())
    with pytest.raises(NothingRandomError, match="add_dropout"):
        getattr(trainer, loop)(BoringModel())


def test_recommended_callbacks_step_aside_once():
    trainer = quiet_trainer(*sl.recommended_callbacks())
    model = BoringModel()
    with pytest.warns(StableLightningWarning, match="steps aside.*add_dropout"):
        trainer.test(model, verbose=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error", StableLightningWarning)
        plain = trainer.predict(model)
    assert len(plain) == 64
    assert isinstance(plain[0], Tensor)
    (ours,) = (c for c in trainer.callbacks if isinstance(c, sl.EstimateUncertainty))
    assert ours.results == {}


def test_recommended_callbacks_step_aside_from_what_they_cannot_read():
    trainer = quiet_trainer(*sl.recommended_callbacks())
    with pytest.warns(StableLightningWarning, match="steps aside.*first line"):
        trainer.test(OnlyBroken(), loader(), verbose=False)


def test_stepping_aside_lasts_for_one_run():
    callback = estimate(required=False)
    trainer = quiet_trainer(callback)
    with pytest.warns(StableLightningWarning):
        trainer.test(BoringModel(), verbose=False)
    trainer.test(Plain(), loader(), verbose=False)
    assert "uncertainty/nll_mc" in callback.results


# ---- the Trainer's ways -------------------------------------------------------------------------


def test_several_test_dataloaders_are_told_apart_as_lightning_does():
    callback = estimate()
    trainer = quiet_trainer(callback)
    first, second = trainer.test(SeveralLoaders(), [loader(), loader(10)], verbose=False)
    assert "uncertainty/nll_mc/dataloader_idx_0" in first
    assert "uncertainty/nll_mc/dataloader_idx_1" in second
    assert not [key for key in first if key.endswith("idx_1")]
    assert callback.results.keys() <= trainer.callback_metrics.keys()
    assert [len(rows["index"]) for rows in callback.all_rows] == [20, 10]
    assert callback.rows is callback.all_rows[0]


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(loader(6).dataset)


def test_dataloaders_without_length():
    callback = estimate()
    streams = [DataLoader(Stream(), batch_size=4), DataLoader(Stream(), batch_size=4)]
    trainer = run_test(SeveralLoaders(), streams, callback)
    assert callback.results.keys() <= trainer.callback_metrics.keys()
    assert [len(rows["index"]) for rows in callback.all_rows] == [6, 6]


@pytest.mark.parametrize(
    ("mode", "sizes"),
    [("min_size", [16, 10]), ("max_size", [20, 10]), ("max_size_cycle", [20, 10])],
)
def test_combined_loaders_count_each_row_once(mode, sizes):
    callback = estimate()
    combined = CombinedLoader({"a": loader(20), "b": loader(10)}, mode)
    trainer = run_test(AnyTest(), combined, callback)
    assert [len(rows["index"]) for rows in callback.all_rows] == sizes
    assert {"uncertainty/nll_mc/a", "uncertainty/nll_mc/b"} <= trainer.callback_metrics.keys()


@pytest.mark.parametrize(
    "settings",
    [
        {"inference_mode": False},
        {"precision": "bf16-mixed"},
        {"precision": "64-true"},
        {"barebones": True},
    ],
    ids=repr,
)
def test_settings_of_the_trainer(settings):
    callback = estimate()
    trainer = run_test(Plain(), loader(), callback, **settings)
    assert callback.results["uncertainty/nll_mc"] > 0
    assert len(callback.rows["index"]) == 20
    assert ("uncertainty/nll_mc" in trainer.callback_metrics) != trainer.barebones
    assert isinstance(trainer.predict(Plain(), loader())[0], sl.Prediction)


@pytest.mark.parametrize(
    ("settings", "rows"), [({"fast_dev_run": True}, 8), ({"limit_test_batches": 2}, 16)]
)
def test_limited_tests_score_what_was_seen(settings, rows):
    callback = estimate()
    run_test(Plain(), loader(), callback, **settings)
    assert len(callback.rows["index"]) == rows


def test_precision_context_reaches_the_samples():
    seen = set()

    class Looks(AnyTest):
        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x)
            seen.add(y.dtype)
            return y

    run_test(Looks(), loader(), estimate(engine="loop"), precision="bf16-mixed")
    assert seen == {torch.bfloat16}


def test_compiled_modules():
    callback = estimate()
    run_test(torch.compile(Plain(), backend="eager"), loader(), callback)
    assert callback.results["uncertainty/epistemic"] > 0


class IteratorStep(Plain):
    def test_step(self, dataloader_iter: Any) -> None:
        next(dataloader_iter)


def test_steps_that_take_an_iterator_are_refused_in_words():
    with pytest.raises(RecipeError, match="dataloader_iter"):
        run_test(IteratorStep(), loader(), estimate())


def test_sharded_strategies_are_refused_in_words(monkeypatch):
    from lightning.pytorch.strategies import FSDPStrategy

    from stablelightning.callbacks.steps import refuse_unsampled

    trainer = quiet_trainer()
    monkeypatch.setattr(type(trainer), "strategy", FSDPStrategy.__new__(FSDPStrategy))
    with pytest.raises(RecipeError, match="FSDPStrategy"):
        refuse_unsampled(trainer, Plain().test_step)


# ---- other people's models ----------------------------------------------------------------------


class LanguageModel(LightningTransformer):
    """The demo has no test step; its forward reads the target."""

    def __init__(self) -> None:
        super().__init__(vocab_size=11)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        inputs, target = batch
        self.log("loss", F.nll_loss(self(inputs, target), target.view(-1)))

    def prepare_data(self) -> None:
        """The demo's own downloads a text."""


def test_language_model_of_the_demos():
    tokens = torch.randint(0, 11, (6, 5))
    batches = DataLoader(TensorDataset(tokens[:, :-1], tokens[:, 1:]), batch_size=4)
    callback = estimate()
    model = LanguageModel()
    trainer = run_test(model, batches, callback)
    loss = trainer.callback_metrics["loss"].item()
    assert callback.results["uncertainty/nll"] == pytest.approx(loss, rel=1e-4)
    assert callback.results["uncertainty/epistemic"] > 0
    assert callback.rows == {}
    (first, _) = trainer.predict(model, batches)
    assert first.mean.shape == (16, 11)


def test_own_mixin_is_bypassed_to_its_forward():
    mixin = pytest.importorskip("stablelightning.mixin")
    if not hasattr(mixin, "StableMixin"):
        pytest.skip("StableMixin is not written yet")

    class Mixed(mixin.StableMixin, L.LightningModule):
        def __init__(self, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.net = nn.Sequential(nn.Dropout(), nn.Linear(FEATURES, CLASSES))

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)

        def loss(self, batch: Any) -> Tensor:
            return F.cross_entropy(self(batch[0]), batch[1])

    callback = estimate(samples=3)
    trainer = quiet_trainer(callback)
    assert [p.samples_used for p in trainer.predict(Mixed(), loader())] == [3, 3, 3]
    trainer.test(Mixed(), loader(), verbose=False)
    assert callback.results["uncertainty/samples_used"] == 3


# ---- settings -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"samples": 0}, r"samples must be a whole number >= 1, got 0"),
        ({"samples": 2.5}, r"samples must be a whole number >= 1, got 2.5"),
        ({"samples": True}, "samples"),
        ({"seed": -1}, r"seed must be a whole number >= 0, got -1"),
        ({"engine": "fast"}, "engine must be one of auto, loop"),
        ({"task": "ranking"}, "task must be one of auto, classification"),
        ({"tolerance": 0.0}, "tolerance must be > 0"),
        ({"tolerance": math.nan}, "tolerance must be > 0"),
    ],
)
def test_settings_out_of_range_die_in_the_constructor(settings, said):
    with pytest.raises(RecipeError, match=said):
        EstimateUncertainty(**settings)


def test_fitting_is_left_alone():
    callback = estimate()
    weights = []
    for callbacks in ([], [callback]):
        torch.manual_seed(1)
        model = Plain()
        quiet_trainer(*callbacks, max_epochs=2).fit(model, loader(), loader())
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(*weights)
    assert callback.results == {}
