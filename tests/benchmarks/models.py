"""The models that are sampled in the benchmark, with a hand-written split where one is possible."""

from collections.abc import Callable
from dataclasses import dataclass

import timm
import torch
import torchvision
from torch import Tensor, nn

RATE = 0.2


@dataclass
class Case:
    """One model on one input.

    ``split`` is (prefix, suffix) at the first dropout, where a person could cut the model there.
    """

    name: str
    model: nn.Module
    x: Tensor
    split: tuple[nn.Module, nn.Module] | None = None


def resnet_head(kind: str, pixels: int, batch: int) -> Case:
    """A torchvision ResNet with dropout before its classifier."""
    model = getattr(torchvision.models, kind)()
    model.fc = nn.Sequential(nn.Dropout(RATE), model.fc)
    prefix = nn.Sequential(*list(model.children())[:-1], nn.Flatten())
    images = torch.randn(batch, 3, pixels, pixels)
    return Case(f"{kind}, head, {pixels} px, batch {batch}", model, images, (prefix, model.fc))


def vit_head(batch: int) -> Case:
    """timm's ViT-small with dropout before its classifier."""
    model = timm.create_model("vit_small_patch16_224", drop_rate=RATE)
    for block in model.blocks:  # timm's drop_rate is for the head here, and stays out of the blocks
        block.apply(lambda m: setattr(m, "p", 0.0) if isinstance(m, nn.Dropout) else None)
    model.pos_drop.p = 0.0
    images = torch.randn(batch, 3, 224, 224)
    return Case(f"ViT-small, head, 224 px, batch {batch}", model, images)


def last_stage() -> Case:
    """ResNet-18 with dropout before the last of its four stages."""
    model = torchvision.models.resnet18()
    model.layer4 = nn.Sequential(nn.Dropout2d(RATE), model.layer4)
    parts = list(model.children())
    prefix = nn.Sequential(*parts[:-3])
    suffix = nn.Sequential(*parts[-3:-1], nn.Flatten(), model.fc)
    images = torch.randn(16, 3, 96, 96)
    return Case("resnet18, last stage, 96 px, batch 16", model, images, (prefix, suffix))


def every_block() -> Case:
    """ResNet-18 with dropout after every block."""
    model = torchvision.models.resnet18()
    for stage in ("layer1", "layer2", "layer3", "layer4"):
        blocks = [nn.Sequential(block, nn.Dropout(RATE)) for block in getattr(model, stage)]
        setattr(model, stage, nn.Sequential(*blocks))
    return Case("resnet18, every block, 32 px, batch 16", model, torch.randn(16, 3, 32, 32))


def small_mlp() -> Case:
    """A small dense net on one row, where Python is the cost."""
    layers: list[nn.Module] = []
    for width_in, width_out in ((64, 128), (128, 128)):
        layers += [nn.Linear(width_in, width_out), nn.ReLU(), nn.Dropout(RATE)]
    model = nn.Sequential(*layers, nn.Linear(128, 10))
    return Case("MLP 64-128-128-10, batch 1", model, torch.randn(1, 64))


def small_convnet() -> Case:
    """A small convolutional net on one image."""
    model = nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.Dropout2d(RATE), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.Dropout2d(RATE), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(64 * 7 * 7, 128), nn.ReLU(), nn.Dropout(RATE), nn.Linear(128, 10),
    )  # fmt: skip
    return Case("ConvNet 28 px, batch 1", model, torch.randn(1, 1, 28, 28))


def vit_attention() -> Case:
    """timm's ViT-tiny with dropout on its attention weights."""
    model = timm.create_model("vit_tiny_patch16_224", attn_drop_rate=RATE)
    return Case("ViT-tiny, attention, 224 px, batch 4", model, torch.randn(4, 3, 224, 224))


class LSTMClassifier(nn.Module):
    """Two recurrent layers with dropout between them, and before the classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(1000, 64)
        self.lstm = nn.LSTM(64, 128, num_layers=2, dropout=RATE, batch_first=True)
        self.dropout = nn.Dropout(RATE)
        self.head = nn.Linear(128, 10)

    def forward(self, tokens: Tensor) -> Tensor:
        states, _ = self.lstm(self.embedding(tokens))
        return self.head(self.dropout(states[:, -1]))


def lstm() -> Case:
    """Sixteen sequences of 64 tokens."""
    return Case(
        "LSTM 2x128, 64 tokens, batch 16", LSTMClassifier(), torch.randint(0, 1000, (16, 64))
    )


CASES: dict[str, Callable[[], Case]] = {
    "resnet18-96": lambda: resnet_head("resnet18", 96, 16),
    "resnet18-32": lambda: resnet_head("resnet18", 32, 16),
    "resnet50-224": lambda: resnet_head("resnet50", 224, 4),
    "vit-head": lambda: vit_head(4),
    "last-stage": last_stage,
    "every-block": every_block,
    "mlp": small_mlp,
    "convnet": small_convnet,
    "vit-attention": vit_attention,
    "lstm": lstm,
}
