"""Photographs that need no camera: shapes of any colour, somewhere on noise."""

import random
from pathlib import Path

import torch
from PIL import Image, ImageDraw

SHAPES = ("circle", "square", "triangle", "cross")


def draw_photographs(
    root: Path, *, count: int = 50, size: int = 64, classes: tuple[str, ...] = SHAPES, seed: int = 0
) -> Path:
    """Write ``count`` JPEGs of each class into a folder of its name under ``root``."""
    chance = random.Random(seed)
    noise = torch.Generator().manual_seed(seed)
    for name in classes:
        (root / name).mkdir(parents=True)
        for number in range(count):
            image = _noise(size, noise)
            _draw(ImageDraw.Draw(image), name, size, chance)
            image.save(root / name / f"{number:03d}.jpg", quality=90)
    return root


def _noise(size: int, generator: torch.Generator) -> Image.Image:
    coarse = torch.rand(1, 3, size // 8, size // 8, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bilinear")[0]
    pixels = (60 + 120 * smooth + 20 * torch.rand(3, size, size, generator=generator)).byte()
    return Image.fromarray(pixels.movedim(0, -1).numpy())


def _draw(pen: ImageDraw.ImageDraw, name: str, size: int, chance: random.Random) -> None:
    half = chance.uniform(0.18, 0.3) * size
    x, y = (chance.uniform(half, size - half) for _ in range(2))
    bright = tuple(chance.randrange(150, 256) for _ in range(3))
    colour = bright if chance.random() < 0.5 else tuple(value - 150 for value in bright)
    box = (x - half, y - half, x + half, y + half)
    if name == "circle":
        pen.ellipse(box, fill=colour)
    elif name == "square":
        pen.rectangle(box, fill=colour)
    elif name == "triangle":
        pen.polygon([(x, y - half), (x + half, y + half), (x - half, y + half)], fill=colour)
    else:
        width = max(2, round(half / 2))
        pen.line([(x - half, y - half), (x + half, y + half)], fill=colour, width=width)
        pen.line([(x - half, y + half), (x + half, y - half)], fill=colour, width=width)
