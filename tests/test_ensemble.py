"""StableEnsemble: members trained side by side are members trained alone; checkpoints; settings."""

import copy
from functools import partial
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from stablelightning import mc_dropout
from stablelightning.callbacks import (
    ClipGradientAdaptive,
    ClipGradientNorm,
    EstimateUncertainty,
    GuardTraining,
    InitializeWeights,
    LimitWeightNorm,
    MonitorSignals,
    NormalizeGradients,
)
from stablelightning.ensemble import StableEnsemble
from stablelightning.errors import DataError, ModelError, RecipeError
from stablelightning.module import StableModule
from stablelightning.nn import MLP, QuantileMLP
from tests.processes import reports_of

MEMBERS = 3
PLAIN = partial(MLP, 4, 3, hidden=[8], dropout=0.0)
SGD = partial(torch.optim.SGD, lr=0.1, momentum=0.9)


def rows(number=24, task="classification"):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(number, 4, generator=generator)
    y = torch.randint(3, (number,), generator=generator)
    if task == "regression":
        y = x.sum(1)
    if task == "multilabel":
        y = torch.randint(2, (number, 3), generator=generator).float()
    return DataLoader(TensorDataset(x, y), batch_size=8)


def trainer(folder=None, **settings):
    keeps = folder is not None
    settings = {"max_epochs": 2, "enable_checkpointing": keeps, **settings}
    return L.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=folder, **settings,
    )  # fmt: skip


def alone(ensemble, number, **settings):
    return StableModule(ensemble.network.member(number), task=ensemble.task, **settings)


@pytest.mark.parametrize("engine", ["vmap", "loop"])
def test_training_together_is_training_each_alone(engine):
    settings = {"task": "classification", "optimizer": SGD}
    ensemble = StableEnsemble(PLAIN, members=MEMBERS, engine=engine, **settings)
    singles = [StableModule(ensemble.network.member(n), **settings) for n in range(MEMBERS)]
    trainer().fit(ensemble, rows())
    for number, single in enumerate(singles):
        trainer().fit(single, rows())
        for name, value in ensemble.network.member(number).state_dict().items():
            expected = single.network.state_dict()[name]
            torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-5)


def test_what_is_logged_is_the_mean_of_the_members_and_the_loss_of_the_mixture():
    ensemble = StableEnsemble(PLAIN, task="classification", members=MEMBERS)
    batch = next(iter(rows()))
    fit = trainer(max_steps=1)
    losses = [alone(ensemble, n).loss(batch) for n in range(MEMBERS)]
    fit.fit(ensemble, rows())
    torch.testing.assert_close(fit.callback_metrics["train/loss"], torch.stack(losses).mean())

    with torch.no_grad():
        inputs, target = batch
        mean = ensemble.network(inputs).softmax(-1).mean(0)
    fit.validate(ensemble, DataLoader(TensorDataset(*batch), batch_size=8), verbose=False)
    expected = -mean.gather(1, target[:, None]).log().mean()
    torch.testing.assert_close(fit.callback_metrics["val/loss"], expected)


@pytest.mark.parametrize(
    ("task", "make"),
    [
        ("classification", PLAIN),
        ("classification", partial(MLP, 4, 3, hidden=[8], dropout=0.5)),
        ("multilabel", PLAIN),
        ("regression", partial(MLP, 4, hidden=[8], dropout=0.0)),
        ("regression", partial(MLP, 4, hidden=[8], dropout=0.5, variance=True)),
    ],
)
def test_every_task_trains_tests_and_predicts(task, make):
    ensemble = StableEnsemble(make, task=task, members=MEMBERS)
    uncertain = EstimateUncertainty(samples=8)
    fit = trainer(callbacks=[uncertain])
    fit.fit(ensemble, rows(task=task), rows(8, task=task))
    (results,) = fit.test(ensemble, rows(8, task=task), verbose=False)
    assert all(value == value for value in results.values())
    has_dropout = any(isinstance(m, nn.Dropout) and m.p for m in ensemble.modules())
    assert uncertain.results["uncertainty/samples_used"] == MEMBERS * (8 if has_dropout else 1)
    assert uncertain.results["uncertainty/epistemic"] > 0
    prediction = fit.predict(ensemble, rows(8, task=task))[0]
    assert prediction.task == task
    assert prediction.engine == f"{MEMBERS} members"


TASKS = {
    "classification": PLAIN,
    "multilabel": PLAIN,
    "regression": partial(MLP, 4, hidden=[8], dropout=0.0),
    "gaussian": partial(MLP, 4, hidden=[8], dropout=0.0, variance=True),
    "quantiles": partial(QuantileMLP, 4, hidden=[8], dropout=0.0),
}


