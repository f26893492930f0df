"""What every public callback promises; a new callback is held to it by being public."""

import inspect
import pickle
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import jsonargparse
import lightning as L
import pytest
import torch
import yaml
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.loggers import CSVLogger

from stablelightning.callbacks.base import StableCallback
from stablelightning.errors import NothingRandomError, StableLightningWarning
from tests.callbacks.modules import quiet_trainer
from tests.contracts.models import Breaks, LanguageModel, Seeded, weights
from tests.contracts.public import (
    EXPORTERS,
    FITTERS,
    FOLLOWERS,
    FREEZERS,
    MANY,
    OBSERVERS,
    PRETRAINERS,
    PROBERS,
    REMEMBER_VALIDATIONS,
    SAMPLERS,
    SWAPPERS,
    make,
    public_callbacks,
    settings_of,
)

every_callback = pytest.mark.parametrize("kind", public_callbacks(), ids=lambda k: k.__name__)
LOOPS = ("fit", "validate", "test", "predict")


def run(trainer: L.Trainer, model: L.LightningModule, *loops: str, **settings: Any) -> None:
    for loop in loops:
        getattr(trainer, loop)(model, **settings)


def steps_aside(kind: type[L.Callback]) -> Any:
    """Who must be fitted by a training says so where it was not, and leaves everything alone."""
    if kind.__name__ not in FITTERS:
        return nullcontext()
    return pytest.warns(StableLightningWarning, match=rf"{kind.__name__} (steps aside|could not)")


def test_there_are_callbacks_to_hold_to_the_contracts():
    assert public_callbacks()


# ---- as an object -------------------------------------------------------------------------------


@every_callback
def test_checks_where_trainer_and_module_come_from(kind):
    assert issubclass(kind, StableCallback)


@every_callback
def test_keeps_its_arguments_and_names_few(kind):
    parameters = list(inspect.signature(kind).parameters.values())
    assert len(parameters) <= MANY.get(kind.__name__, 6)
    assert all(p.kind is p.KEYWORD_ONLY for p in parameters[1:])
    assert settings_of(kind()) == {p.name: p.default for p in parameters}


@every_callback
@pytest.mark.parametrize("used", [False, True], ids=["new", "used"])
def test_pickles(kind, used):
    callback = make(kind)
    if used:
        run(quiet_trainer(callback, max_epochs=1), Seeded(), *LOOPS)
    copy = pickle.loads(pickle.dumps(callback))
    assert settings_of(copy) == settings_of(callback)
    run(quiet_trainer(copy, max_epochs=1), Seeded(), *LOOPS)


@every_callback
def test_survives_a_recipe(kind):
    """Short class name in, the same callback out of the config that a run writes down."""
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(L.Callback, "callback")
    wanted = settings_of(make(kind))
    recipe = yaml.safe_dump({"callback": {"class_path": kind.__name__, "init_args": wanted}})
    first = parser.parse_string(recipe)
    second = parser.parse_string(parser.dump(first))
    # Renamed in jsonargparse 4.49.
    instantiate = getattr(parser, "instantiate", parser.instantiate_classes)
    for config in (first, second):
        callback = instantiate(config).callback
        assert type(callback) is kind
        assert settings_of(callback) == wanted


def test_state_keys_are_distinct():
    keys = [make(kind).state_key for kind in public_callbacks()]
    assert len(set(keys)) == len(keys)


@every_callback
def test_state_is_plain(kind, tmp_path):
    callback = make(kind)
    run(quiet_trainer(callback, max_epochs=2), Seeded(), *LOOPS)
    state = callback.state_dict()
    torch.save(state, tmp_path / "state.pt")
    again = torch.load(tmp_path / "state.pt", weights_only=True)
    assert same(again, state)
    copy = make(kind)
    copy.load_state_dict(again)
    assert same(copy.state_dict(), state)


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


def test_same_tells_states_apart():
    assert same({"a": [torch.ones(2), 1]}, {"a": [torch.ones(2), 1]})
    assert not same({"a": [torch.ones(2), 1]}, {"a": [torch.zeros(2), 1]})
    assert not same({"a": 1}, {"a": 1.0})


# ---- in training --------------------------------------------------------------------------------


