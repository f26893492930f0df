"""Photographs that are drawn by the build, and a small backbone that saw others before."""

import random
import tempfile
from functools import cache
from pathlib import Path

import lightning as L
import torch
from PIL import Image, ImageDraw
from torch import nn

from stablelightning.callbacks import UnfreezeGradually
from stablelightning.data import ImageFolderData
from stablelightning.model.head import replace_head
from stablelightning.module import StableModule
from stablelightning.nn import ConvNet

SIZE = 32
KNOWN = ("cross", "disc", "ring")
_BEFORE = ("arrow", "bars", "frame", "half", "square", "triangle")
_UNKNOWN = "star"


def photograph(name: str, chance: random.Random) -> Image.Image:
    """One object, of any colour and size, somewhere on a blurred ground with noise."""
    noise = torch.Generator().manual_seed(chance.randrange(2**31))
    coarse = torch.rand(1, 3, 4, 4, generator=noise)
    ground = nn.functional.interpolate(coarse, size=(SIZE, SIZE), mode="bicubic")[0]
    pixels = 70 + 110 * ground.clamp(0, 1) + 24 * torch.rand(3, SIZE, SIZE, generator=noise)
    image = Image.fromarray(pixels.byte().movedim(0, -1).numpy())
    half = chance.uniform(0.2, 0.32) * SIZE
    x, y = (chance.uniform(half, SIZE - half) for _ in range(2))
    light = chance.random() < 0.5
    colour = tuple(chance.randrange(185, 256) if light else chance.randrange(0, 60) for _ in "rgb")
    _draw(ImageDraw.Draw(image), name, (x, y, half), colour)
    return image


def _draw(pen: ImageDraw.ImageDraw, name: str, place: tuple, colour: tuple) -> None:
    x, y, r = place
    box, width = (x - r, y - r, x + r, y + r), max(2, round(r / 2.5))
    corners = {
        "triangle": [(0, -1), (1, 1), (-1, 1)],
        "square": [(-1, -1), (1, -1), (1, 1), (-1, 1)],
        "half": [(-1, -1), (1, 1), (-1, 1)],
        "arrow": [(-1, -0.3), (0, -0.3), (0, -1), (1, 0), (0, 1), (0, 0.3), (-1, 0.3)],
        "star": [(0, -1), (0.3, -0.3), (1, 0), (0.3, 0.3)],
    }
    corners["star"] += [(-a, -b) for a, b in corners["star"]]  # the same, turned by half
    if name in corners:
        pen.polygon([(x + r * a, y + r * b) for a, b in corners[name]], fill=colour)
    elif name == "disc":
        pen.ellipse(box, fill=colour)
    elif name == "ring":
        pen.ellipse(box, outline=colour, width=width)
    elif name == "frame":
        pen.rectangle(box, outline=colour, width=width)
    elif name == "bars":
        for shift in (-0.6, 0.6):
            pen.line([(x - r, y + shift * r), (x + r, y + shift * r)], fill=colour, width=width)
    else:
        pen.line([(x - r, y - r), (x + r, y + r)], fill=colour, width=width)
        pen.line([(x - r, y + r), (x + r, y - r)], fill=colour, width=width)


def folder(root: Path, names: tuple[str, ...], count: int, seed: int) -> Path:
    """A folder of each class, as a user has them."""
    for name in names:
        (root / name).mkdir(parents=True)
        chance = random.Random(f"{seed} {name}")
        for number in range(count):
            photograph(name, chance).save(root / name / f"{number:03d}.png")
    return root


def _trainer(epochs: int, *callbacks: L.Callback) -> L.Trainer:
    return L.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        logger=False,
        callbacks=list(callbacks),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def _data(root: Path, **settings: object) -> ImageFolderData:
    usual = {"image_size": SIZE, "batch_size": 16, "num_workers": 0, "val_fraction": 0.0}
    return ImageFolderData(root, **{**usual, **settings})


def _module(network: nn.Module, rate: float) -> StableModule:
    return StableModule(
        network,
        task="classification",
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=rate),
    )


@cache
def fine_tuned() -> tuple[nn.Module, torch.Tensor, torch.Tensor, torch.Tensor]:
    """A network after fine-tuning on 200 photographs, test photographs with classes, and stars."""
    with tempfile.TemporaryDirectory() as place, torch.random.fork_rng(), torch.enable_grad():
        torch.manual_seed(0)
        before = folder(Path(place) / "before", _BEFORE, 120, seed=1)
        network = ConvNet(3, len(_BEFORE), channels=[16, 32, 64], dropout=0.0)
        _trainer(8).fit(_module(network, 3e-3), datamodule=_data(before, batch_size=64))
        replace_head(network, len(KNOWN), dropout=0.2)
        own = _data(folder(Path(place) / "photos", KNOWN, 67, seed=2), test_fraction=0.2)
        plan = UnfreezeGradually(every_n_epochs=2, layer_decay=0.7)
        _trainer(14, plan).fit(_module(network, 2e-3), datamodule=own)
        images, target = map(torch.cat, zip(*own.test_dataloader(), strict=True))
        strange = folder(Path(place) / "strange", (_UNKNOWN,), 40, seed=3)
        stars = _data("", predict_path=strange)
        return network.eval(), images, target, torch.cat(list(stars.predict_dataloader()))
