import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from stablelightning.model.defaults import default_parameters, reparametrized


def attention(**settings):
    return nn.MultiheadAttention(8, 2, **settings)


FRESH = {
    "linear": lambda: nn.Linear(30, 20),
    "no bias": lambda: nn.Linear(30, 20, bias=False),
    "bilinear": lambda: nn.Bilinear(6, 5, 4),
    "conv1d": lambda: nn.Conv1d(3, 8, 5),
    "conv2d grouped": lambda: nn.Conv2d(8, 8, 3, groups=4),
    "conv3d": lambda: nn.Conv3d(2, 4, 3),
    "transposed": lambda: nn.ConvTranspose2d(6, 4, 3),
    "transposed grouped": lambda: nn.ConvTranspose1d(6, 8, 4, groups=2),
    "lstm": lambda: nn.LSTM(5, 7, 2, bidirectional=True, proj_size=3),
    "gru": lambda: nn.GRU(5, 7),
    "rnn": lambda: nn.RNN(5, 7, bias=False),
    "cell": lambda: nn.LSTMCell(5, 7),
    "attention": attention,
    "attention with other keys": lambda: attention(kdim=5, vdim=6, add_bias_kv=True),
    "transformer layer": lambda: nn.TransformerEncoderLayer(8, 2, 16),
    "batch norm": lambda: nn.BatchNorm2d(4),
    "layer norm": lambda: nn.LayerNorm(4),
    "group norm": lambda: nn.GroupNorm(2, 4),
    "rms norm": lambda: nn.RMSNorm(4),
    "instance norm": lambda: nn.InstanceNorm1d(4, affine=True, track_running_stats=True),
    "prelu": lambda: nn.PReLU(3, init=0.1),
    "lazy": lambda: nn.LazyLinear(5),
    "meta": lambda: nn.Linear(5, 5, device="meta"),
}
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def verdicts(model):
    return {name: verdict.default for name, verdict in default_parameters(model).items()}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", FRESH)
def test_fresh_layers_look_default(name, dtype):
    for seed in range(5):
        torch.manual_seed(seed)
        model = nn.ModuleList([FRESH[name](), nn.Linear(30, 30)]).to(dtype)
        found = default_parameters(model)
        assert all(v.default for v in found.values()), found


@pytest.mark.parametrize("name", sorted(set(FRESH) - {"lazy", "meta"}))
def test_trained_layers_do_not(name):
    model = nn.ModuleList([FRESH[name](), nn.Linear(30, 30)])
    with torch.no_grad():
        for parameter in model[0].parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    found = verdicts(model)
    assert not any(default for key, default in found.items() if key.startswith("0."))


@pytest.mark.parametrize("rate", [1e-1, 1e-4])
def test_one_step_of_sgd_is_seen_in_every_tensor_that_moved(rate):
    model = nn.Sequential(nn.Linear(10, 30), nn.Tanh(), nn.Linear(30, 1))
    before = copy.deepcopy(model)
    model(torch.randn(64, 10)).square().mean().backward()
    torch.optim.SGD(model.parameters(), rate).step()
    found = verdicts(model)
    assert not any(found.values())
    assert all(verdicts(before).values())


def test_embeddings_go_with_the_rest_of_the_model():
    def net():
        return nn.Sequential(nn.Embedding(50, 8, padding_idx=3), nn.Linear(8, 30))

    assert all(verdicts(net()).values())
    trained = net()
    with torch.no_grad():  # a hundredth does not show in normal numbers
        trained[0].weight[4:].add_(0.01 * torch.randn(46, 8))
        trained[1].weight.add_(0.001)
    assert not any(verdicts(trained).values())
    padded = net()
    with torch.no_grad():
        padded[0].weight[3] = 0.1
    assert not verdicts(padded)["0.weight"]
    alone = default_parameters(nn.Embedding(50, 8))
    assert "without other layers" in alone["weight"].reason


def test_a_tiny_layer_goes_with_the_rest_of_the_model():
    tiny = default_parameters(nn.Linear(1, 1))
    assert "too small" in tiny["weight"].reason
    assert all(verdicts(nn.Sequential(nn.Linear(1, 1), nn.Linear(20, 20))).values())
    mixed = nn.Sequential(nn.Linear(1, 1), nn.Linear(20, 20))
    with torch.no_grad():
        mixed[1].weight.mul_(1.01)
    assert not any(verdicts(mixed).values())


def test_small_layers_speak_together():
    net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 3), nn.Tanh(), nn.Linear(3, 1))
    assert all(verdicts(net).values())


def test_a_bias_of_a_weight_that_was_set_counts_as_set():
    layer = nn.Linear(30, 30)
    nn.init.kaiming_normal_(layer.weight)
    found = default_parameters(layer)
    assert found["weight"].reason.startswith("not torch's default")
    assert found["bias"].reason == "its layer's weight is not torch's default"


def test_a_bias_that_was_set_leaves_its_weight_default():
    layer = nn.Linear(30, 30)
    nn.init.zeros_(layer.bias)
    assert verdicts(layer) == {"weight": True, "bias": False}


def test_a_norm_that_has_run_is_not_fresh():
    norm = nn.BatchNorm1d(4)
    norm(torch.randn(8, 4))
    assert not verdicts(norm)["weight"]
    assert "running statistics" in default_parameters(norm)["weight"].reason


def test_frozen_and_shared_parameters_are_named():
    net = nn.Sequential(nn.Linear(9, 9), nn.Linear(9, 9), nn.Linear(9, 9))
    net[0].weight.requires_grad = False
    net[2].weight = net[1].weight
    found = default_parameters(net)
    assert "frozen" in found["0.weight"].reason
    assert found["1.weight"].reason == "shared: 1.weight and 2.weight are one tensor"


def test_reparametrized_weights_are_named():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        layers = {
            "_SpectralNorm": parametrizations.spectral_norm(nn.Linear(9, 9)),
            "_WeightNorm": parametrizations.weight_norm(nn.Linear(9, 9)),
            "SpectralNorm": nn.utils.spectral_norm(nn.Linear(9, 9)),
            "WeightNorm": nn.utils.weight_norm(nn.Linear(9, 9)),
        }
    for name, layer in layers.items():
        assert name in reparametrized(layer)
        assert not any(verdicts(layer).values())
    assert reparametrized(nn.Linear(9, 9)) == ""


def test_what_torch_has_no_default_for_is_left():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.rand(20, 20))

    assert default_parameters(Own())["weight"].reason == "torch has no default for it"


def test_the_false_alarm_rate_over_many_layers():
    """2,000 layers; one alarm would be a rate five hundred times the one that is stated."""
    model = nn.ModuleList([nn.Linear(12, 9) for _ in range(2000)])
    assert all(verdicts(model).values())
