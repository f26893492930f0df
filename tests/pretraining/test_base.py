"""Every objective around every kind of network: made ready, trained, kept, written to a file."""

import copy
import pickle

import lightning as L
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from stablelightning.errors import DataError, ModelError
from stablelightning.model.weights_file import load_weights
from stablelightning.nn import MLP, ConvNet
from stablelightning.pretraining import (
    AuxiliaryTask,
    DenoisingAutoencoder,
    Pretraining,
    RotationPrediction,
)

IMAGES, ROWS = torch.randn(12, 1, 8, 8), torch.randn(12, 6)


def constant_label(batch):
    inputs = batch[0] if isinstance(batch, list | tuple) else batch
    return inputs, torch.arange(len(inputs)) % 2


OBJECTIVES = {
    "autoencoder": lambda net, **kw: DenoisingAutoencoder(net, **kw),
    "rotation": lambda net, **kw: RotationPrediction(net, **kw),
    "auxiliary": lambda net, **kw: AuxiliaryTask(net, num_labels=2, labels=constant_label, **kw),
}


def small():
    return ConvNet(1, 10, channels=[8], dropout=0.0)


def trainer(folder, **settings):
    usual = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "max_epochs": 1}
    usual |= {"enable_model_summary": False, "enable_checkpointing": False, "devices": 1}
    return L.Trainer(default_root_dir=folder, **(usual | settings))


def loader(inputs=IMAGES, *, labels=True):
    parts = (inputs, torch.zeros(len(inputs))) if labels else (inputs,)
    return DataLoader(TensorDataset(*parts), batch_size=6)


@pytest.fixture(params=OBJECTIVES)
def make(request):
    return OBJECTIVES[request.param]


def test_it_trains_in_any_trainer_and_every_parameter_moves(make, tmp_path):
    module = make(small())
    fit = trainer(tmp_path)
    fit.fit(module, loader(), loader())
    assert {"train/loss", "val/loss"} <= set(fit.callback_metrics)
    assert module.fitted["val/loss"] == fit.callback_metrics["val/loss"]
    held = {id(p) for group in fit.optimizers[0].param_groups for p in group["params"]}
    assert held == {id(p) for p in module.parameters()}
    module.loss(next(iter(loader()))).backward()
    assert all(p.grad is not None for p in module.parameters())


def test_targets_are_not_looked_at(make):
    module = make(small())
    module.ready(IMAGES)
    losses = []
    for target in (torch.zeros(12), torch.full((12,), float("nan"))):
        torch.manual_seed(0)
        losses.append(module.loss((IMAGES, target)))
    assert torch.equal(*losses)


def test_batches_without_targets_do(make, tmp_path):
    for data in (loader(labels=False), DataLoader(list(IMAGES), batch_size=6)):
        trainer(tmp_path, fast_dev_run=True).fit(make(small()), data)


def test_validation_draws_alike_each_time(make, tmp_path):
    module, run = make(small()), trainer(tmp_path)
    module.ready(IMAGES)
    first = run.validate(module, loader(), verbose=False)
    torch.rand(3)
    assert run.validate(module, loader(), verbose=False) == first


def test_an_evaluation_leaves_the_generators_alone(make):
    module = make(small())
    module.ready(IMAGES)
    before = torch.get_rng_state()
    module.validation_step(IMAGES, 0)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_head_is_off_and_the_output_is_features(make, tmp_path):
    net = small()
    module = make(net)
    assert isinstance(net.head, nn.Identity)
    assert module(IMAGES).shape == (12, 8)
    predicted = trainer(tmp_path).predict(module, loader())
    assert torch.cat(predicted).shape == (12, 8)


def test_a_checkpoint_makes_the_layers_again(make, tmp_path):
    module, run = make(small()), trainer(tmp_path)
    run.fit(module, loader())
    run.save_checkpoint(tmp_path / "a.ckpt")
    hyper = {"network": small()}
    if isinstance(module, AuxiliaryTask):
        hyper["labels"] = constant_label
    loaded = type(module).load_from_checkpoint(tmp_path / "a.ckpt", **hyper)
    assert loaded.state_dict().keys() == module.state_dict().keys()
    assert all(torch.equal(v, module.state_dict()[k]) for k, v in loaded.state_dict().items())


def test_a_checkpoint_tests_a_fresh_module(make, tmp_path):
    module, run = make(small()), trainer(tmp_path)
    run.fit(module, loader())
    (was,) = run.validate(module, loader(), verbose=False)
    run.save_checkpoint(tmp_path / "a.ckpt")
    (now,) = trainer(tmp_path).validate(
        make(small()), loader(), ckpt_path=tmp_path / "a.ckpt", verbose=False
    )
    assert now == was


