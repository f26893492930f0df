"""L2-SP around real optimizers: where it pulls to, what it leaves, and what a checkpoint keeps."""

import csv

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import nn

from stablelightning.callbacks import PruneGradually, RegularizeToStart
from stablelightning.errors import RecipeError, StableLightningWarning
from tests.callbacks.modules import quiet_trainer
from tests.callbacks.test_regularize import RATE, Classifier, fit

BODY, HEAD = "net.0.weight", "net.3.weight"


class Moved(Classifier):
    """One whose weights are somewhere else once training has begun, and with no gradient there."""

    def training_step(self, batch, batch_idx):
        return 0.0 * super().training_step(batch, batch_idx)

    def on_train_start(self):  # after the callbacks' own
        for parameter in self.parameters():
            parameter.data.add_(1.0)


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def seeded(kind: type[Classifier] = Classifier, **settings) -> Classifier:
    torch.manual_seed(0)
    return kind(**settings)


# ---- where it pulls -----------------------------------------------------------------------------


def test_a_step_divides_the_distance_from_the_start_and_shrinks_the_head():
    model = seeded(Moved)
    start = weights(model)
    fit(model, RegularizeToStart(2.0, head_strength=3.0), max_steps=1)
    after = weights(model)
    torch.testing.assert_close(after[BODY] - start[BODY], torch.full((8, 4), 1 / (1 + 2 * RATE)))
    torch.testing.assert_close(after[HEAD], (start[HEAD] + 1.0) / (1 + 3 * RATE))


def test_biases_norms_and_slopes_are_left_alone():
    model = seeded(Moved)
    start = weights(model)
    fit(model, RegularizeToStart(2.0))
    left = {n for n, p in weights(model).items() if torch.equal(p, start[n] + 1.0)}
    assert left == set(start) - {BODY, HEAD}


def test_what_is_at_its_start_stays_there_to_the_bit():
    class Still(Moved):
        def on_train_start(self):
            pass

    model = seeded(Still)
    start = weights(model)
    fit(model, RegularizeToStart(2.0, head_strength=0.0))
    assert all(torch.equal(p, start[name]) for name, p in weights(model).items())


def test_a_stronger_pull_ends_nearer_to_the_start():
    distances = []
    for strength in (0.01, 1.0, 100.0):
        model = seeded()
        start = weights(model)[BODY]
        fit(model, RegularizeToStart(strength), max_epochs=4)
        distances.append(float((weights(model)[BODY] - start).norm()))
    assert distances[0] > 1.2 * distances[1] > 2 * distances[2] > 0


def test_the_layers_that_begin_anew_can_be_named():
    model = seeded(Moved)
    start = weights(model)
    fit(model, RegularizeToStart(2.0, head=["net.0"], head_strength=3.0), max_steps=1)
    after = weights(model)
    torch.testing.assert_close(after[BODY], (start[BODY] + 1.0) / (1 + 3 * RATE))
    torch.testing.assert_close(after[HEAD] - start[HEAD], torch.full((3, 8), 1 / (1 + 2 * RATE)))


def test_without_a_head_everything_is_pulled_to_its_start():
    model = seeded(Moved)
    start = weights(model)
    fit(model, RegularizeToStart(1e6, head=[]), max_steps=1)
    for name in (BODY, HEAD):
        torch.testing.assert_close(weights(model)[name], start[name], atol=1e-4, rtol=0)


def test_the_start_is_what_was_loaded_before_training():
    class Loads(L.Callback):
        def setup(self, trainer, pl_module, stage):
            with torch.no_grad():
                pl_module.net[0].weight.fill_(7.0)

    model = seeded()
    fit(model, RegularizeToStart(1e6), Loads())
    torch.testing.assert_close(model.net[0].weight, torch.full((8, 4), 7.0), atol=1e-3, rtol=0)


def test_frozen_weights_stay_until_they_are_opened_and_are_pulled_then():
    class Opens(L.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            pl_module.net[0].weight.requires_grad_(trainer.current_epoch == 1)
            self.before = weights(pl_module)[BODY]

    model, opens = seeded(), Opens()
    start = weights(model)[BODY]
    fit(model, RegularizeToStart(1.0), opens, max_epochs=2)
    assert torch.equal(opens.before, start)
    free, again = seeded(), Opens()
    fit(free, again, max_epochs=2)
    pulled, unpulled = (float((weights(m)[BODY] - start).norm()) for m in (model, free))
    assert 0 < pulled < 0.9 * unpulled


# ---- what a checkpoint keeps --------------------------------------------------------------------


def test_a_resumed_run_is_pulled_to_the_same_start(tmp_path):
    every = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=2, save_top_k=-1)
    unbroken, pull = seeded(), RegularizeToStart(5.0)
    start = weights(unbroken)[BODY]
    quiet_trainer(pull, every, max_epochs=2, enable_checkpointing=True).fit(unbroken)
    torch.manual_seed(1)  # other weights than those that the checkpoint brings
    resumed, other = Classifier(), RegularizeToStart(5.0)
    trainer = quiet_trainer(other, max_epochs=2)
    trainer.fit(resumed, ckpt_path=tmp_path / "step=6.ckpt", weights_only=True)
    assert torch.equal(other.state_dict()["starts"][BODY], start)
    assert all(map(torch.equal, weights(resumed).values(), weights(unbroken).values()))


