"""Going back, giving up, and going on from a checkpoint in the middle of it."""

import copy
import json
import math

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader

from stablelightning.callbacks.guard import GuardTraining
from stablelightning.errors import DivergedError, StableLightningWarning
from tests.callbacks.guarded import FEATURES, ROWS, Guarded, batches, different, fit, outcome
from tests.contracts.models import Resumable

pytestmark = pytest.mark.filterwarnings("ignore::stablelightning.errors.StableLightningWarning")
NAN = math.nan


def bad(number):
    return [torch.full((ROWS, FEATURES), NAN)] * number


class Records(Guarded):
    """Keeps what it was after each batch."""

    def on_train_batch_end(self, outputs, batch, batch_idx):
        optimizer = self.trainer.optimizers[0]
        guard = next(c for c in self.trainer.callbacks if isinstance(c, GuardTraining))
        states = [dict(self.state_dict()), optimizer.state_dict(), guard.state_dict()["judge"]]
        self.means.append(copy.deepcopy(states))


def weights_equal(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("host_memory", [False, True])
def test_training_goes_back_to_a_confirmed_state(host_memory):
    # Snapshots before the first step, after 4 and after 8; that after 8 is confirmed by 2 more.
    data = [*batches(10), *bad(3), *batches(3, seed=1)]
    guard = GuardTraining(window=4, max_trips=3, cut=0.25, host_memory=host_memory)
    model = Records(data)
    trainer = fit(model, guard, max_epochs=1)
    after_8, gone_back = model.means[7], model.means[12]
    assert weights_equal(gone_back[0], after_8[0])
    assert gone_back[2] == after_8[2] != model.means[8][2]  # what was usual then is usual again
    assert guard.rollbacks == 1
    assert guard.learning_rate_factor == 0.25
    rates = [entry[1]["param_groups"][0]["lr"] for entry in (gone_back, after_8)]
    assert rates[0] == pytest.approx(0.25 * rates[1])
    moments = [entry[1]["state"][0]["exp_avg"] for entry in (gone_back, after_8)]
    assert torch.equal(*moments)
    assert trainer.global_step == 13
    # The schedule goes on from there, at the lower level.
    twin = fit(Guarded(batches(11)), max_epochs=1)
    expected = twin.optimizers[0].param_groups[0]["lr"] * 0.25
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(expected)


def test_a_state_too_young_is_passed_over():
    model = Records([*batches(9), *bad(3)])
    guard = GuardTraining(window=4, max_trips=3)
    fit(model, guard, max_epochs=1)
    assert weights_equal(model.means[11][0], model.means[3][0])  # after 4, and not after 8


def test_trips_far_apart_are_no_trouble():
    data = [b for batch in batches(12) for b in (batch, batch, batch, *bad(1))]
    guard = GuardTraining(window=7, max_trips=3)
    fit(Guarded(data), guard, max_epochs=1)
    assert (guard.skipped, guard.rollbacks) == (12, 0)


def test_training_is_given_up_in_words(tmp_path):
    model = Guarded([*batches(6), *bad(20)])
    guard = GuardTraining(window=4, max_trips=2, max_rollbacks=2)
    logger = CSVLogger(tmp_path)
    with pytest.raises(DivergedError, match="gave up after 2 rollbacks") as error:
        fit(model, guard, max_epochs=1, logger=logger)
    assert "poisoned batch" in str(error.value)
    assert guard.skipped == 6
    assert guard.rollbacks == 2
    assert guard.learning_rate_factor == 0.25
    assert all(value.isfinite().all() for value in model.state_dict().values())
    lines = (tmp_path / "lightning_logs" / "version_0" / "events.jsonl").read_text().splitlines()
    decisions = [json.loads(line)["decision"] for line in lines]
    skips = ["skipped", "skipped"]
    assert decisions == [*skips, "rolled back", *skips, "rolled back", *skips, "gave up"]
    logger.save()
    header = (tmp_path / "lightning_logs" / "version_0" / "metrics.csv").read_text().split("\n")[0]
    assert {"guard/skipped", "guard/rollbacks", "guard/learning_rate_factor"} <= {
        *header.strip().split(",")
    }


def test_no_rollbacks_gives_up_at_the_first_trouble():
    model = Guarded([*batches(6), *bad(2)])
    with pytest.raises(DivergedError, match="gave up after 0 rollbacks"):
        fit(model, GuardTraining(window=4, max_trips=2, max_rollbacks=0), max_epochs=1)


def test_the_event_names_the_cause_and_the_rows():
    poison = torch.randn(ROWS, FEATURES)
    poison[3, 1] = NAN
    guard = GuardTraining()
    with pytest.warns(StableLightningWarning, match="poisoned batch: row 3 of the 8"):
        fit(Guarded([*batches(4), poison]), guard, max_epochs=1)
    event = guard.events.events[0]
    assert event["cause"] == "poisoned batch"
    assert event["evidence"]["rows"] == [3]
    assert (event["step"], event["batch"]) == (4, 4)


def test_the_event_names_rows_of_the_dataset():
    class Shuffled(Guarded):
        def train_dataloader(self):
            return DataLoader(torch.cat(self.data), batch_size=ROWS, shuffle=True)

    data = batches(6)
    data[2][5, 0] = NAN
    guard = GuardTraining()
    fit(Shuffled(data), guard)
    assert [event["indices"] for event in guard.events.events] == [[2 * ROWS + 5]] * 2


class Level(Guarded):
    """The data change for good, by a factor of 1e5."""

    def loss(self, batch):
        return super().loss(batch) * (1e5 if batch[0, 0] > 50 else 1.0)


def test_a_new_level_is_no_divergence():
    moved = [batch + 100.0 * (torch.arange(FEATURES) == 0) for batch in batches(30, seed=1)]
    guard = GuardTraining(window=40, max_trips=4, max_rollbacks=1)
    trainer = fit(Level([*batches(60), *moved]), guard, max_epochs=1)
    assert guard.rollbacks <= 1
    assert guard.skipped < 25
    assert trainer.global_step > 65


# ---- going on from a checkpoint -----------------------------------------------------------------


class GoesOn(Guarded):
    """Its loader can go on in the middle of an epoch, and its draws belong to the batch."""

    def training_step(self, batch, batch_idx):
        torch.manual_seed(self.trainer.fit_loop.epoch_loop.total_batch_idx)
        return super().training_step(batch, batch_idx)

    def train_dataloader(self):
        return Resumable(DataLoader(self.data, batch_size=None))


#: Where trouble is: long after the checkpoint; soon after it; on both sides of it.
#: Fills a batch whose loss is NaN.
BREAKS = 0.125


class LossBreaks(GoesOn):
    def loss(self, batch):
        return super().loss(batch) * (NAN if (batch == BREAKS).all() else 1.0)


TROUBLE = {
    "after": ({16, 17, 18}, 3),
    "at once": ({12, 13, 14}, 3),
    "before and after": ({10, 12, 13}, 3),
    "twice": ({5, 6, 7, 14, 15, 17}, 3),
}


@pytest.mark.parametrize("saved", [8, 11])
@pytest.mark.parametrize("trouble", TROUBLE)
@pytest.mark.parametrize("window", [7, 30])
def test_a_resumed_run_goes_back_to_the_same_state(window, trouble, saved, tmp_path):
    places, max_trips = TROUBLE[trouble]
    # Of ordinary inputs: what is wrong with the data itself counts in a row only.
    breaking = torch.full((ROWS, FEATURES), BREAKS)
    data = [breaking if n in places else batch for n, batch in enumerate(batches(24))]
    settings = {"window": window, "max_trips": max_trips}
    guards = GuardTraining(**settings), GuardTraining(**settings)
    kept = _SaveOnce(tmp_path / "at.ckpt", saved)
    unbroken = fit(LossBreaks(data), guards[0], kept, max_epochs=1)
    state = torch.load(tmp_path / "at.ckpt", weights_only=True)
    trainer = _resumed(LossBreaks(data), guards[1], tmp_path / "at.ckpt")
    assert guards[0].rollbacks == guards[1].rollbacks
    if window == 7:
        assert guards[0].rollbacks > 0
    assert different(_without_draw(unbroken), _without_draw(trainer)) == []
    assert guards[0].events.events == guards[1].events.events
    assert state["global_step"] == saved


class _SaveOnce(L.Callback):
    """Writes one checkpoint, when so many steps were taken."""

    def __init__(self, path, step):
        self.path, self.step = path, step

    def on_train_batch_end(self, trainer, *args):
        if trainer.global_step == self.step and not self.path.exists():
            trainer.save_checkpoint(self.path)


def _resumed(model, guard, path):
    from tests.callbacks.modules import quiet_trainer

    trainer = quiet_trainer(guard, max_epochs=1)
    trainer.fit(model, ckpt_path=path, weights_only=True)
    return trainer


def _without_draw(trainer):
    trainer.lightning_module.draw = None
    return {k: v for k, v in outcome(trainer).items() if k not in ("metrics", "draw")}


def test_a_calm_checkpoint_holds_no_snapshot(tmp_path):
    guard = GuardTraining(window=4)
    trainer = fit(Guarded(batches(9)), guard, _SaveOnce(tmp_path / "calm.ckpt", 8), max_epochs=1)
    state = torch.load(tmp_path / "calm.ckpt", weights_only=True)["callbacks"]["GuardTraining"]
    assert state["snapshots"] == []
    assert trainer.global_step == 9


def test_nothing_is_held_after_a_run():
    guard = GuardTraining()
    fit(Guarded(batches(3)), guard, max_epochs=1)
    assert guard.state_dict()["snapshots"] == []
    held = [value for value in vars(guard).values() if isinstance(value, nn.Module)]
    assert held == []


def test_a_second_fit_goes_on_with_the_rate_that_was_cut(tmp_path):
    class Plain(Guarded):
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.05)

    good, guard = batches(4), GuardTraining(max_trips=1)
    trainer = fit(Plain([*good, *bad(1)]), guard, max_epochs=1)
    trainer.save_checkpoint(tmp_path / "cut.ckpt")
    for ckpt_path in (None, tmp_path / "cut.ckpt"):
        trainer.fit_loop.max_epochs += 1
        trainer.fit(Plain(good), ckpt_path=ckpt_path, weights_only=True if ckpt_path else None)
        assert guard.learning_rate_factor == 0.5
        assert trainer.optimizers[0].param_groups[0]["lr"] == 0.025


