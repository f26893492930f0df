"""Small networks with random parts, each with an input for it."""

from functools import partial
from typing import Any

import timm
import torch
import torchvision
from torch import nn
from torchvision.models.convnext import CNBlockConfig
from torchvision.models.mobilenetv3 import InvertedResidualConfig
from torchvision.ops import DropBlock2d, StochasticDepth

from tests.model import modules as m

Built = tuple[nn.Module, Any]


def rows(model: nn.Module) -> Built:
    return model, torch.randn(3, 8)


def steps(model: nn.Module, features: int = 8) -> Built:
    return model, torch.randn(3, 5, features)


def pixels(model: nn.Module, size: int = 32, rows: int = 2) -> Built:
    return model, torch.randn(rows, 3, size, size)


def small_images(drop: nn.Module) -> Built:
    layers = nn.Conv2d(3, 6, 3), nn.ReLU(), drop, nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(6, 4)), torch.randn(3, 3, 6, 6)


def resnet() -> Built:
    model = torchvision.models.resnet18(num_classes=5)
    model.fc = nn.Sequential(nn.Dropout(0.2), model.fc)
    return pixels(model)


def resnet_channels_last() -> Built:
    model, x = resnet()
    last = torch.channels_last
    return model.to(memory_format=last), x.contiguous(memory_format=last)


def timm_vit(**rates: float) -> Built:
    size = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}
    return pixels(timm.models.VisionTransformer(num_classes=5, **size, **rates))


def torchvision_vit() -> Built:
    rates = {"dropout": 0.1, "attention_dropout": 0.1}
    model = torchvision.models.VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=5, **rates)
    nn.init.normal_(model.heads.head.weight)  # zero otherwise, and so would be the output
    return pixels(model)


def mobilenet() -> Built:
    """In-place activations, and an in-place dropout in the head."""
    row = partial(InvertedResidualConfig, dilation=1, width_mult=1.0)
    rows = [row(8, 3, 16, 8, True, "HS", 2), row(8, 3, 16, 8, False, "RE", 1)]
    return pixels(torchvision.models.MobileNetV3(rows, 16, num_classes=5))


def timm_convnext() -> Built:
    return pixels(
        timm.models.ConvNeXt(
            num_classes=5,
            depths=(1, 1, 2, 1),
            dims=(4, 8, 8, 16),
            ls_init_value=1.0,
            drop_path_rate=0.4,
        )
    )


def torchvision_convnext() -> Built:
    stages = [CNBlockConfig(8, 16, 1), CNBlockConfig(16, None, 2)]
    return pixels(
        torchvision.models.ConvNeXt(
            stages, stochastic_depth_prob=0.4, layer_scale=1.0, num_classes=5
        )
    )


def googlenet() -> Built:
    return pixels(torchvision.models.googlenet(num_classes=5, init_weights=False), 64, 1)


def bfloat16() -> Built:
    model, x = small_images(nn.Dropout(0.3))
    return model.bfloat16(), x.bfloat16()


def parametrized() -> Built:
    body = nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))
    head = nn.utils.parametrizations.orthogonal(nn.Linear(8, 4))
    return rows(nn.Sequential(body, nn.ReLU(), nn.Dropout(0.3), head))


def spectral() -> Built:
    body = nn.utils.parametrizations.spectral_norm(nn.Linear(8, 8))
    older = nn.utils.spectral_norm(nn.Linear(8, 4))
    return rows(nn.Sequential(body, nn.ReLU(), nn.Dropout(0.3), older))


def structured() -> Built:
    pair = torch.randn(3, 8), torch.randn(3, 8)
    return m.Structured(), {"image": {"pixels": torch.randn(3, 8)}, "pair": pair}


def volumes() -> Built:
    layers = nn.Conv3d(3, 6, 3), nn.Dropout3d(0.3), nn.Flatten(), nn.Linear(48, 4)
    return nn.Sequential(*layers), torch.randn(3, 3, 4, 4, 4)


def signals() -> Built:
    layers = nn.Conv1d(3, 6, 3), nn.Dropout1d(0.3), nn.Flatten(), nn.Linear(36, 4)
    return nn.Sequential(*layers), torch.randn(3, 3, 8)


def depth(mode: str) -> Built:
    return rows(nn.Sequential(nn.Linear(8, 8), StochasticDepth(0.4, mode), nn.Linear(8, 4)))


def mlp() -> Built:
    layers = nn.Linear(8, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 16), nn.BatchNorm1d(16)
    return rows(nn.Sequential(*layers, nn.Dropout(0.2), nn.Linear(16, 4)))


def wide() -> Built:
    """Wide enough for the masks that are drawn from integers."""
    return rows(nn.Sequential(nn.Linear(8, 1024), nn.ReLU(), nn.Dropout(0.3), nn.Linear(1024, 4)))


def drop_block() -> Built:
    """Normalised by how much of the whole batch was dropped."""
    layers = nn.Conv2d(3, 4, 3), DropBlock2d(0.3, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return nn.Sequential(*layers), torch.randn(2, 3, 6, 6)


def batch_statistics() -> Built:
    norm = nn.BatchNorm1d(8, track_running_stats=False)
    return rows(nn.Sequential(nn.Linear(8, 8), norm, nn.Dropout(0.3), nn.Linear(8, 4)))
