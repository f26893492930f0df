"""Healthy models: published ones in their own initialization, hand-made ones as people do it."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from stablelightning.nn.networks import MLP, ConvNet
from tests.model.zoo import networks as n
from tests.model.zoo import patients as p
from tests.model.zoo import sequences as s
from tests.model.zoo.patients import Case, Patient

# ---- published -----------------------------------------------------------------------------------

#: Name and the size of image to show it.
TORCHVISION = {
    "resnet18": 32,
    "resnet50": 64,
    "resnext50_32x4d": 64,
    "mobilenet_v2": 64,
    "mobilenet_v3_small": 64,
    "shufflenet_v2_x0_5": 64,
    "squeezenet1_1": 64,
    "densenet121": 64,
    "efficientnet_b0": 64,
    "regnet_y_400mf": 64,
    "mnasnet0_5": 64,
    "convnext_tiny": 32,
    "swin_t": 64,
    "googlenet": 64,
}

_TIMM = """
test_byobnet test_convnext test_convnext2 test_convnext3 test_efficientnet test_efficientnet_evos
test_efficientnet_gn test_efficientnet_ln test_mambaout test_nfnet test_resnet test_vit test_vit2
test_vit3 test_vit4 cait_xxs24_224 coat_lite_tiny convnext_atto convnextv2_atto dla46_c
edgenext_xx_small efficientvit_b0 ese_vovnet19b_slim eva02_tiny_patch14_224 fastvit_t8
ghostnet_050 gmlp_ti16_224 hardcorenas_a hgnetv2_b0 inception_next_atto lcnet_035 levit_128s
mambaout_femto mixer_s32_224 mnasnet_small mobilenetv4_conv_small_035 mobilevit_xxs nest_tiny
nf_resnet26 pit_ti_224 poolformer_s12 pvt_v2_b0 regnetx_002 repvgg_a0 repvit_m0_9 resmlp_12_224
resnet10t resnetblur18 resnetv2_50 rexnet_100 semnasnet_050 seresnet18 starnet_s1 tinynet_e
vit_tiny_patch16_224 xcit_nano_12_p16_224
"""
TIMM = _TIMM.split()

#: Shown in published runs only: nobody mends a rule on them.
TORCHVISION_HELD_OUT = {
    "resnet34": 32,
    "wide_resnet50_2": 64,
    "mobilenet_v3_large": 64,
    "shufflenet_v2_x1_0": 64,
    "squeezenet1_0": 64,
    "efficientnet_v2_s": 64,
    "regnet_x_400mf": 64,
    "mnasnet1_0": 64,
    "swin_v2_t": 64,
    "alexnet": 64,
}

_TIMM_HELD_OUT = """
caformer_s18 coatnet_nano_rw_224 cspresnet50 darknet17 davit_tiny deit3_small_patch16_224
deit_tiny_distilled_patch16_224 dla34 eca_nfnet_l0 ecaresnet26t efficientnet_lite0 efficientvit_m0
fbnetc_100 focalnet_tiny_srf gcvit_xxtiny gernet_s ghostnetv2_100 botnet26t_256 hiera_tiny_224
hrnet_w18_small maxvit_pico_rw_256 mixnet_s mnasnet_050 mobilenetv1_100 mobilevitv2_050
mvitv2_tiny nextvit_small poolformerv2_s12 rdnet_tiny regnety_002 repghostnet_050 res2net50_26w_4s
resnest14d resnet14t resnetrs50 selecsls42 sequencer2d_s shvit_s1 skresnet18 spnasnet_100
swinv2_cr_tiny_224 test_coatnet test_maxvit test_vit_relpos tf_efficientnetv2_b0 tiny_vit_5m_224
tinynet_a twins_svt_small visformer_tiny vit_relpos_small_patch16_224 vit_tiny_r_s16_p8_224
vovnet39a xcit_tiny_12_p16_224
"""
TIMM_HELD_OUT = _TIMM_HELD_OUT.split()


def _torchvision(name: str, size: int) -> Patient:
    maker = getattr(torchvision.models, name)
    more = {"aux_logits": False, "init_weights": True} if name == "googlenet" else {}
    return Patient(maker(num_classes=10, **more), p.classes(p.images(size=size)))


def _timm(name: str) -> Patient:
    try:
        model = timm.create_model(name, num_classes=10, img_size=64)
    except TypeError:  # any size will do
        model = timm.create_model(name, num_classes=10)
    return Patient(model, p.classes(p.images(size=64)))


# ---- hand-made: rows -----------------------------------------------------------------------------


def stack(
    widths: Sequence[int],
    activation: Callable[[], nn.Module],
    initialize: Callable[[Tensor], Any] | None = None,
    *more: Callable[[int], nn.Module],
) -> nn.Sequential:
    """Linear layers with the activation between; ``more`` makes modules after each (by width)."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths[:-1]):
        layers += [linear(inputs, outputs, initialize), activation()]
        layers += [make(outputs) for make in more]
    layers.append(linear(widths[-2], widths[-1], initialize))
    return nn.Sequential(*layers)