def fitted(*callbacks: L.Callback, ckpt_path: Path | None = None, **settings: Any) -> Any:
    torch.manual_seed(0)
    model = Seeded()
    trainer = quiet_trainer(*callbacks, **settings)
    trainer.fit(model, ckpt_path=ckpt_path, weights_only=True if ckpt_path else None)
    return trainer, model


@every_callback
@pytest.mark.parametrize("step", [6, 8], ids=["end-of-epoch", "mid-epoch"])
def test_resumed_run_equals_unbroken_run(kind, step, tmp_path):
    callbacks = make(kind), make(kind)
    every = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=2, save_top_k=-1)
    _, unbroken = fitted(callbacks[0], every, max_epochs=2, enable_checkpointing=True)
    trainer, resumed = fitted(callbacks[1], ckpt_path=tmp_path / f"step={step}.ckpt", max_epochs=2)
    assert trainer.global_step == 12
    assert trainer.fit_loop.epoch_loop.total_batch_idx == 11
    assert same(weights(resumed), weights(unbroken))
    if step != 6 or kind.__name__ not in REMEMBER_VALIDATIONS:
        assert same(callbacks[0].state_dict(), callbacks[1].state_dict())
    outcomes = []
    for model in (unbroken, resumed):
        trainer = quiet_trainer(make(kind))
        with steps_aside(kind):
            trainer.test(model, verbose=False)
        outcomes.append(dict(trainer.callback_metrics))
    assert same(*outcomes)


def test_the_comparison_sees_a_run_that_is_not_resumed_exactly(tmp_path):
    every = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=2, save_top_k=-1)
    _, unbroken = fitted(every, max_epochs=2, enable_checkpointing=True)
    broken = torch.load(tmp_path / "step=8.ckpt", weights_only=True)
    broken["optimizer_states"][0]["state"][0]["exp_avg"] *= 1.001
    torch.save(broken, tmp_path / "broken.ckpt")
    _, resumed = fitted(ckpt_path=tmp_path / "broken.ckpt", max_epochs=2)
    assert not same(weights(resumed), weights(unbroken))


@cache
def weights_alone(accumulated: int) -> list[torch.Tensor]:
    """What is learned with no callback of ours."""
    return weights(fitted(max_epochs=2, accumulate_grad_batches=accumulated)[1])


@every_callback
@pytest.mark.parametrize("accumulated", [1, 2])
def test_trains_under_gradient_accumulation(kind, accumulated):
    trainer, model = fitted(make(kind), max_epochs=2, accumulate_grad_batches=accumulated)
    assert trainer.global_step == 12 // accumulated
    assert all(value.isfinite().all() for value in weights(model))
    if kind.__name__ in OBSERVERS:
        assert same(weights(model), weights_alone(accumulated))


def flags_of(model: L.LightningModule) -> list[bool]:
    """What is in training mode, and what is trained."""
    modes = [module.training for module in model.modules()]
    return [*modes, *(parameter.requires_grad for parameter in model.parameters())]


def flags_after_a_break(loop: str, *callbacks: L.Callback) -> list[bool]:
    """Those of a model whose step broke, which has nothing on it that was not there before."""
    model = Breaks(loop)
    methods = set(vars(model))
    with pytest.raises(RuntimeError, match="broken on purpose"):
        run(quiet_trainer(*callbacks, max_epochs=1), model, loop)
    assert not {m for m in set(vars(model)) - methods if callable(getattr(model, m))}
    assert not [m for m in model.modules() if m._forward_hooks or m._forward_pre_hooks]
    return flags_of(model)


def flags_after_a_run(*callbacks: L.Callback) -> list[bool]:
    model = Breaks("never")
    run(quiet_trainer(*callbacks, max_epochs=1), model, *LOOPS)
    return flags_of(model)


#: What a Trainer without callbacks of ours leaves.
flags_after_a_break_alone = cache(flags_after_a_break)
flags_after_a_run_alone = cache(flags_after_a_run)