@pytest.mark.parametrize("kind", TASKS)
def test_the_loss_of_all_rows_is_the_mean_of_the_members_losses(kind):
    task = kind if kind in ("classification", "multilabel") else "regression"
    ensemble = StableEnsemble(TASKS[kind], task=task, members=MEMBERS)
    x, y = next(iter(rows(task=task)))
    if task == "classification":
        y[::3] = -100  # counts in no loss
    expected = torch.stack([alone(ensemble, n).loss((x, y)) for n in range(MEMBERS)]).mean()
    loss = ensemble._loss_of_all((x, y))
    assert loss is not None
    assert float(loss) == pytest.approx(float(expected), abs=1e-5)


def test_targets_of_another_shape_are_told_of_as_one_network_would():
    ensemble = StableEnsemble(PLAIN, task="classification", members=MEMBERS)
    x, y = next(iter(rows()))
    wrong = [(x, y[:5]), (x, y[:, None, None].expand(-1, 2, 2))]
    for batch in wrong:
        with pytest.raises(DataError) as told:
            alone(ensemble, 0).loss(batch)
        with pytest.raises(DataError) as told_of_all:
            ensemble.training_step(batch, 0)
        assert str(told_of_all.value) == str(told.value)


class Scaled(StableEnsemble):
    """A forward of its own, written for one network."""

    def forward(self, x):
        return super().forward(x / 10)[..., :3]


def test_a_forward_of_its_own_is_asked_for_every_member():
    ensemble = Scaled(partial(MLP, 4, 5, hidden=[8]), task="classification", members=MEMBERS)
    x, y = next(iter(rows()))
    ensemble.eval()
    outputs = [ensemble.network.member(n).eval()(x / 10)[:, :3] for n in range(MEMBERS)]
    expected = sum(nn.functional.cross_entropy(output, y) for output in outputs)
    assert float(ensemble.training_step((x, y), 0)) == pytest.approx(float(expected), abs=1e-5)


def test_the_plain_output_is_that_of_the_mixture():
    ensemble = StableEnsemble(PLAIN, task="classification", members=MEMBERS).eval()
    x = torch.randn(6, 4)
    mean = ensemble.network(x).softmax(-1).mean(0)
    torch.testing.assert_close(ensemble(x).softmax(-1), mean)
    torch.testing.assert_close(mc_dropout(ensemble, x).mean, mean.detach())

    labels = StableEnsemble(PLAIN, task="multilabel", members=MEMBERS).eval()
    torch.testing.assert_close(labels(x).sigmoid(), labels.network(x).sigmoid().mean(0))


def test_a_subclass_has_a_loss_of_its_own():
    class Weighted(StableEnsemble):
        def loss(self, batch):
            inputs, target = batch
            loss = nn.functional.cross_entropy(self(inputs), target, reduction="none")
            return {"loss": loss.mean(), "worst": loss.amax()}

    ensemble = Weighted(PLAIN, members=MEMBERS)
    fit = trainer()
    fit.fit(ensemble, rows())
    assert fit.callback_metrics["train/worst"] > fit.callback_metrics["train/loss"]
    assert ensemble.network.refusal == ""


def test_members_are_drawn_from_seeds_of_their_own():
    def drawn(members):
        L.seed_everything(3, verbose=False)
        return StableEnsemble(PLAIN, task="classification", members=members)

    three, five = drawn(3), drawn(5)
    weight = three.network.networks.get_parameter("body.0.weight")
    assert not torch.equal(weight[0], weight[1])
    assert torch.equal(weight, five.network.networks.get_parameter("body.0.weight")[:3])


def test_every_member_is_initialized_differently():
    ensemble = StableEnsemble(PLAIN, task="classification", members=MEMBERS)
    before = copy.deepcopy(ensemble.state_dict())
    callback = InitializeWeights("orthogonal")
    trainer(max_steps=1, callbacks=[callback], limit_train_batches=1).fit(
        StableEnsembleAtRest.of(ensemble), rows()
    )
    name = "network.networks.body.0.weight"
    weight = ensemble.state_dict()[name]
    assert not torch.equal(weight, before[name])
    for member in weight:
        torch.testing.assert_close(member.T @ member / (member.T @ member)[0, 0], torch.eye(4))
    assert not torch.allclose(weight[0], weight[1])


class StableEnsembleAtRest(StableEnsemble):
    """Trains without moving."""

    @classmethod
    def of(cls, ensemble):
        ensemble.__class__ = cls
        return ensemble

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def test_callbacks_of_training_work_beside_it():
    callbacks = [ClipGradientNorm(1.0), GuardTraining(), MonitorSignals()]
    ensemble = StableEnsemble(
        partial(MLP, 4, 3, hidden=[8], dropout=0.2), task="classification", members=MEMBERS
    )
    fit = trainer(callbacks=callbacks)
    fit.fit(ensemble, rows())
    assert fit.global_step == 6
    assert all(p.isfinite().all() for p in ensemble.parameters())


