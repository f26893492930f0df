"""The models of the attribution tables, and the values of their consumers."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from tests.model.zoo import networks as n
from tests.model.zoo import sequences as s
from tests.model.zoo import tables as t

Function = Callable[[Tensor], Tensor]

#: The values of every consumer that has a name or is written out in these tables.
FUNCTIONS: dict[str, Function] = {
    "relu": F.relu,
    "elu": F.elu,
    "gelu": F.gelu,
    "silu": F.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "leaky_relu": lambda x: F.leaky_relu(x, 0.2),
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
    "~softsign": F.softsign,
    "~gelu": F.gelu,
    "~gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "~silu": F.silu,
    "~mish": F.mish,
    "~leaky": lambda x: F.leaky_relu(x, 0.1),
    "~relu": F.relu,
    "~squared_relu": lambda x: F.relu(x) ** 2,
    "~sine": lambda x: torch.sin(3.0 * x),
}


@dataclass(frozen=True)
class Expected:
    """One model of the zoo with its table."""

    name: str
    factory: Callable[[], tuple[nn.Module, Any]]
    table: str
    branches: list[t.ExpectedBranch] = field(default_factory=list)

    def __str__(self) -> str:
        return self.name


def images(model: nn.Module, size: int = 32) -> tuple[nn.Module, Tensor]:
    return model, torch.randn(2, 3, size, size)


def rows(model: nn.Module, width: int = 24) -> tuple[nn.Module, Tensor]:
    return model, torch.randn(6, width)


def steps(model: nn.Module, width: int = 8) -> tuple[nn.Module, Tensor]:
    return model, torch.randn(3, 5, width)


def tokens(model: nn.Module) -> tuple[nn.Module, Tensor]:
    return model, torch.randint(50, (3, 7))


# ---- the zoo -------------------------------------------------------------------------------------


def _two_rows() -> tuple[nn.Module, Any]:
    return n.Siamese(), (torch.randn(6, 24), torch.randn(6, 24))


def _by_hand() -> tuple[nn.Module, Any]:
    names = ("gelu", "gelu_tanh", "softsign", "silu", "mish", "leaky", "clamped", "squared_relu")
    return rows(n.Chain(*(getattr(n, name) for name in names), n.sine))


def _own_layer() -> tuple[nn.Module, Any]:
    layers = (n.Dense(24, 24), nn.ReLU(), n.Dense(24, 24), nn.Tanh(), nn.Linear(24, 4))
    return rows(nn.Sequential(*layers))


def _normed_weights() -> tuple[nn.Module, Any]:
    norms = (
        nn.utils.parametrizations.weight_norm,
        nn.utils.parametrizations.spectral_norm,
        nn.utils.spectral_norm,
    )
    layers = [norm(nn.Linear(24, 24)) for norm in norms]
    activations = (nn.ReLU(), nn.Tanh(), nn.SiLU())
    pairs = [module for pair in zip(layers, activations, strict=True) for module in pair]
    return rows(nn.Sequential(*pairs, nn.Linear(24, 4)))


def _vit() -> tuple[nn.Module, Any]:
    name = "vit_tiny_patch16_224"
    return images(timm.create_model(name, img_size=32, patch_size=8, num_classes=10))


ZOO = [
    Expected(
        "resnet18",
        lambda: images(torchvision.models.resnet18(num_classes=10)),
        t.RESNET18,
        t.RESNET18_BRANCHES,
    ),
    Expected(
        "convnext_tiny",
        lambda: images(torchvision.models.convnext_tiny(num_classes=10)),
        t.convnext_table(),
        t.CONVNEXT_BRANCHES,
    ),
    Expected("vit_tiny", _vit, t.vit_table(12), t.vit_branches(12)),
    Expected(
        "mobilenet_v3",
        lambda: images(torchvision.models.mobilenet_v3_small(num_classes=10), 64),
        t.mobilenet_table(),
        t.MOBILENET_BRANCHES,
    ),
    Expected(
        "pre_activation_resnet",
        lambda: images(n.PreActivationResNet(), 16),
        t.PRE_ACTIVATION,
        t.PRE_ACTIVATION_BRANCHES,
    ),
    Expected("densenet", lambda: images(n.DenseNet(), 16), t.DENSENET),
    Expected("unet", lambda: images(n.UNet(), 16), t.UNET),
    Expected("generator", lambda: rows(n.Generator(), 16), t.GENERATOR),
    Expected("conv_pool_relu", lambda: images(n.ConvPoolRelu(), 16), t.CONV_POOL_RELU),
    Expected("by_hand", _by_hand, t.BY_HAND),
    Expected("loop", lambda: rows(n.Chain(F.relu, F.relu, F.relu)), t.LOOP),
    Expected("shared_activation", lambda: rows(n.SharedActivation(nn.SiLU())), t.SHARED),
    Expected("own_layer", _own_layer, t.OWN_LAYER),
    Expected("normed_weights", _normed_weights, t.NORMED_WEIGHTS),
    Expected("tied_autoencoder", lambda: rows(n.TiedAutoencoder()), t.TIED),
    Expected("two_heads", lambda: rows(n.TwoHeads()), t.TWO_HEADS),
    Expected("siamese", _two_rows, t.SIAMESE),
    Expected("gated", lambda: rows(n.Gated()), t.GATED),
    Expected("highway", lambda: rows(n.Highway()), t.HIGHWAY),
    Expected("two_sided", lambda: rows(n.TwoSided()), t.TWO_SIDED),
    Expected("lstm", lambda: tokens(s.RecurrentClassifier(nn.LSTM)), t.RECURRENT),
    Expected("gru", lambda: tokens(s.RecurrentClassifier(nn.GRU, layers=2)), t.RECURRENT),
    Expected("unrolled", lambda: steps(s.Unrolled(), 24), t.UNROLLED),
    Expected(
        "swiglu_transformer",
        lambda: tokens(s.LanguageModel()),
        t.LANGUAGE_MODEL,
        t.LANGUAGE_MODEL_BRANCHES,
    ),
    Expected("attention_by_hand", lambda: steps(s.AttentionByHand(), 24), t.ATTENTION_BY_HAND),
    Expected("summed_attention", lambda: steps(s.SummedAttention(), 24), t.SUMMED_ATTENTION),
    Expected(
        "multihead_attention",
        lambda: steps(s.MultiheadClassifier()),
        t.MULTIHEAD,
        t.MULTIHEAD_BRANCHES,
    ),
    Expected(
        "encoder_norm_last",
        lambda: steps(s.EncoderClassifier()),
        t.encoder_table(2, norm_first=False),
        t.encoder_branches(2, norm_first=False),
    ),
    Expected(
        "encoder_norm_first",
        lambda: steps(s.EncoderClassifier(norm_first=True)),
        t.encoder_table(2, norm_first=True),
        t.encoder_branches(2, norm_first=True),
    ),
]
