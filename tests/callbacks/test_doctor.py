"""ConsultDoctor sees what training would see, cures before the optimizer, and survives resume."""

import copy
import json
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from stablelightning.callbacks.doctor import ConsultDoctor
from stablelightning.callbacks.first_batches import first_batches, joined
from stablelightning.errors import (
    CheckpointError,
    DataError,
    ModelError,
    RecipeError,
    StableLightningWarning,
)
from stablelightning.model.cures import CHECKPOINT_KEY, recorded_treatments
from stablelightning.model.diagnosis import Diagnosis, Finding
from stablelightning.module import StableModule
from stablelightning.nn.added import SkippingSequential
from tests.callbacks.modules import Plain, data, quiet_trainer
from tests.contracts.models import Resumable, weights


class Deep(Plain):
    """Twelve plain layers; its dropout is drawn from the number of the batch."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        layers = [m for _ in range(12) for m in (nn.Linear(8, 8), nn.ReLU())]
        self.net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), *layers, nn.Linear(8, 3))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=0.01)

    def train_dataloader(self) -> Any:
        return Resumable(DataLoader(data(24), batch_size=4))

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(data(), batch_size=8)

    test_dataloader = predict_dataloader = val_dataloader

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        return self(batch[0])


@pytest.fixture
def deep_findings(monkeypatch):
    """A doctor whose one finding is that the net is plain and deep."""
    from stablelightning.callbacks import doctor

    def found(module: L.LightningModule, batch: Any, **_: Any) -> Diagnosis:
        made = real(module, batch)
        treated = bool(recorded_treatments(module))
        finding = Finding("plain-depth", "error", "", "deep", remedy="skip", cure="add-skips")
        made.findings = [] if treated else [finding]

        def cure(diagnosis: Diagnosis) -> Diagnosis:
            from stablelightning.model.cures import apply_cures

            done = apply_cures(module, diagnosis.findings, batch[0])
            again = found(module, batch)
            again.before, again.treatments = diagnosis, done
            return again

        made.cure = cure
        return made

    real = doctor.diagnose
    monkeypatch.setattr(doctor, "diagnose", found)


def fitted(model: L.LightningModule, *callbacks: L.Callback, **settings: Any) -> L.Trainer:
    ckpt_path = settings.pop("ckpt_path", None)
    trainer = quiet_trainer(*callbacks, **{"max_epochs": 2, **settings})
    trainer.fit(model, ckpt_path=ckpt_path)
    return trainer


# ---- settings -----------------------------------------------------------------------------------


def test_a_model_without_findings_is_told_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    nothing = Diagnosis([], [], 1.0, 0.0, 0.0, 0.0)
    monkeypatch.setattr("stablelightning.callbacks.doctor.diagnose", lambda *_: nothing)
    with caplog.at_level("INFO"):
        quiet_trainer(ConsultDoctor(), max_steps=1).fit(Plain(), data())
    assert "The doctor: no findings." in caplog.messages


@pytest.mark.parametrize("batches", [0, -1, True, 1.5])
def test_batches_must_be_a_count(batches):
    with pytest.raises(RecipeError, match="batches must be a whole number"):
        ConsultDoctor(batches=batches)


# ---- a diagnosis --------------------------------------------------------------------------------


def test_it_only_tells_unless_it_is_asked(deep_findings):
    plain, seen = Deep(), Deep()
    doctor = ConsultDoctor()
    with pytest.warns(StableLightningWarning, match="the doctor finds plain-depth"):
        fitted(seen, doctor)
    fitted(plain)
    assert doctor.diagnosis.findings[0].code == "plain-depth"
    assert all(map(torch.equal, weights(seen), weights(plain)))
    assert recorded_treatments(seen) == []


def test_the_optimizer_holds_what_a_cure_adds(deep_findings):
    model = Deep()
    doctor = ConsultDoctor(apply=True)
    trainer = fitted(model, doctor)
    assert isinstance(model.net, SkippingSequential)
    held = {id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]}
    assert held == {id(p) for p in model.parameters()}
    assert doctor.diagnosis.findings == []
    assert doctor.diagnosis.before.findings[0].code == "plain-depth"
    scales = [p for name, p in model.named_parameters() if "skip_scale" in name]
    assert len(scales) == 6
    assert all(scale.item() != pytest.approx(1 / 6, abs=1e-6) for scale in scales)  # they learn


def test_strict_ends_a_run_before_it_starts(deep_findings):
    model = Deep()
    with pytest.raises(ModelError, match=r"plain-depth; apply the cures"):
        fitted(model, ConsultDoctor(strict=True))
    fitted(Deep(), ConsultDoctor(apply=True, strict=True))


def test_what_cannot_be_examined_is_an_error_or_a_word():
    class Odd(BoringModel):
        def train_dataloader(self):
            return []

    with pytest.raises(DataError, match="is empty"):
        fitted(Odd(), ConsultDoctor())
    with pytest.warns(StableLightningWarning, match="steps aside"):
        fitted(Odd(), ConsultDoctor(required=False))


@pytest.mark.parametrize("hook", ["setup", "configure_model"])
def test_a_model_that_is_made_late_is_examined_when_it_is_there(deep_findings, hook):
    class Late(Deep):
        def __init__(self) -> None:
            super().__init__()
            self.kept, self.net = [self.net], None

        def _make(self, stage: str = "") -> None:
            self.net = self.net or self.kept.pop()

    setattr(Late, hook, Late._make)
    model, doctor = Late(), ConsultDoctor(apply=True)
    fitted(model, doctor)
    assert isinstance(model.net, SkippingSequential)
    assert hook not in vars(model)


def test_nothing_is_examined_where_nothing_is_trained():
    doctor = ConsultDoctor()
    quiet_trainer(doctor).test(Deep(), verbose=False)
    quiet_trainer(doctor, limit_train_batches=0, max_epochs=1).fit(Deep())
    assert doctor.diagnosis is None


def test_the_diagnosis_holds_neither_model_nor_batch(deep_findings):
    doctor = ConsultDoctor(apply=True)
    fitted(Deep(), doctor)
    assert doctor.diagnosis.cure is None
    assert doctor.diagnosis.before.cure is None


# ---- what is left -------------------------------------------------------------------------------


def test_numbers_and_the_page_lie_with_the_logs(deep_findings, tmp_path):
    logger = CSVLogger(str(tmp_path), name="log")
    fitted(Deep(), ConsultDoctor(apply=True), logger=logger, log_every_n_steps=1)
    folder = tmp_path / "log" / "version_0"
    assert {"doctor.html", "doctor.json", "doctor.png"} <= {p.name for p in folder.iterdir()}
    header = (folder / "metrics.csv").read_text().splitlines()[0]
    assert {"doctor/errors", "doctor/forward_slope"} <= set(header.split(","))
    told = json.loads((folder / "doctor.json").read_text())
    assert told["treatments"][0]["cure"] == "add-skips"


def test_without_a_logger_nothing_is_written(deep_findings, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fitted(Deep(), ConsultDoctor(apply=True))
    assert list(tmp_path.iterdir()) == []


def test_wandb_holds_the_page_and_the_tables(deep_findings, tmp_path):
    from stablelightning.report.wandb import RunLogger, finish_run
    from tests.report.offline import read_offline_run

    logger = RunLogger("doctor", save_dir=tmp_path, mode="offline")
    fitted(Deep(), ConsultDoctor(apply=True), logger=logger)
    finish_run(logger)
    logged = read_offline_run(tmp_path).metrics
    wanted = ("errors", "page", "findings", "layers", "treatments")
    for name in wanted:
        assert any(key.startswith(f"doctor/{name}") for key in logged), (name, logged)


# ---- checkpoints --------------------------------------------------------------------------------


@pytest.fixture
def saved(deep_findings, tmp_path):
    """A cured run of two epochs, with a checkpoint after the first."""
    every = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=6, save_top_k=-1)
    model = Deep()
    fitted(model, ConsultDoctor(apply=True), every, enable_checkpointing=True)
    return model, tmp_path / "step=6.ckpt", tmp_path / "step=12.ckpt"


def test_a_resumed_run_equals_the_unbroken_one(saved):
    unbroken, half, _ = saved
    resumed, doctor = Deep(), ConsultDoctor(apply=True)
    fitted(resumed, doctor, ckpt_path=half)
    assert doctor.diagnosis is None  # what it was told is in the checkpoint
    assert isinstance(resumed.net, SkippingSequential)
    assert all(map(torch.equal, weights(resumed), weights(unbroken)))
    assert recorded_treatments(resumed) == recorded_treatments(unbroken)


def test_what_lies_in_a_checkpoint_is_plain(saved):
    _, half, _ = saved
    checkpoint = torch.load(half, weights_only=True)
    assert [entry["cure"] for entry in checkpoint[CHECKPOINT_KEY]] == ["add-skips"]


@pytest.mark.parametrize("apply", [False, True])
def test_a_new_model_is_tested_and_predicts_as_the_cured_one(saved, apply):
    cured, _, last = saved
    for model in (cured, Deep()):  # the first has its treatments already
        trainer = quiet_trainer(ConsultDoctor(apply=apply))
        trainer.test(model, ckpt_path=last, verbose=False)
        predicted = torch.cat(trainer.predict(model, ckpt_path=last))
        with torch.no_grad():
            expected = cured.eval()(data().tensors[0])
        torch.testing.assert_close(predicted, expected)
        assert "on_load_checkpoint" not in vars(model)


def test_without_the_callback_the_weights_do_not_fit_in_silence(saved):
    _, _, last = saved
    with pytest.raises(RuntimeError, match="skip_scale"):
        quiet_trainer().test(Deep(), ckpt_path=last, verbose=False)


def test_another_model_is_refused(saved):
    _, _, last = saved
    with pytest.raises(CheckpointError, match="trained with"):
        quiet_trainer(ConsultDoctor()).test(Plain(), data_loader(), ckpt_path=last, verbose=False)


def data_loader() -> DataLoader[Any]:
    return DataLoader(data(), batch_size=8)


def test_a_stable_module_needs_no_callback(deep_findings, tmp_path):
    def made() -> StableModule:
        return StableModule(copy.deepcopy(Deep().net), task="classification", samples=0)

    keep = ModelCheckpoint(tmp_path, "kept")
    model = made()
    trainer = quiet_trainer(
        ConsultDoctor(apply=True), keep, max_epochs=1, enable_checkpointing=True
    )
    trainer.fit(model, data_loader())
    again = StableModule.load_from_checkpoint(tmp_path / "kept.ckpt", network=Deep().net)
    rows = data().tensors[0]
    assert torch.equal(again.eval()(rows), model.eval()(rows))
    assert isinstance(again.network, SkippingSequential)


# ---- the first batches --------------------------------------------------------------------------


class Looks(L.Callback):
    def __init__(self, number: int) -> None:
        self.number = number
        self.seen: list[Any] = []

    def setup(self, trainer, pl_module, stage):
        self.seen = first_batches(trainer, pl_module, self.number)


class Remembers(Deep):
    def training_step(self, batch, batch_idx):
        self.batches = [*getattr(self, "batches", []), batch]
        return super().training_step(batch, batch_idx)


def shuffled() -> DataLoader[Any]:
    return DataLoader(data(24), batch_size=4, shuffle=True)


def own_generator() -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(3)
    return DataLoader(data(24), batch_size=4, shuffle=True, generator=generator)


@pytest.mark.parametrize("loader", [shuffled, own_generator])
def test_training_sees_the_same_batches_afterwards(loader):
    seen = []
    for callbacks in ([], [Looks(2)]):
        torch.manual_seed(5)
        model = Remembers()
        torch.manual_seed(5)
        trainer = quiet_trainer(*callbacks, max_epochs=1)
        trainer.fit(model, loader())
        seen.append(model.batches)
    assert all(torch.equal(a[0], b[0]) for a, b in zip(*seen, strict=True))
    looks = callbacks[0]
    assert len(looks.seen) == 2


def test_batches_pass_through_the_modules_hooks():
    class Doubles(Deep):
        def on_after_batch_transfer(self, batch, dataloader_idx):
            return batch[0] * 2, batch[1]

    looks = Looks(1)
    fitted(Doubles(), looks)
    torch.testing.assert_close(looks.seen[0][0], data(24).tensors[0][:4] * 2)


def test_fewer_batches_and_several_loaders():
    class Several(Deep):
        def train_dataloader(self):
            return {"a": shuffled(), "b": DataLoader(data(24), batch_size=12)}

        def training_step(self, batch, batch_idx):
            return self.loss(batch["a"])

    looks = Looks(100)
    fitted(Several(), looks)
    assert len(looks.seen) == 6
    assert set(looks.seen[0]) == {"a", "b"}


def test_a_stream_is_read_too():
    class Stream(IterableDataset):
        def __iter__(self):
            yield from data(24)

    looks = Looks(3)
    quiet_trainer(looks, max_epochs=1).fit(Deep(), DataLoader(Stream(), batch_size=4))
    assert [len(batch[0]) for batch in looks.seen] == [4, 4, 4]


def test_rows_are_joined_where_they_can_be():
    one, two = (torch.ones(2, 3), [torch.zeros(2)]), (torch.ones(1, 3), [torch.zeros(1)])
    whole = joined([one, two])
    assert whole[0].shape == (3, 3)
    assert whole[1][0].shape == (3,)
    assert joined([one, (torch.ones(2, 4), [torch.zeros(2)])]) is one
    assert joined([one, {"x": torch.ones(2, 3)}]) is one
    single = (torch.ones(1, 3), torch.zeros(1))
    assert joined([single, single]) is single
