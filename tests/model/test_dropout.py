"""Added dropout changes sampling and nothing else: not the keys, not what eval gives."""

import copy
import io
import pickle
import subprocess
import sys
import textwrap

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import stablelightning as sl
from stablelightning.errors import DataError, ModelError, NothingRandomError, RecipeError
from stablelightning.model.dropout import (
    DEFAULT_RATE,
    AddedDropout,
    add_dropout,
    added_dropouts,
    remove_dropout,
)
from stablelightning.model.dropout_rate import RATES

torchvision = pytest.importorskip("torchvision")
timm = pytest.importorskip("timm")

# One of every family; 64 px do, but where the architecture fixes or needs more.
TORCHVISION = {
    "alexnet": 64,
    "convnext_tiny": 32,
    "densenet121": 32,
    "efficientnet_b0": 32,
    "efficientnet_v2_s": 32,
    "googlenet": 32,
    "inception_v3": 75,
    "maxvit_t": 224,
    "mnasnet0_5": 32,
    "mobilenet_v2": 32,
    "mobilenet_v3_small": 32,
    "regnet_x_400mf": 32,
    "resnet18": 32,
    "resnet50": 32,
    "resnext50_32x4d": 32,
    "shufflenet_v2_x0_5": 32,
    "squeezenet1_1": 32,
    "swin_t": 32,
    "swin_v2_t": 32,
    "vgg11": 32,
    "vit_b_32": 224,
    "wide_resnet50_2": 32,
}
TIMM = {
    "resnet10t": 64,
    "test_byobnet": 96,
    "test_convnext": 64,
    "test_efficientnet": 64,
    "test_maxvit": 160,
    "test_nfnet": 64,
    "test_vit": 160,
    "mixer_s32_224": 224,
    "levit_128s": 224,
    "mobilenetv3_small_050": 64,
}
NO_BLOCKS = {"alexnet", "vgg11"}


def build(name):
    torch.manual_seed(0)
    if name in TIMM:
        return timm.create_model(name, num_classes=10)
    kwargs = {}
    if name in ("googlenet", "inception_v3"):
        kwargs = {"aux_logits": False, "init_weights": False}
    return torchvision.models.get_model(name, weights=None, num_classes=10, **kwargs)


def state_of(model):
    flags = {name: module.training for name, module in model.named_modules()}
    return flags, {name: value.clone() for name, value in model.state_dict().items()}


def logits(output):
    return output[0] if isinstance(output, tuple) else output


def small_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3))


@pytest.mark.parametrize("where", ["head", "blocks"])
@pytest.mark.parametrize("name", [*TORCHVISION, *TIMM])
def test_a_whole_family(name, where):
    if where == "blocks" and name in NO_BLOCKS:
        with pytest.raises(ModelError, match="where='head'"):
            add_dropout(build(name), 0.2, where)
        return
    model = build(name).train()
    for parameter in model.parameters():
        if parameter.ndim == 2 and not parameter.any():
            nn.init.normal_(parameter)  # a head that starts at zero says 0 whatever is dropped
    flags, tensors = state_of(model)
    x = torch.randn(2, 3, *[{**TORCHVISION, **TIMM}[name]] * 2)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # what varies below is what was added
    model.eval()
    with torch.no_grad():
        before = logits(model(x))
    model.train()

    assert add_dropout(model, 0.3, where) is model

    assert {n: f for n, f in state_of(model)[0].items() if "added_dropout" not in n} == flags
    assert list(model.state_dict()) == list(tensors)
    assert all(torch.equal(value, tensors[key]) for key, value in model.state_dict().items())
    samples = sl.sample_predictions(model, x, samples=2, seed=0, call=lambda x: logits(model(x)))
    assert not torch.equal(samples[0], samples[1])
    assert state_of(model)[0] | flags == state_of(model)[0]
    model.eval()
    with torch.no_grad():
        assert torch.equal(logits(model(x)), before)


def test_new_dropout_trains_when_its_owner_trains():
    assert [d.training for d in added_dropouts(add_dropout(small_net().train())).values()] == [True]
    assert [d.training for d in added_dropouts(add_dropout(small_net().eval())).values()] == [False]


def test_checkpoints_load_both_ways():
    plain, other = (
        torchvision.models.resnet18(weights=None),
        torchvision.models.resnet18(weights=None),
    )
    dropped = add_dropout(torchvision.models.resnet18(weights=None), 0.2, "blocks")
    dropped.load_state_dict(plain.state_dict(), strict=True)
    other.load_state_dict(dropped.state_dict(), strict=True)
    assert torch.equal(other.fc.weight, plain.fc.weight)
    assert len(list(dropped.parameters())) == len(list(plain.parameters()))