def test_a_run_resumes_to_the_same_weights_and_a_checkpoint_is_loaded(tmp_path):
    def fresh():
        L.seed_everything(0, verbose=False)
        return StableEnsemble(PLAIN, task="classification", members=MEMBERS, optimizer=SGD)

    whole = fresh()
    trainer(max_epochs=3).fit(whole, rows())
    first = trainer(tmp_path, max_epochs=1)
    first.fit(fresh(), rows())
    path = tmp_path / "half.ckpt"
    first.save_checkpoint(path)
    resumed = fresh()
    trainer(max_epochs=3).fit(resumed, rows(), ckpt_path=path)
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], value)

    loaded = StableEnsemble.load_from_checkpoint(path, network=PLAIN)
    assert loaded.members == MEMBERS
    assert loaded.task == "classification"


@pytest.mark.parametrize(
    ("settings", "error", "said"),
    [
        ({"members": 0}, RecipeError, "members must be"),
        ({"engine": "fast"}, RecipeError, "engine must be one of"),
        ({"network": lambda: 3}, ModelError, "network must make a module, got int"),
    ],
)
def test_bad_settings(settings, error, said):
    with pytest.raises(error, match=said):
        StableEnsemble(**{"network": PLAIN, "task": "classification", **settings})


@pytest.mark.parametrize("part", [ClipGradientAdaptive, NormalizeGradients, LimitWeightNorm])
def test_a_callback_that_would_take_members_for_units_is_refused(part):
    ensemble = StableEnsemble(PLAIN, task="classification", members=2)
    before = copy.deepcopy(ensemble.state_dict())
    with pytest.raises(RecipeError, match=part.__name__):
        trainer(callbacks=[part()]).fit(ensemble, rows())
    assert all(torch.equal(v, before[k]) for k, v in ensemble.state_dict().items())


def test_an_optimizer_with_one_search_for_all_members_is_refused():
    lbfgs = partial(torch.optim.LBFGS, lr=0.1)
    ensemble = StableEnsemble(PLAIN, task="classification", members=2, optimizer=lbfgs)
    with pytest.raises(RecipeError, match="LBFGS"):
        trainer().fit(ensemble, rows())


def test_without_a_task_there_is_nothing_to_train():
    with pytest.raises(ModelError, match="ensemble needs a task"):
        trainer().fit(StableEnsemble(PLAIN), rows())


def trained(rows_a_step, **settings):
    L.seed_everything(0, verbose=False)
    ensemble = StableEnsemble(PLAIN, task="classification", members=MEMBERS, optimizer=SGD)
    # All rows in every step, so that it does not matter which process sees which.
    batches = DataLoader(rows(32).dataset, batch_size=rows_a_step)
    trainer(**settings).fit(ensemble, batches)
    return {name: p.detach() for name, p in ensemble.named_parameters()}


def trained_on(rank):
    return trained(16, devices=2, strategy="ddp")


def test_two_processes_train_the_members_of_one(tmp_path):
    first, second = reports_of(trained_on, tmp_path)
    for name, value in trained(32).items():
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], value, rtol=1e-4, atol=1e-5)


class Object(nn.Module):
    """Returns what no tool for trees knows."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        return SimpleNamespace(logits=self.layer(x), inputs=x)


@pytest.mark.parametrize("engine", ["auto", "loop"])
def test_a_network_may_return_an_object(engine):
    ensemble = StableEnsemble(Object, task="classification", members=MEMBERS, engine=engine)
    batch = next(iter(rows()))
    expected = sum(alone(ensemble, n).loss(batch) for n in range(MEMBERS))
    assert float(ensemble.training_step(batch, 0)) == pytest.approx(float(expected), abs=1e-5)


class OwnNoise(StableEnsemble):
    """Reads a batch in its own way, which may ask the member."""

    def inputs_and_target(self, batch):
        assert self.network.is_member
        return batch


def test_a_reading_of_batches_of_its_own_is_asked_for_every_member():
    ensemble = OwnNoise(PLAIN, task="classification", members=MEMBERS)
    batch = next(iter(rows()))
    expected = sum(alone(ensemble, n).loss(batch) for n in range(MEMBERS))
    assert float(ensemble.training_step(batch, 0)) == pytest.approx(float(expected), abs=1e-5)


def test_the_quick_loss_is_that_of_several_processes_too():
    ensemble = StableEnsemble(PLAIN, task="classification", members=MEMBERS)
    ensemble.forward = ensemble.forward  # what Lightning leaves there when a strategy wraps a step
    assert ensemble._loss_of_all(next(iter(rows()))) is not None
    ensemble.forward = lambda x: x
    assert ensemble._loss_of_all(next(iter(rows()))) is None