def linear(inputs: int, outputs: int, initialize: Callable[[Tensor], Any] | None) -> nn.Linear:
    """A linear layer with the given weights and zero biases, or in torch's own initialization."""
    layer = nn.Linear(inputs, outputs)
    if initialize is not None:
        initialize(layer.weight)
        nn.init.zeros_(layer.bias)
    return layer


def he_(weight: Tensor) -> Tensor:
    return nn.init.kaiming_normal_(weight)


def glorot_(weight: Tensor) -> Tensor:
    return nn.init.xavier_normal_(weight)


def tanh_(weight: Tensor) -> Tensor:
    return nn.init.xavier_normal_(weight, gain=5 / 3)


def lecun_(weight: Tensor) -> Tensor:
    return nn.init.kaiming_normal_(weight, nonlinearity="linear")


class ResidualRows(nn.Module):
    """Pre-norm residual blocks on rows."""

    def __init__(self, blocks: int, width: int = 32) -> None:
        super().__init__()
        self.read = nn.Linear(20, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, width)
            )
            for _ in range(blocks)
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.read(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(self.norm(x))


class Variational(nn.Module):
    """An autoencoder with a sampled code; returns all that its loss needs."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(20, 32), nn.ReLU())
        self.mean, self.log_variance = nn.Linear(32, 4), nn.Linear(32, 4)
        self.decoder = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 20))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        hidden = self.encoder(x)
        mean, log_variance = self.mean(hidden), self.log_variance(hidden)
        code = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
        return self.decoder(code), mean, log_variance


def _variational_loss(output: tuple[Tensor, Tensor, Tensor], target: Tensor) -> Tensor:
    decoded, mean, log_variance = output
    divergence = -0.5 * (1 + log_variance - mean**2 - log_variance.exp()).sum(-1).mean()
    return F.mse_loss(decoded, target) + divergence / target.shape[-1]


def _two_heads_loss(output: dict[str, Tensor], target: Tensor) -> Tensor:
    likelihood = F.nll_loss(output["classes"].clamp_min(1e-8).log(), target)
    return likelihood + F.mse_loss(output["number"], target.float() / 5)


def _rows(
    model: Callable[[], nn.Module], columns: int = 20, count: int = 10
) -> Callable[[], Patient]:
    return lambda: Patient(model(), p.classes(p.table(columns=columns), count))


def _regression(model: Callable[[], nn.Module], *shape: int) -> Callable[[], Patient]:
    return lambda: Patient(model(), p.numbers(p.table(), *shape))


def _labels() -> Patient:
    model = stack([20, 32, 32, 6], nn.ReLU, he_)
    batch = p.table(), torch.randint(2, (64, 6)).float()
    return Patient(model, batch, F.binary_cross_entropy_with_logits)


def _binary() -> Patient:
    model = nn.Sequential(*stack([20, 32, 1], nn.ReLU), nn.Sigmoid(), nn.Flatten(0))
    return Patient(model, (p.table(), torch.randint(2, (64,)).float()), F.binary_cross_entropy)


def _log_softmax() -> Patient:
    model = nn.Sequential(*stack([20, 32, 10], nn.ReLU, he_), nn.LogSoftmax(-1))
    return Patient(model, p.classes(p.table()), F.nll_loss)


def _autoencoder() -> Patient:
    inputs = p.table()
    return Patient(stack([20, 32, 6, 32, 20], nn.ReLU), (inputs, inputs), F.mse_loss)


def _frozen_body() -> Patient:
    model = stack([20, 32, 32, 10], nn.ReLU, he_)
    model[0].requires_grad_(False)
    model[2].requires_grad_(False)
    return Patient(model, p.classes(p.table()))


def _weight_norm() -> nn.Module:
    model = stack([20, 32, 32, 10], nn.ReLU, he_)
    for i in (0, 2):
        nn.utils.parametrizations.weight_norm(model[i])
    return model


def _spectral_norm() -> nn.Module:
    model = stack([20, 32, 32, 10], partial(nn.LeakyReLU, 0.1), he_)
    nn.utils.parametrizations.spectral_norm(model[2])
    return model


def _momentum() -> Patient:
    model = stack([20, 32, 10], nn.ReLU, he_)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, nesterov=True)
    return Patient(model, p.classes(p.table()), optimizer=optimizer)


def _prelu() -> Patient:
    model = stack([20, 32, 32, 10], nn.PReLU, he_)
    slopes = [q for m in model.modules() if isinstance(m, nn.PReLU) for q in m.parameters()]
    others = [q for q in model.parameters() if all(q is not slope for slope in slopes)]
    groups = [{"params": others, "weight_decay": 0.01}, {"params": slopes, "weight_decay": 0.0}]
    return Patient(model, p.classes(p.table()), optimizer=torch.optim.AdamW(groups))


def _bfloat16() -> Patient:
    model = stack([20, 32, 32, 10], nn.ReLU, he_).bfloat16()
    return Patient(model, p.classes(p.table().bfloat16()))


def _coordinates() -> Patient:
    grid = torch.rand(128, 2) * 2 - 1
    target = torch.sin(3 * grid[:, :1]) * torch.cos(3 * grid[:, 1:])
    return Patient(stack([2, 32, 32, 32, 1], nn.Tanh, tanh_), (grid, target), F.mse_loss)


# ---- hand-made: images, series, tokens -----------------------------------------------------------


def _lenet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64, 32),
        nn.ReLU(),
        nn.Linear(32, 10),
    )


def _image_autoencoder() -> Patient:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 4, 2, 1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 4, 2, 1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.ConvTranspose2d(16, 8, 4, 2, 1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.ConvTranspose2d(8, 3, 4, 2, 1),
    )
    inputs = p.images(size=16)
    return Patient(model, (inputs, inputs), F.mse_loss)


def _temporal() -> nn.Module:
    layers: list[nn.Module] = []
    for i, channels in enumerate((8, 24, 24, 24)):
        space = 2**i
        layers += [nn.Conv1d(channels, 24, 3, padding=space, dilation=space), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(24, 10))


def _segmentation() -> Patient:
    return Patient(n.UNet(), (p.images(8, 16), torch.randint(2, (8, 16, 16))), F.cross_entropy)


def _language() -> Patient:
    inputs = p.tokens()
    model = s.LanguageModel(blocks=3)
    return Patient(model, (inputs, inputs.roll(-1, 1)), lambda o, t: F.cross_entropy(o.mT, t))


def _bag_of_words() -> nn.Module:
    return nn.Sequential(nn.EmbeddingBag(50, 24), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 5))


def _images(model: Callable[[], nn.Module], **settings: int) -> Callable[[], Patient]:
    return lambda: Patient(model(), p.classes(p.images(**settings)))


def _series(model: Callable[[], nn.Module], count: int) -> Callable[[], Patient]:
    return lambda: Patient(model(), p.classes(p.series(), count))


def _tokens(model: Callable[[], nn.Module]) -> Callable[[], Patient]:
    return lambda: Patient(model(), p.classes(p.tokens(), 5))


def _drop(_: int) -> nn.Module:
    return nn.Dropout(0.1)


def _alpha_drop(_: int) -> nn.Module:
    return nn.AlphaDropout(0.05)


_HAND_MADE: dict[str, Callable[[], Patient]] = {
    "linear_regression": _regression(lambda: nn.Linear(20, 1), 1),
    "logistic_regression": _rows(lambda: nn.Linear(20, 10)),
    "mlp_torch_default": _rows(lambda: stack([20, 64, 64, 10], nn.ReLU)),
    "mlp_he": _rows(lambda: stack([20, 64, 64, 64, 64, 10], nn.ReLU, he_)),
    "mlp_dropout": _rows(lambda: stack([20, 64, 64, 10], nn.ReLU, he_, _drop)),
    "mlp_tanh": _rows(lambda: stack([20, 64, 64, 64, 10], nn.Tanh, glorot_)),
    "mlp_gelu": _rows(lambda: stack([20, 64, 64, 64, 10], nn.GELU, he_)),
    "mlp_silu": _rows(lambda: stack([20, 64, 64, 64, 10], nn.SiLU, he_)),
    "mlp_elu": _rows(lambda: stack([20, 64, 64, 64, 10], nn.ELU, lecun_)),
    "mlp_leaky": _rows(lambda: stack([20, 64, 64, 64, 10], partial(nn.LeakyReLU, 0.2), he_)),
    "mlp_selu": _rows(lambda: stack([20, *[48] * 8, 10], nn.SELU, lecun_, _alpha_drop)),
    "mlp_batch_norm": _rows(lambda: stack([20, *[48] * 8, 10], nn.ReLU, he_, nn.BatchNorm1d)),
    "mlp_layer_norm": _rows(lambda: stack([20, *[48] * 8, 10], nn.GELU, None, nn.LayerNorm)),
    "mlp_house": _rows(lambda: MLP(20, 10)),
    "mlp_house_variance": _regression(lambda: MLP(20, variance=True)),
    "mlp_regression": _regression(lambda: stack([20, 64, 64, 1], nn.ReLU, he_), 1),
    "mlp_many_targets": _regression(lambda: stack([20, 64, 64, 7], nn.GELU), 7),
    "mlp_labels": _labels,
    "mlp_binary": _binary,
    "mlp_log_softmax": _log_softmax,
    "residual_rows_10": _rows(lambda: ResidualRows(10)),
    "residual_rows_40": _rows(lambda: ResidualRows(40)),
    "gated": _rows(n.Gated, 24, 4),
    "softsign_by_hand": _rows(lambda: n.Chain(n.softsign, n.softsign), 24, 4),
    "gelu_by_hand": _rows(lambda: n.Chain(n.gelu, n.gelu_tanh), 24, 4),
    "autoencoder": _autoencoder,
    "tied_autoencoder": lambda: Patient(n.TiedAutoencoder(), (x := p.table(64, 24), x), F.mse_loss),
    "variational": lambda: Patient(Variational(), (x := p.table(), x), _variational_loss),
    "two_heads": lambda: Patient(n.TwoHeads(), p.classes(p.table(64, 24), 5), _two_heads_loss),
    "frozen_body": _frozen_body,
    "weight_norm": _rows(_weight_norm),
    "spectral_norm": _rows(_spectral_norm),
    "momentum": _momentum,
    "prelu_not_decayed": _prelu,
    "bfloat16": _bfloat16,
    "coordinates": _coordinates,
    "lenet": _images(_lenet, rows=32, size=16, channels=1),
    "conv_house": _images(lambda: ConvNet(3, 10), rows=32, size=16),
    "pre_activation_resnet": _images(n.PreActivationResNet, size=16),
    "densenet_by_hand": _images(n.DenseNet, size=16),
    "unet": _segmentation,
    "image_autoencoder": _image_autoencoder,
    "temporal": lambda: Patient(_temporal(), p.classes(p.series().mT)),
    "lstm": _tokens(lambda: s.RecurrentClassifier(nn.LSTM)),
    "lstm_two_layers": _tokens(lambda: s.RecurrentClassifier(nn.LSTM, layers=2)),
    "gru": _tokens(lambda: s.RecurrentClassifier(nn.GRU)),
    "gru_unrolled": lambda: Patient(s.Unrolled(), p.numbers(p.series(columns=24), 1)),
    "attention_by_hand": lambda: Patient(s.AttentionByHand(), p.classes(p.series(columns=24), 3)),
    "multihead_attention": _series(s.MultiheadClassifier, 3),
    "encoder_norm_last": _series(s.EncoderClassifier, 3),
    "encoder_norm_first": _series(lambda: s.EncoderClassifier(norm_first=True), 3),
    "language_model": _language,
    "bag_of_words": _tokens(_bag_of_words),
}

HAND_MADE = [Case(name, build) for name, build in _HAND_MADE.items()]


def _published(with_size: dict[str, int], names: list[str]) -> list[Case]:
    ours = [Case(f"torchvision/{n}", partial(_torchvision, n, s)) for n, s in with_size.items()]
    return ours + [Case(f"timm/{name}", partial(_timm, name)) for name in names]


PUBLISHED = _published(TORCHVISION, TIMM)
HEALTHY = [*HAND_MADE, *PUBLISHED]
HEALTHY_HELD_OUT = _published(TORCHVISION_HELD_OUT, TIMM_HELD_OUT)