def test_rows_that_are_bad_in_every_epoch_cost_no_rate():
    data = [part for good in (batches(4), batches(4, seed=1)) for part in [*good, *bad(1)]]
    guard = GuardTraining(window=100, max_trips=3)
    fit(Guarded(data), guard, max_epochs=5)
    assert guard.skipped == 10
    assert guard.rollbacks == 0
    assert guard.learning_rate_factor == 1.0


def test_bad_rows_in_a_row_count():
    guard = GuardTraining(window=4, max_trips=3)
    fit(Guarded([*batches(10), *bad(3), *batches(3, seed=1)]), guard, max_epochs=1)
    assert guard.rollbacks == 1


def test_losses_that_break_now_and_then_cost_the_rate():
    class Breaks(Guarded):
        def loss(self, batch):
            loss = super().loss(batch)
            return loss * NAN if self.trainer.fit_loop.epoch_loop.total_batch_idx % 5 == 4 else loss

    guard = GuardTraining(window=100, max_trips=3)
    fit(Breaks(batches(20)), guard, max_epochs=1)
    assert guard.rollbacks == 1


def test_testing_an_earlier_checkpoint_forgets_nothing(tmp_path):
    guard = GuardTraining(window=4, max_trips=3)
    kept = _SaveOnce(tmp_path / "early.ckpt", 2)
    model = LossBreaks([*batches(10), *[torch.full((ROWS, FEATURES), BREAKS)] * 3])
    trainer = fit(model, guard, kept, max_epochs=1)
    assert (guard.skipped, guard.rollbacks) == (3, 1)
    model.test_step = lambda batch, batch_idx: model.loss(batch)
    trainer.test(model, DataLoader(batches(2), batch_size=None), ckpt_path=tmp_path / "early.ckpt")
    assert (guard.skipped, guard.rollbacks) == (3, 1)