def test_a_second_training_begins_at_its_own_start():
    pull, model = RegularizeToStart(5.0), seeded()
    fit(model, pull)
    start = weights(model)[BODY]
    fit(model, pull)
    assert torch.equal(pull.state_dict()["starts"][BODY], start)


def test_training_that_goes_on_in_the_same_trainer_keeps_its_start():
    pull, model = RegularizeToStart(5.0), seeded()
    start = weights(model)[BODY]
    trainer = quiet_trainer(pull, max_epochs=1)
    trainer.fit(model)
    trainer.fit_loop.max_epochs = 2
    trainer.fit(model)
    assert trainer.global_step == 12
    assert torch.equal(pull.state_dict()["starts"][BODY], start)


def test_testing_a_checkpoint_forgets_nothing(tmp_path):
    every = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=2, save_top_k=-1)
    model, pull = seeded(), RegularizeToStart(5.0)
    model.test_step = lambda batch, batch_idx: None
    trainer = quiet_trainer(pull, every, max_epochs=1, enable_checkpointing=True)
    trainer.fit(model)
    starts = pull.state_dict()["starts"]
    saved = torch.load(tmp_path / "step=2.ckpt", weights_only=True)
    saved["callbacks"]["RegularizeToStart"]["starts"] = {}
    torch.save(saved, tmp_path / "other.ckpt")
    trainer.test(model, model.train_dataloader(), ckpt_path=tmp_path / "other.ckpt", verbose=False)
    assert pull.state_dict()["starts"].keys() == starts.keys() != set()


def test_a_checkpoint_that_knows_no_start_is_told(tmp_path):
    every = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=2, save_top_k=-1)
    quiet_trainer(every, max_epochs=1, enable_checkpointing=True).fit(seeded())
    trainer = quiet_trainer(RegularizeToStart(), max_epochs=2)
    with pytest.warns(StableLightningWarning, match="does not know where training began"):
        trainer.fit(seeded(), ckpt_path=tmp_path / "step=4.ckpt", weights_only=True)


def test_a_compiled_part_has_the_same_start_as_a_plain_one():
    starts = []
    for compiled in (False, True):
        model = seeded()
        if compiled:
            model.net = torch.compile(model.net, backend="eager")
        pull = RegularizeToStart()
        fit(model, pull, max_steps=1)
        starts.append(pull.state_dict()["starts"].keys())
    assert starts[0] == starts[1] == {BODY}


# ---- beside others, and what is told ------------------------------------------------------------


@pytest.mark.parametrize("first", ["pull", "prune"])
def test_pruned_weights_stay_zero(first):
    seen = []

    class Watch(L.Callback):
        def on_validation_end(self, trainer, pl_module):
            seen.append(float((pl_module.net[0].weight == 0).float().mean()))

    class Validated(Classifier):
        def validation_step(self, batch, batch_idx):
            pass

        val_dataloader = Classifier.train_dataloader

    callbacks = [RegularizeToStart(5.0), PruneGradually(0.5, start=0, end=1, per_layer=True)]
    if first == "prune":
        callbacks.reverse()
    model = fit(seeded(Validated), *callbacks, Watch(), max_epochs=3, num_sanity_val_steps=0)
    assert seen[-1] == 0.5
    assert float((model.net[0].weight == 0).float().mean()) == 0.5


def test_penalty_and_distance_are_logged(tmp_path):
    logger = CSVLogger(str(tmp_path), name="log")
    model, pull = seeded(), RegularizeToStart(0.5, head_strength=0.25)
    start = weights(model)[BODY]
    fit(model, pull, logger=logger, log_every_n_steps=3)
    logger.save()
    with next(tmp_path.rglob("metrics.csv")).open() as file:
        last = list(csv.DictReader(file))[-1]
    gone, head = weights(model)[BODY] - start, weights(model)[HEAD]
    penalty = 0.25 * gone.square().sum() + 0.125 * head.square().sum()
    assert float(last["regularize/penalty"]) == pytest.approx(float(penalty), rel=1e-4)
    distance = gone.norm() / start.norm()
    assert float(last["regularize/distance"]) == pytest.approx(float(distance), rel=1e-4)


def test_weight_decay_beside_it_is_told():
    with pytest.warns(StableLightningWarning, match=r"weight_decay of 0\.3"):
        fit(seeded(optimizer=torch.optim.AdamW, weight_decay=0.3), RegularizeToStart())


def test_a_model_without_weights_is_told():
    class Shift(Classifier):
        def __init__(self):
            super().__init__()
            self.net = nn.BatchNorm1d(4)

    with pytest.warns(StableLightningWarning, match="no weights to act on"):
        fit(Shift(), RegularizeToStart())


@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), True, "much", None])
def test_a_strength_out_of_range_is_refused(value):
    with pytest.raises(RecipeError, match="strength must be > 0"):
        RegularizeToStart(value)


@pytest.mark.parametrize("value", [-1, float("nan"), float("inf"), True, "much", None])
def test_a_strength_of_the_head_out_of_range_is_refused(value):
    with pytest.raises(RecipeError, match="head_strength must be >= 0"):
        RegularizeToStart(head_strength=value)


def test_a_head_that_is_not_there_is_refused():
    with pytest.raises(RecipeError, match=r"got 'net.30'; did you mean 'net.3'"):
        fit(Classifier(), RegularizeToStart(head=["net.30"]))
