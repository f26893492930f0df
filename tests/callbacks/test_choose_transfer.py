"""The choice follows what can be read, is made once, and leaves nothing else behind."""

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from stablelightning.callbacks import ChooseTransfer
from stablelightning.callbacks.freeze_base import Position
from stablelightning.errors import RecipeError, StableLightningWarning
from tests.callbacks.modules import quiet_trainer
from tests.callbacks.transfer import Numbers, Pretrained, Unlabelled
from tests.processes import reports_of


def fitted(choose, model=None, **settings):
    model = Pretrained() if model is None else model
    trainer = quiet_trainer(choose, **{"max_epochs": 2, **settings})
    trainer.fit(model)
    return trainer, model


def state_of(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_a_near_task_with_few_labels_keeps_all_and_opens_the_upper_groups():
    choose = ChooseTransfer()
    before = state_of(Pretrained(count=20))
    _, model = fitted(choose, Pretrained(count=20), max_epochs=10)
    choice = choose.choice
    assert (choice.groups, choice.keep_layers, choice.open_groups) == (4, 3, 3)
    assert [change["open_groups"] for change in choose.history] == [1, 2, 3]
    after = state_of(model)
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert same == {name for name in before if name.startswith(("body.0", "body.1"))}
    assert "10 labels for each of 2 classes" in choose.reason


def test_a_far_task_draws_the_upper_groups_anew_and_opens_all():
    choose = ChooseTransfer()
    model = Pretrained(forgetful=True)
    before = state_of(model)
    trainer = quiet_trainer(choose, max_epochs=1, limit_train_batches=1)
    model.configure_optimizers = lambda: torch.optim.SGD(model.parameters(), lr=0.0)
    trainer.fit(model)
    assert (choose.choice.keep_layers, choose.choice.open_groups) == (1, 4)
    assert [change["open_groups"] for change in choose.history] == [4]
    after = state_of(model)
    kept = {n for n in before if torch.equal(before[n], after[n]) and "running" not in n}
    assert {"body.0.weight", "body.0.bias", "fc.weight", "fc.bias"} <= kept
    assert not {"body.3.weight", "body.5.weight"} & kept


def test_plenty_of_labels_open_all_at_rates_by_depth():
    choose = ChooseTransfer()
    trainer, _ = fitted(choose, Pretrained(count=220), max_epochs=1)
    assert choose.choice.open_groups == 4
    rates = [group["lr"] for group in trainer.optimizers[0].param_groups]
    assert rates == pytest.approx([0.01 * 0.8**k for k in (3, 2, 1, 0)])


def test_the_users_own_decay_comes_first():
    choose = ChooseTransfer(layer_decay=0.5)
    trainer, _ = fitted(choose, Pretrained(count=220), max_epochs=1)
    rates = [group["lr"] for group in trainer.optimizers[0].param_groups]
    assert rates == pytest.approx([0.01 * 0.5**k for k in (3, 2, 1, 0)])


def test_numbers_are_probed_too():
    choose = ChooseTransfer()
    fitted(choose, Numbers())
    assert choose.profile.kind == "r2"
    assert "60 rows with numbers to predict" in choose.reason


@pytest.mark.parametrize("model", [Unlabelled(), Pretrained(count=3)], ids=["no target", "3 rows"])
def test_what_cannot_be_probed_is_said_and_opened_one_by_one(model):
    choose = ChooseTransfer()
    with pytest.warns(StableLightningWarning, match="nothing could be probed"):
        fitted(choose, model, max_epochs=3)
    assert choose.choice is None
    assert [change["open_groups"] for change in choose.history] == [1, 2, 3]
    assert "one group more is opened each epoch" in choose.reason


def test_a_training_without_an_end_opens_by_epochs_up_to_the_choice():
    choose = ChooseTransfer()
    fitted(choose, Pretrained(count=20), max_epochs=1)
    nowhere = [Position(epoch, 0, float("inf"), float("inf"), 0.0, 4) for epoch in range(5)]
    assert [choose.open_groups(position) for position in nowhere] == [1, 2, 3, 3, 3]


class Draws(Pretrained):
    """Keeps what the generator gives in its first step, and the first batch."""

    def training_step(self, batch, batch_idx):
        if self.trainer.global_step == 0:
            self.drawn = torch.rand(3)
            self.first = batch[0].clone()
            self.norm = self.body[1].running_mean.clone()
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize("settings", [{}, {"race": True, "steps": 3}], ids=["probe", "race"])
def test_generators_loaders_and_buffers_are_as_without_it(settings):
    seen = []
    for callbacks in ([], [ChooseTransfer(**settings)]):
        model = Draws(forgetful=True)
        torch.manual_seed(5)
        trainer = quiet_trainer(*callbacks, max_epochs=1)
        trainer.fit(model)
        assert not any(m._forward_pre_hooks for m in model.modules())
        assert "train" not in vars(model.body[1])
        seen.append(model)
    without, with_it = seen
    assert torch.equal(without.drawn, with_it.drawn)
    assert torch.equal(without.first, with_it.first)
    assert torch.allclose(without.norm, with_it.norm)


@pytest.mark.parametrize("forgetful", [False, True])
def test_a_run_goes_on_with_its_choice_and_draws_nothing(forgetful, tmp_path, monkeypatch):
    every = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=4, save_top_k=-1)
    first = ChooseTransfer()
    trainer = quiet_trainer(first, every, max_epochs=3, enable_checkpointing=True)
    trainer.fit(Pretrained(forgetful=forgetful))
    again = ChooseTransfer()
    monkeypatch.setattr(again, "_choose", None)
    monkeypatch.setattr(again, "_redraw", None)
    model = Pretrained(forgetful=forgetful)
    trainer = quiet_trainer(again, max_epochs=3)
    trainer.fit(model, ckpt_path=tmp_path / "step=4.ckpt", weights_only=True)
    assert (again.choice, again.profile) == (first.choice, first.profile)
    assert again.history == first.history
    assert again.reason == first.reason