@pytest.mark.parametrize("where", ["head", "blocks"])
def test_a_copy_drops_by_its_own_rate(where):
    model = add_dropout(torchvision.models.resnet18(weights=None, num_classes=5), 0.5, where)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        for dropout in added_dropouts(twin).values():
            dropout.p = 0.0
        assert all(d.p == 0.5 for d in added_dropouts(model).values())
        x = torch.randn(2, 3, 32, 32)
        with pytest.raises(NothingRandomError):
            sl.mc_dropout(twin, x, samples=2)
        assert sl.mc_dropout(model, x, samples=4, seed=0).epistemic.max() > 0
        remove_dropout(twin)
        assert not added_dropouts(twin)
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in twin.modules())
        assert added_dropouts(model)


def test_a_saved_model_keeps_its_dropout_when_a_new_process_adds_hooks(tmp_path):
    # torch numbers hooks from zero in every process: the second hook there would replace ours.
    spare = [nn.Linear(1, 1).register_forward_pre_hook(lambda *_: None) for _ in range(3)]
    model = add_dropout(small_net(), 0.5)
    assert next(iter(model[2]._forward_pre_hooks)) >= len(spare)
    torch.save(model, tmp_path / "model.pt")
    code = f"""
        import torch, stablelightning as sl
        model = torch.load({str(tmp_path / "model.pt")!r}, weights_only=False)
        for _ in range(10_000):
            model[2].register_forward_pre_hook(lambda module, args: None)
        print(len(model[2]._forward_pre_hooks))
        print(sl.mc_dropout(model, torch.ones(1, 4), samples=8, seed=0).epistemic.max().item() > 0)
    """
    told = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True
    )
    assert told.stdout.split() == ["10001", "True"], told.stderr


def test_channels_are_dropped_whole_and_scaled():
    dropout = AddedDropout(0.5, dims=2, widths=(8,)).train()
    out = dropout(torch.ones(64, 8, 5, 5))
    per_channel = out.flatten(2)
    assert (per_channel == per_channel[..., :1]).all()
    assert set(out.unique().tolist()) == {0.0, 2.0}


@pytest.mark.parametrize(
    "shape", [(16, 8), (16, 5, 8), (16, 5, 5, 8)], ids=["features", "tokens", "channels last"]
)
def test_everything_else_is_dropped_value_by_value(shape):
    torch.manual_seed(0)
    out = AddedDropout(0.5, dims=2, widths=(8,)).train()(torch.ones(shape))
    assert not (out == out[..., :1]).all()
    if out.ndim > 2:
        assert not (out == out[:, :, :1]).all()


@given(p=st.floats(0.0, 0.9), dims=st.sampled_from([0, 2]))
def test_the_mean_is_kept(p, dims):
    torch.manual_seed(0)
    out = AddedDropout(p, dims=dims).train()(torch.ones(4000, 10, 1, 1))
    # Six standard errors of a mean of 40000 masks of variance p/(1-p).
    assert abs(out.mean().item() - 1) <= 6 * (p / (1 - p) / 40_000) ** 0.5 + 1e-6


def test_every_head_gets_its_dropout_with_an_example():
    class TwoHeads(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.variance, self.mean = (nn.Linear(4, 4) for _ in range(3))

        def forward(self, *, x):
            x = self.body(x)
            return {"variance": self.variance(input=x), "mean": self.mean(x)}

    model, inputs = TwoHeads(), {"x": torch.randn(2, 4)}
    add_dropout(model, 0.5, example=inputs)
    assert list(added_dropouts(model)) == ["variance.added_dropout", "mean.added_dropout"]
    samples = sl.sample_predictions(model, inputs, samples=4, seed=0)
    assert samples["mean"].var(0).min() > 0
    assert samples["variance"].var(0).min() > 0  # called by keyword, and dropped all the same


def test_a_second_call_replaces_the_first():
    model = add_dropout(add_dropout(torchvision.models.resnet18(), 0.5, "blocks"), 0.2)
    assert [(n, d.p) for n, d in added_dropouts(model).items()] == [("fc.added_dropout", 0.2)]
    assert sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()) == 1


