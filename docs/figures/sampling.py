"""One digit, turned step by step: where the samples disagree, the network does not know."""

import torch
from _digits import BLUE, GREY, ORANGE, digits, split, trained
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

import stablelightning as sl

_SAMPLES = 200
_ANGLES = torch.arange(0, 181, 5)
_SHOWN = 7


def turned(image: Tensor) -> Tensor:
    """The image at every angle, ``(angles, 1, 8, 8)``."""
    radians = torch.deg2rad(_ANGLES.float())
    cosine, sine, zero = radians.cos(), radians.sin(), torch.zeros(len(radians))
    rows = [torch.stack([cosine, -sine, zero], 1), torch.stack([sine, cosine, zero], 1)]
    grid = affine_grid(torch.stack(rows, 1), [len(radians), 1, 8, 8], align_corners=False)
    background = image.min()
    stack = (image - background).expand(len(radians), 1, 8, 8)
    return grid_sample(stack, grid, align_corners=False) + background


def draw() -> Figure:
    """Sampled probabilities of three classes over the angle, and the split of the entropy."""
    inputs, target = split("test")
    names = digits().class_names
    row = int((target == names.index("7")).nonzero()[0])
    images = turned(inputs[row].reshape(8, 8))
    prediction = sl.mc_dropout(
        trained(), images.flatten(1), samples=_SAMPLES, seed=0, keep_samples=True
    )
    probabilities = prediction.samples.softmax(-1)

    figure = Figure(figsize=(8, 4.6), layout="constrained")
    strip, plots = figure.subfigures(2, 1, height_ratios=(1, 4))
    step = (len(images) - 1) // (_SHOWN - 1)
    for panel, index in zip(strip.subplots(1, _SHOWN), range(0, len(images), step), strict=True):
        panel.imshow(images[index, 0], cmap="gray_r")
        panel.set_title(f"{_ANGLES[index]}°", fontsize=8)
        panel.set_axis_off()

    left, right = plots.subplots(1, 2)
    favourites = prediction.mean.amax(0).topk(3).indices.tolist()
    jitter = torch.linspace(-1.6, 1.6, _SAMPLES)[:, None]
    for color, chosen in zip((BLUE, ORANGE, GREY), favourites, strict=True):
        x = (_ANGLES + jitter).flatten()
        left.scatter(x, probabilities[..., chosen].flatten(), s=1, alpha=0.15, color=color)
        left.plot(_ANGLES, prediction.mean[:, chosen], color=color, label=f"is a {names[chosen]}")
    left.set(xlabel="turned by (degrees)", ylabel="probability: samples and mean")
    left.legend(frameon=False, fontsize=8)

    noise, doubt = prediction.expected_entropy, prediction.mutual_information
    right.stackplot(
        _ANGLES,
        noise,
        doubt,
        labels=["expected entropy (aleatoric)", "mutual information (epistemic)"],
        colors=[GREY, ORANGE],
        alpha=0.7,
    )
    right.set(xlabel="turned by (degrees)", ylabel="predictive entropy (nats)")
    right.legend(frameon=False, fontsize=8, loc="upper left")
    return figure