def test_a_resumed_training_ends_where_an_unbroken_one_does(tmp_path):
    start = RotationPrediction(small())
    start.ready(IMAGES)
    weights = []
    for stops in ((2,), (1, 2)):
        resume = None
        for epochs in stops:
            # What resumes makes its layers from the checkpoint, whatever they were drawn as.
            module = RotationPrediction(small()) if resume else copy.deepcopy(start)
            run = trainer(tmp_path, max_epochs=epochs)
            run.fit(module, loader(), ckpt_path=resume)
            resume = tmp_path / f"{len(stops)}-{epochs}.ckpt"
            run.save_checkpoint(resume)
        weights.append(module.state_dict())
    unbroken, resumed = weights
    assert all(torch.equal(value, resumed[name]) for name, value in unbroken.items())


def test_it_pickles_and_copies(make):
    module = make(small())
    module.ready(IMAGES)
    for again in (pickle.loads(pickle.dumps(module)), copy.deepcopy(module)):
        assert torch.equal(again(IMAGES), module(IMAGES))


def test_the_file_holds_the_features_and_fine_tuning_misses_the_head_alone(make, tmp_path):
    module = make(small())
    trainer(tmp_path).fit(module, loader())
    path = module.export_backbone(tmp_path / "backbone.safetensors")
    net = small()
    report = load_weights(net, path)
    assert set(report.missing) == {"head.weight", "head.bias"}
    assert not report.unexpected
    kept = load_file(path)
    assert all(torch.equal(net.state_dict()[name], value) for name, value in kept.items())


def test_the_head_comes_back(make):
    net = small()
    head = net.head
    module = make(net)
    assert module.put_head_back() is net
    assert net.head is head
    assert net(IMAGES).shape == (12, 10)


def test_the_optimizer_is_that_of_the_settings(make, tmp_path):
    module = make(small(), optimizer=lambda p: torch.optim.SGD(p, lr=0.5))
    run = trainer(tmp_path, max_steps=1)
    run.fit(module, loader())
    assert type(run.optimizers[0]) is torch.optim.SGD


def test_a_module_made_ready_by_hand_trains_without_a_trainer(make):
    module = make(small())
    module.ready(IMAGES)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    module.loss(IMAGES).backward()
    optimizer.step()
    assert all(p.grad is not None for p in module.parameters())


def test_images_that_come_in_inference_mode_make_layers_that_can_be_trained(make):
    module = make(small())
    with torch.inference_mode():
        module.loss(IMAGES)
    module.loss(IMAGES).backward()


def test_a_network_without_a_head_keeps_all_of_its_layers(make):
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    keys = set(net.state_dict())
    module = make(net)
    module.ready(IMAGES)
    assert set(module.network.state_dict()) == keys


def test_a_last_linear_layer_is_kept_where_that_is_asked_for(make):
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 5))
    assert make(net, keep_head=True)(IMAGES).shape == (12, 5)


def test_a_network_of_maps_is_pooled_where_vectors_are_needed(make):
    module = make(nn.Sequential(nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.ReLU()))
    assert torch.isfinite(module.loss(IMAGES))


def test_what_is_no_plain_network_is_refused(make):
    for wrong in (ConvNet, L.LightningModule(), "resnet18"):
        with pytest.raises(ModelError, match="network must be a plain module"):
            make(wrong)
    with pytest.raises(ModelError, match="must be weights to pretrain"):
        make(nn.Sequential(nn.Flatten()))


def test_batches_of_something_else_are_refused_in_one_line(make):
    with pytest.raises(DataError, match="one float tensor"):
        make(small()).loss(torch.zeros(4, 3, dtype=torch.long))


def test_a_network_that_loses_rows_is_told():
    class Mean(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 3)

        def forward(self, x):
            return self.layer(x).mean(0, keepdim=True)

    with pytest.raises(ModelError, match="a row for each input, got"):
        DenoisingAutoencoder(Mean(), keep_head=True).loss(ROWS)


def test_an_objective_of_ones_own_needs_a_loss_alone(tmp_path):
    class Sum(Pretraining):
        def build(self, input_shape, feature_shape):
            self.readout = nn.Linear(feature_shape[0], 1)

        def loss(self, batch):
            inputs = self.inputs(batch)
            off = self.readout(self.vectors(inputs))[:, 0] - inputs.sum(1)
            return {"loss": off.square().mean(), "bias": off.mean()}

    run = trainer(tmp_path)
    run.fit(Sum(MLP(6, 2, hidden=[4])), loader(ROWS), loader(ROWS))
    assert {"val/loss", "val/bias"} <= set(run.callback_metrics)


def test_without_training_data_the_reason_is_told(tmp_path):
    empty = DataLoader(TensorDataset(IMAGES[:0]), batch_size=2)
    with pytest.raises(DataError, match="training data"):
        trainer(tmp_path).fit(RotationPrediction(small()), empty)


def test_an_average_of_the_weights_is_taken_of_the_complete_module(make, tmp_path):
    average = L.pytorch.callbacks.EMAWeightAveraging(decay=0.5)
    run = trainer(tmp_path, callbacks=[average])
    module = make(small())
    run.fit(module, loader(), loader())
    assert [type(callback).__name__ for callback in run.callbacks] == ["EMAWeightAveraging"]
    assert all(value.isfinite().all() for value in module.state_dict().values())