def test_a_refused_second_call_leaves_the_first():
    model = add_dropout(small_net(), 0.4)
    with pytest.raises(ModelError, match="where='blocks'"):
        add_dropout(model, 0.2, "blocks")
    assert [d.p for d in added_dropouts(model).values()] == [0.4]


def test_the_models_own_dropout_stays():
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.3), nn.Linear(4, 2))
    remove_dropout(add_dropout(model))
    assert isinstance(model[1], nn.Dropout)
    assert model[1].p == 0.3


class Residual(nn.Sequential):
    def forward(self, x):
        return x + super().forward(x)


class WithWeights(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        return self.two(self.one(x)), "attention"


def test_a_block_that_is_a_sequential_is_dropped_once():
    blocks = [Residual(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)) for _ in range(2)]
    model = add_dropout(nn.Sequential(*blocks, nn.Linear(8, 3)), 0.5, "blocks")
    assert [len(block) for block in blocks] == [3, 3]
    calls = []
    for dropout in added_dropouts(model).values():
        dropout.register_forward_hook(lambda *_: calls.append(1))
    sl.sample_predictions(model, torch.randn(2, 8), samples=1)
    assert len(calls) == len(blocks)


def test_a_block_that_returns_a_tuple_is_dropped_in_its_first_entry():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList(WithWeights() for _ in range(2))
            self.head = nn.Linear(8, 3)

        def forward(self, x):
            for block in self.blocks:
                x, name = block(x)
                assert name == "attention"
            return self.head(x)

    model = add_dropout(Model(), 0.5, "blocks")
    samples = sl.sample_predictions(model, torch.randn(2, 8), samples=3, seed=0)
    assert samples.var(0).min() > 0


def test_a_block_that_returns_something_else_is_refused_in_words():
    class Block(WithWeights):
        def forward(self, x):
            return {"x": super().forward(x)[0]}

    model = nn.Sequential(Block(), Block(), nn.Linear(8, 3))
    add_dropout(model, 0.5, "blocks")
    with pytest.raises(ModelError, match="Block gave dict; use where='head'"):
        model[0](torch.randn(2, 8))


def test_the_block_that_holds_the_head_is_left_alone():
    model = nn.ModuleList(
        nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)) for _ in range(3)
    )
    net = nn.Sequential(*model)
    add_dropout(net, 0.5, "blocks")
    assert {name.split(".")[0] for name in added_dropouts(net)} == {"0", "1"}


def test_dropout_works_under_vmap():
    model = add_dropout(torchvision.models.resnet18(num_classes=4), 0.5, "blocks")
    for module in model.eval().modules():
        module.training = isinstance(module, AddedDropout)
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        out = torch.vmap(lambda _: model(x), randomness="different")(torch.zeros(3))
    assert out.shape == (3, 2, 4)
    assert not torch.equal(out[0], out[1])


