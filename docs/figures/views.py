"""Digits, and two random views of each."""

import torch

from stablelightning.data import DigitsData
from stablelightning.nn.augment import ImageViews
from stablelightning.report.style import INK, new_figure, say

COUNT = 8


def draw():
    data = DigitsData(image=True, held_out=())
    data.setup()
    images, digits = zip(*data.part("train"), strict=True)
    images, digits = torch.stack(images), torch.stack(digits)
    chosen = torch.stack([images[digits == digit][1] for digit in range(COUNT)])
    torch.manual_seed(2)
    views = ImageViews()
    rows = {"image": chosen, "a view": views(chosen), "another": views(chosen)}
    figure = new_figure(7.2, 3.2)
    axes = figure.subplots(len(rows), COUNT)
    for line, (name, row) in zip(axes, rows.items(), strict=True):
        for place, image in zip(line, row, strict=True):
            place.imshow(image[0], cmap="gray_r", vmin=chosen.min(), vmax=chosen.max())
            place.set_xticks([])
            place.set_yticks([])
        line[0].set_ylabel(name, color=INK, fontsize=9)
    say(figure, "Which views belong together can be told without a label")
    return figure
