"""Drawn photographs, what a fine-tuned network says of them, and one of a kind it never saw."""

import torch
from _photographs import KNOWN, fine_tuned
from matplotlib.figure import Figure

import stablelightning as sl
from stablelightning.data.image_base import IMAGENET
from stablelightning.report.style import COLOURS

_SAMPLES, _SHOWN = 100, 4


def draw() -> Figure:
    """Three rows of photographs beside the histogram of what the network does not know."""
    network, images, target, stars = fine_tuned()
    known = sl.mc_dropout(network, images, samples=_SAMPLES, seed=0)
    strange = sl.mc_dropout(network, stars, samples=_SAMPLES, seed=0)
    figure = Figure(figsize=(8, 4), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(3, 2))
    rows = (
        ("surest", images, known, known.epistemic.argsort()[:_SHOWN], target),
        ("least sure", images, known, known.epistemic.argsort(descending=True)[:_SHOWN], target),
        ("never seen", stars, strange, strange.epistemic.argsort(descending=True)[:_SHOWN], None),
    )
    panels = left.subplots(len(rows), _SHOWN)
    for line, (label, pictures, said, chosen, truth) in zip(panels, rows, strict=True):
        for panel, row in zip(line, chosen.tolist(), strict=True):
            _show(panel, pictures[row])
            share, guess = said.mean[row].max(0)
            wrong = truth is None or guess != truth[row]
            colour = COLOURS[1] if wrong else "#262626"
            panel.set_title(f"{KNOWN[guess]} {share:.2f}", fontsize=8, color=colour)
        line[0].set_ylabel(label, fontsize=8.5)
    axes = right.subplots()
    top = float(torch.cat([known.epistemic, strange.epistemic]).max())
    bins = [top * i / 16 for i in range(17)]
    kwargs = {"bins": bins, "density": True, "alpha": 0.7}
    axes.hist(known.epistemic.numpy(), color=COLOURS[0], label="test photographs", **kwargs)
    axes.hist(strange.epistemic.numpy(), color=COLOURS[1], label="stars, never seen", **kwargs)
    axes.set(xlabel="mutual information (nats)", ylabel="density")
    axes.legend(frameon=False)
    return figure


def _show(panel, image) -> None:
    mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGENET.mean, IMAGENET.std))
    panel.imshow((image * std + mean).clamp(0, 1).movedim(0, -1).numpy())
    panel.set(xticks=[], yticks=[])
    panel.spines[:].set_visible(False)