def test_dropout_is_trained_through():
    model = add_dropout(small_net(), 0.5).train()
    model(torch.randn(8, 4)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_the_default_rate():
    assert [d.p for d in added_dropouts(add_dropout(small_net())).values()] == [DEFAULT_RATE]


@pytest.mark.parametrize("p", [-0.1, 1, 1.5, float("nan"), "0.1", True])
def test_a_rate_outside_its_range_is_refused(p):
    with pytest.raises(RecipeError, match=r"p must be a rate in \[0, 1\)"):
        add_dropout(small_net(), p)


def test_what_else_is_refused():
    with pytest.raises(RecipeError, match="'head' or 'blocks', got 'tail'"):
        add_dropout(small_net(), 0.1, "tail")
    with pytest.raises(RecipeError, match="beside data"):
        add_dropout(small_net(), 0.1, data=[])
    with pytest.raises(DataError, match="it is empty"):
        add_dropout(small_net(), data=[])
    with pytest.raises(DataError, match=r"\(inputs, target\)"):
        add_dropout(small_net(), data=[torch.randn(2, 4)])
    with pytest.raises(ModelError, match=r"torch\.nn\.Module, got function"):
        add_dropout(lambda x: x)
    with pytest.raises(ModelError, match="TorchScript"):
        add_dropout(torch.jit.trace(small_net(), torch.randn(1, 4)))
    with pytest.raises(ModelError, match=r"before torch\.compile"):
        add_dropout(torch.compile(small_net()))
    in_place = small_net()
    in_place.compile()
    with pytest.raises(ModelError, match=r"before torch\.compile"):
        add_dropout(in_place)


def overconfident_classifier():
    """Nine votes of +-1; the labels follow their sum gently, the model as if it were certain."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Identity(), nn.Linear(9, 2, bias=False))
    with torch.no_grad():
        model[1].weight.copy_(torch.stack([torch.full((9,), 10.0), torch.full((9,), -10.0)]))
    x = torch.randint(2, (400, 9)) * 2.0 - 1
    target = torch.bernoulli(torch.sigmoid(-0.4 * x.sum(1))).long()
    return model, [(x[:200], target[:200]), (x[200:], target[200:])]


def test_data_chooses_the_rate_that_is_most_likely_and_keeps_the_table():
    model, data = overconfident_classifier()
    add_dropout(model, data=iter(data))
    (dropout,) = added_dropouts(model).values()
    table = dropout.nll_by_rate
    assert tuple(table) == RATES
    assert dropout.p == min(table, key=table.get) >= 0.3
    assert table[dropout.p] < table[RATES[0]] / 2
    x, target = (torch.cat(part) for part in zip(*data, strict=True))
    chosen = sl.mc_dropout(model, x, samples=200, seed=1).mean.gather(1, target[:, None])
    measured = -chosen.clamp(min=1e-12).log().mean().item()
    assert measured < table[RATES[0]] / 2  # with other samples too


def test_noise_in_the_features_asks_for_no_dropout():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Identity(), nn.Linear(4, 3))
    x = torch.randn(64, 4)
    with torch.no_grad():
        model[1].weight.mul_(5)
        target = torch.distributions.Categorical(logits=model(x)).sample()
    (dropout,) = added_dropouts(add_dropout(model, data=[(x, target)])).values()
    assert dropout.p < 0.3  # the model is right as it stands
    assert dropout.nll_by_rate[dropout.p] < dropout.nll_by_rate[RATES[-1]]


@pytest.mark.parametrize("shape", [(64,), (64, 1)])
def test_data_chooses_for_a_regression_without_a_variance_head(shape):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
    x = torch.randn(64, 4)
    target = (model(x).detach()[:, 0] + 0.05 * torch.randn(64)).reshape(shape)
    (dropout,) = added_dropouts(add_dropout(model, data=[(x, target)])).values()
    assert dropout.p == min(RATES)
    # With next to no dropout, the constant noise that is fitted is the noise of the targets.
    entropy = 0.5 * (1 + torch.tensor(2 * torch.pi * 0.05**2).log())
    assert dropout.nll_by_rate[min(RATES)] == pytest.approx(float(entropy), abs=0.5)


def test_data_chooses_for_independent_labels():
    torch.manual_seed(0)
    data = [(torch.randn(16, 4), torch.randint(2, (16, 3)))]
    model = add_dropout(small_net(), data=data, task="multilabel")
    (dropout,) = added_dropouts(model).values()
    assert all(0 < value < 27.7 for value in dropout.nll_by_rate.values())


def test_data_that_does_not_fit_leaves_no_dropout_behind():
    model = small_net()
    with pytest.raises(DataError, match="class indices"):
        add_dropout(model, data=[(torch.randn(8, 4), torch.zeros(8, 3))])
    assert not added_dropouts(model)
    with pytest.raises(DataError, match="must be finite"):
        add_dropout(
            nn.Sequential(nn.Identity(), nn.Linear(4, 1)),
            data=[(torch.randn(8, 4), torch.full((8,), torch.nan))],
        )


@pytest.mark.gpu
@pytest.mark.parametrize("where", ["head", "blocks"])
def test_on_a_gpu_with_data_on_the_cpu(where):
    model = torchvision.models.resnet18(weights=None, num_classes=4).cuda().eval()
    x, target = torch.randn(8, 3, 32, 32), torch.randint(4, (8,))
    with torch.no_grad():
        before = model(x.cuda())
    add_dropout(model, where=where, data=[(x, target)])
    assert {d.p for d in added_dropouts(model).values()} <= set(RATES)
    with torch.no_grad():
        assert torch.equal(model(x.cuda()), before)
    prediction = sl.mc_dropout(model, x.cuda(), samples=4, seed=0)
    assert prediction.epistemic.is_cuda
    assert prediction.epistemic.max() > 0


def test_choosing_leaves_the_generator_and_the_flags():
    model, data = overconfident_classifier()
    state = torch.get_rng_state()
    add_dropout(model.train(), data=data)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(m.training for m in model.modules())


def test_a_model_saved_whole_can_be_read_again():
    model = add_dropout(small_net(), 0.2)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    assert [d.p for d in added_dropouts(torch.load(buffer, weights_only=False)).values()] == [0.2]
