"""What the doctor and a run say of gradient norms."""

from types import SimpleNamespace

import pytest
import torch

from stablelightning.callbacks import (
    ClipGradientAdaptive,
    ClipGradientNorm,
    ClipGradientValue,
    NormalizeGradients,
)
from stablelightning.callbacks.clip_sections import doctor_section, gradient_norms, run_section
from tests.callbacks.modules import Plain, loader, quiet_trainer
from tests.contracts.models import Seeded


def prepared(model):
    trainer = quiet_trainer(max_epochs=1)
    trainer.strategy.connect(model)
    trainer._data_connector.attach_data(model, train_dataloaders=loader())
    return SimpleNamespace(trainer=trainer, model=model)


def fitted(clip, model=None, **settings):
    torch.manual_seed(0)
    model = model or Plain()
    trainer = quiet_trainer(clip, **{"max_epochs": 3, **settings})
    trainer.fit(model, loader())
    return trainer, model


def test_the_doctor_measures_each_batch_and_leaves_the_model():
    torch.manual_seed(0)
    model = Seeded().eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    section = doctor_section(prepared(model))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert not model.training
    row = dict(zip(section.columns, section.rows[0], strict=True))
    assert row["batches"] == 3
    assert row["smallest"] <= row["median"] <= row["largest"]
    assert row["recommended max_norm"] == pytest.approx(min(max(2 * row["mean"], 1), 5))
    assert section.figure is not None


def test_norms_are_those_of_a_backward_pass():
    torch.manual_seed(0)
    model = Plain(rate=0.0)
    batch = next(iter(loader()))
    (norm,) = gradient_norms(model, [batch])
    model.loss(batch).backward()
    expected = torch.cat([p.grad.flatten() for p in model.parameters()]).norm()
    assert norm == pytest.approx(float(expected), rel=1e-6)


def test_a_model_without_a_gradient_is_told_so():
    model = Plain()
    for parameter in model.net[3].parameters():
        torch.nn.init.zeros_(parameter)
    model.loss = lambda batch: (model(batch[0]) * 0).sum()
    section = doctor_section(prepared(model))
    assert section.lead == "none of 3 batches has a gradient that is finite and above zero"


def test_a_run_tells_what_was_clipped():
    clip = ClipGradientNorm(steps=4, bounds=(0.01, 0.5))
    section = run_section(*fitted(clip))
    assert section.name == "clipping"
    assert section.rows == [[9, clip.records[0].clipped, section.rows[0][2], 0, clip.thresholds[0]]]
    assert section.numbers["clip/threshold"] == clip.thresholds[0]
    assert len(section.figure.axes) == 2


def test_a_run_that_clips_values_has_a_picture_of_its_own():
    section = run_section(*fitted(ClipGradientValue(0.01)))
    assert section.figure.axes[0].get_ylabel() == "largest entry of the gradients"
    assert section.numbers == {"clip/share": 1.0, "clip/threshold": 0.01}


def test_clipping_unit_by_unit_has_no_threshold_to_tell():
    section = run_section(*fitted(ClipGradientAdaptive(1e-4)))
    assert section.numbers == {"clip/share": 1.0}
    assert section.columns == ["steps", "clipped", "share", "not finite"]
    assert [len(row) for row in section.rows] == [4]


def test_nothing_to_tell():
    assert run_section(*fitted(NormalizeGradients())) is None
    trainer = quiet_trainer(max_epochs=1)
    trainer.fit(Plain(), loader())
    assert run_section(trainer, trainer.model) is None