@every_callback
@pytest.mark.parametrize("loop", LOOPS)
def test_modes_are_restored_after_an_exception(kind, loop):
    expected = nullcontext()
    if kind.__name__ in PRETRAINERS and loop == "fit":  # it breaks there as well
        expected = pytest.warns(StableLightningWarning, match="leaves the weights as they are")
    if loop in ("test", "predict"):
        expected = steps_aside(kind)
    with expected:
        flags = flags_after_a_break(loop, make(kind))
    assert flags == flags_after_a_break_alone(loop)


@every_callback
def test_modes_are_restored_after_a_run(kind):
    assert flags_after_a_run(make(kind)) == flags_after_a_run_alone()


# ---- around other people's modules --------------------------------------------------------------


@every_callback
@pytest.mark.parametrize("loop", LOOPS)
def test_boring_model_unchanged(kind, loop):
    callback = make(kind)
    trainer = quiet_trainer(callback, max_epochs=1, limit_train_batches=2, limit_val_batches=2)
    # BoringModel is one Linear: whoever must sample says that it cannot, and how to mend it.
    samples = kind.__name__ in SAMPLERS and loop in ("test", "predict")
    expected = pytest.raises(NothingRandomError, match="add_dropout") if samples else nullcontext()
    if kind.__name__ in SWAPPERS and loop == "fit":
        expected = pytest.warns(StableLightningWarning, match="hidden activation to swap")
    if kind.__name__ in FOLLOWERS and loop == "fit":
        expected = pytest.warns(StableLightningWarning, match="not logged")
    if kind.__name__ in PRETRAINERS and loop == "fit":
        expected = pytest.warns(StableLightningWarning, match="leaves the weights as they are")
    if kind.__name__ in FREEZERS and loop == "fit":
        expected = pytest.warns(StableLightningWarning, match="a single group")
    if kind.__name__ in FITTERS and loop != "validate":
        expected = steps_aside(kind)
    with expected:
        run(trainer, BoringModel(), loop)


@every_callback
@pytest.mark.parametrize("loop", LOOPS)
def test_language_model_unchanged(kind, loop):
    model = LanguageModel()
    if (
        loop == "predict"
    ):  # the demo's forward takes two arguments, Lightning's default step gives one
        model.predict_step = lambda batch, batch_idx: model(*batch)
    expected = nullcontext()
    if kind.__name__ in FOLLOWERS and loop == "fit":
        expected = pytest.warns(StableLightningWarning, match="not logged")
    if kind.__name__ in PRETRAINERS and loop == "fit":
        expected = pytest.warns(StableLightningWarning, match="leaves the weights as they are")
    if kind.__name__ in PROBERS and loop == "fit":  # one label for each word
        expected = pytest.warns(StableLightningWarning, match="nothing could be probed")
    if kind.__name__ in EXPORTERS and loop == "fit":  # it looks at the values of its mask
        expected = pytest.warns(StableLightningWarning, match=r"one that torch\.export can follow")
    if kind.__name__ in FITTERS and loop != "validate":
        expected = steps_aside(kind)
    with expected:
        run(quiet_trainer(make(kind), max_epochs=1), model, loop)


# ---- in every kind of Trainer -------------------------------------------------------------------


@every_callback
@pytest.mark.parametrize(
    "settings",
    [
        {"fast_dev_run": True},
        {"fast_dev_run": True, "inference_mode": False},
        {"barebones": True, "max_epochs": 1},
        {"num_sanity_val_steps": 2, "max_epochs": 1},
        {"precision": "bf16-mixed", "max_epochs": 1},
    ],
    ids=lambda settings: ",".join(settings),
)
def test_trainers(kind, settings):
    model = Seeded()
    run(quiet_trainer(make(kind), **settings), model, *LOOPS)
    assert all(value.isfinite().all() for value in weights(model))


@every_callback
@pytest.mark.parametrize("number", [1, 2])  # with none, all other tests
def test_any_number_of_loggers(kind, number, tmp_path):
    loggers = [CSVLogger(str(tmp_path), name=f"log{i}") for i in range(number)]
    trainer = quiet_trainer(make(kind), logger=loggers, max_epochs=1, log_every_n_steps=1)
    run(trainer, Seeded(), *LOOPS)
    written = []
    for logger in loggers:
        logger.save()
        written.append((Path(logger.log_dir) / "metrics.csv").read_text())
        assert "test_loss" in written[-1]
    assert len(set(written)) <= 1
