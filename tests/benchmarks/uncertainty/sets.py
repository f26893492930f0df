"""The data: what trains, validates and tests, what is unknown, and how it is shifted."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from sklearn.datasets import load_digits, load_sample_images
from torch import Tensor, nn
from torch.nn import functional
from torchvision.transforms.functional import rotate

from stablelightning.data import DigitsData
from stablelightning.nn import MLP, ConvNet
from tests.benchmarks import cifar

#: Degrees by which test images are turned, and the spread of the noise that is added to them, in
#: standard deviations of a pixel.
ROTATIONS = (15, 30, 45, 60, 75)
NOISES = (0.25, 0.5, 1.0, 1.5, 2.0)

_SIDE = 8
_PATCH = 32

#: Rows of CIFAR-10's test part that are scored.
_TESTED = 5000


@dataclass(frozen=True)
class Rows:
    """Inputs, their targets."""

    inputs: Tensor
    target: Tensor


@dataclass(frozen=True)
class Case:
    """One data set with its network.

    Args:
        train: rows that train.
        val: rows that calibrate.
        test: rows that are scored.
        unknown: inputs of no class, by name.
        network: makes an untrained network.
        epochs: of a training.
        batch_size: of a training.
        learning_rate: of AdamW, its largest.
        samples: of Monte Carlo dropout.
        shifted: of the test rows, how many are turned and made noisy.
        image: shape of one input as an image.
        augment: changes the inputs of a training batch at random.
    """

    train: Rows
    val: Rows
    test: Rows
    unknown: Mapping[str, Tensor]
    network: Callable[[], nn.Module]
    epochs: int
    batch_size: int
    learning_rate: float
    samples: int
    shifted: int
    image: tuple[int, int, int]
    augment: Callable[[Tensor], Tensor] | None = None
    half: bool = False
    about: Mapping[str, Any] = field(default_factory=dict)

    def turned(self, inputs: Tensor, degrees: float) -> Tensor:
        """Images turned about their middle; what comes in from outside is the image's corner."""
        images = inputs.view(-1, *self.image)
        corner = images[:, :, :1, :1]
        return (rotate(images - corner, degrees) + corner).view_as(inputs)

    def noisy(self, inputs: Tensor, std: float) -> Tensor:
        """Inputs with normal noise, the same for every method."""
        noise = torch.randn(inputs.shape, generator=torch.Generator().manual_seed(0))
        return inputs + std * noise


def digits(seed: int, root: str | None) -> Case:
    """Eight of the ten digits; a split for each seed. Unknown are the other two, and all turned."""
    data = DigitsData(seed=seed)
    data.setup()
    parts = {}
    for name in ("train", "val", "test"):
        part = data.part(name)
        assert part is not None
        parts[name] = Rows(*(torch.stack(list(each)) for each in zip(*part, strict=True)))
    unknown = {
        name: torch.cat([inputs for inputs, _ in loader])
        for name, loader in data.ood_dataloaders().items()
    }
    return Case(
        **parts,
        unknown=unknown,
        network=lambda: MLP(64, 8, hidden=[512], dropout=0.5),
        epochs=40,
        batch_size=64,
        learning_rate=2e-3,
        samples=100,
        shifted=10_000,
        image=(1, _SIDE, _SIDE),
    )


def colour_images(seed: int, root: str | None) -> Case:
    """CIFAR-10: ten classes, 1,000 training images of each; one split, whatever the seed.

    Unknown are scikit-learn's digits as grey images of this size, and patches of its two
    photographs, which hold none of the classes: a Chinese temple and a flower.
    """
    assert root is not None
    data = cifar.CifarData(root, pool=1000)
    parts = {name: _stacked(data, name) for name in ("train", "val", "test")}
    parts["test"] = Rows(*(each[:_TESTED] for each in vars(parts["test"]).values()))
    return Case(
        **parts,
        unknown={"digits": _grey_digits(), "photograph_patches": _patches()},
        network=_colour_network,
        epochs=10,
        batch_size=128,
        learning_rate=5e-3,
        samples=50,
        shifted=1000,
        image=(3, _PATCH, _PATCH),
        augment=cifar.moved,
        half=True,
    )


def _colour_network() -> nn.Module:
    """With dropout behind the last convolution, so that all samples share the convolutions."""
    network = ConvNet(3, 10, channels=(32, 64, 128, 256), dropout=0.3)
    for stage in network.body[:-1]:
        stage[-1].p = 0.0
    return network.to(memory_format=torch.channels_last)


def _stacked(data: cifar.CifarData, name: str) -> Rows:
    rows = data.rows(name)
    target = torch.cat([torch.full((len(own),), number) for number, own in enumerate(rows)])
    inputs = _standardized(cifar.images(data.root).pixels[torch.cat(rows)].float())
    order = torch.randperm(len(target), generator=torch.Generator().manual_seed(0))
    return Rows(inputs[order], target[order])


def _standardized(pixels: Tensor) -> Tensor:
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (cifar.MEAN, cifar.STD))
    return (pixels - mean) / std


def _grey_digits() -> Tensor:
    images = torch.tensor(load_digits().images, dtype=torch.float32)[:, None] * (255 / 16)
    large = functional.interpolate(images, _PATCH, mode="bilinear")
    return _standardized(large.expand(-1, 3, -1, -1))


def _patches() -> Tensor:
    found = []
    for image in load_sample_images().images:
        pixels = torch.tensor(image, dtype=torch.float32).permute(2, 0, 1)
        half = functional.interpolate(pixels[None], scale_factor=0.5, mode="area")
        cut = functional.unfold(half, _PATCH, stride=_PATCH // 4)[0].T
        found.append(cut.view(-1, 3, _PATCH, _PATCH))
    return _standardized(torch.cat(found))


CASES: Mapping[str, Callable[[int, str | None], Case]] = {
    "digits": digits,
    "cifar": colour_images,
}