def test_a_second_fit_draws_nothing_anew():
    choose = ChooseTransfer()
    _, model = fitted(choose, Pretrained(forgetful=True))
    before, choice = state_of(model), choose.choice
    model.configure_optimizers = lambda: torch.optim.SGD(model.parameters(), lr=0.0)
    for callback in (choose, ChooseTransfer()):
        fitted(callback, model, max_epochs=1)
        after = state_of(model)
        trained = [name for name in before if "running" not in name and "num" not in name]
        assert all(torch.equal(before[name], after[name]) for name in trained)
    assert choose.choice == choice


def test_another_seed_draws_other_weights_and_the_same_seed_the_same():
    drawn = []
    for seed in (1, 1, 2):
        model = Pretrained(forgetful=True)
        model.configure_optimizers = lambda m=model: torch.optim.SGD(m.parameters(), lr=0.0)
        torch.manual_seed(seed)
        fitted(ChooseTransfer(), model, max_epochs=1)
        drawn.append(model.body[3].weight.clone())
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_no_more_rows_are_read_than_asked_for():
    choose = ChooseTransfer(rows=12)
    fitted(choose)
    assert choose.profile.rows <= 20  # whole batches of ten
    assert "30 labels for each" in choose.reason  # counted over all rows


# ---- the race -----------------------------------------------------------------------------------


def test_plans_race_on_validation_data_and_are_told():
    choose = ChooseTransfer(race=True, steps=6)
    fitted(choose, Pretrained(count=20))
    names = {plan["name"] for plan in choose.raced}
    assert names == {"rule", "head", "gradual", "all", "all slowly", "lower half"}
    assert all(len(plan["losses"]) == 2 for plan in choose.raced)
    losses = [sum(plan["losses"]) for plan in choose.raced]
    assert losses == sorted(losses)
    assert "won the race" in choose.reason


def test_a_plan_that_is_clearly_better_overrules_the_rule():
    class OnlyTheHead(Pretrained):
        def training_step(self, batch, batch_idx):
            opened = any(p.requires_grad for p in self.body.parameters())
            return super().training_step(batch, batch_idx) * (float("inf") if opened else 1.0)

    choose = ChooseTransfer(race=True, steps=20)
    fitted(choose, OnlyTheHead(count=20), max_epochs=1)
    assert choose.choice.open_groups == 1
    assert "'head' won the race" in choose.reason
    assert choose.raced[0]["name"] == "head"


def test_without_validation_data_the_rule_stands():
    choose = ChooseTransfer(race=True)
    with pytest.warns(StableLightningWarning, match="keeps the plan of the rule"):
        fitted(choose, Numbers())
    assert choose.choice.groups == 4
    assert choose.raced == []


# ---- settings, processes ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"rows": 3}, "rows must be a whole number >= 4"),
        ({"steps": 0}, "steps must be a whole number >= 1"),
        ({"race": "yes"}, "race must be true or false, got 'yes'"),
        ({"layer_decay": 2.0}, "2.0"),
    ],
)
def test_settings_out_of_range_are_refused(settings, says):
    with pytest.raises(RecipeError, match=says):
        ChooseTransfer(**settings)


def on_two_processes(rank):
    model = Pretrained(forgetful=True)
    torch.manual_seed(rank)  # processes that were seeded differently
    choose = ChooseTransfer()
    if rank == 1:  # sums differ in the last digit between devices
        usual = choose._choose

        def otherwise(trainer, pl_module):
            usual(trainer, pl_module)
            choose.reason = "another one"

        choose._choose = otherwise
    settings = {"strategy": "ddp", "devices": 2, "max_epochs": 1, "limit_train_batches": 2}
    quiet_trainer(choose, **settings).fit(model)
    return {"weights": state_of(model), "reason": choose.reason, "choice": str(choose.choice)}


def test_two_processes_choose_and_draw_the_same(tmp_path):
    first, second = reports_of(on_two_processes, tmp_path)
    assert first["reason"] == second["reason"]
    assert first["choice"] == second["choice"]
    learned = [name for name in first["weights"] if "running" not in name]
    assert all(torch.equal(first["weights"][n], second["weights"][n]) for n in learned)
