"""Which digits are answered, those turned and those never seen among them, and why not."""

import torch
from _digits import BLUE, GREY, ORANGE, split, trained, unknown
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

import stablelightning as sl
from stablelightning.functional.abstain import REASONS
from stablelightning.model.abstain import Thresholds, choose_thresholds
from stablelightning.model.prediction import Prediction
from stablelightning.report.style import COLOURS, INK

_SAMPLES = 100
_COVERAGE = 0.95
_TOP = 0.55  # of the epistemic axis, in nats
_LOOK = dict(zip(REASONS, (BLUE, COLOURS[4], ORANGE, GREY), strict=True))


def predicted(inputs: Tensor) -> Prediction:
    return sl.mc_dropout(trained(), inputs, samples=_SAMPLES, seed=0)


def regions(axes: Axes, thresholds: Thresholds) -> None:
    """The four parts of the plane that the rule makes of noise and doubt."""
    noise = torch.linspace(0, 1.6, 200)
    largest, familiar = thresholds.total, thresholds.epistemic
    border = (largest - noise).clamp(0, familiar)
    beyond = noise >= largest
    parts = {
        "answered": (noise * 0, border),
        "epistemic": (border.where(~beyond, torch.tensor(familiar)), noise * 0 + familiar),
        "aleatoric": (torch.where(beyond, 0.0, familiar), noise * 0 + familiar),
        "out of distribution": (noise * 0 + familiar, noise * 0 + _TOP),
    }
    for name, (low, high) in parts.items():
        axes.fill_between(noise, low, high, color=_LOOK[name], alpha=0.16, linewidth=0)
    for name, place in {
        "aleatoric": (1.55, familiar * 0.12),
        "out of distribution": (1.55, _TOP - 0.04),
        "epistemic": (largest - 0.02, familiar * 0.9),
    }.items():
        axes.text(*place, name, fontsize=8.5, color=INK, ha="right")
    axes.text(0.02, familiar * 0.7, "answered", fontsize=8.5, color=INK)


def draw() -> Figure:
    """The plane of noise and doubt with its regions, and what became of each set of digits."""
    known, target = split("val")
    thresholds = choose_thresholds(predicted(known), target, coverage=_COVERAGE)
    sets = {
        "8 and 9,\nnever seen": predicted(unknown("held_out_digits")),
        "0 to 7,\nturned": predicted(unknown("rotated_digits")),
        "0 to 7,\ntest set": predicted(split("test")[0]),
    }
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(5, 4))
    regions(left, thresholds)
    for (name, prediction), colour, marker in zip(
        reversed(sets.items()), (INK, None, ORANGE), ("o", "", "D"), strict=True
    ):
        if colour is not None:
            shown = prediction.aleatoric, prediction.epistemic
            label = name.replace("\n", " ")
            left.scatter(*shown, s=7, marker=marker, color=colour, alpha=0.6, lw=0, label=label)
    left.set(xlim=(0, 1.6), ylim=(0, _TOP))
    left.set(xlabel="aleatoric (nats)", ylabel="epistemic (nats)")
    left.legend(frameon=False, ncols=2, loc="lower left", bbox_to_anchor=(0, 1))

    start = torch.zeros(len(sets))
    decided = [prediction.abstain(thresholds).reason for prediction in sets.values()]
    for number, name in enumerate(REASONS):
        share = torch.tensor([100 * (reason == number).float().mean() for reason in decided])
        right.barh(list(sets), share, left=start, color=_LOOK[name], label=name, height=0.6)
        for row, width in enumerate(share.tolist()):
            if width > 7:
                middle = float(start[row]) + width / 2
                style = {"ha": "center", "va": "center", "fontsize": 8, "color": "white"}
                right.text(middle, row, f"{width:.0f}", **style)
        start = start + share
    right.set(xlabel="share of the digits (%)", xlim=(0, 100))
    right.grid(False)
    right.legend(frameon=False, ncols=2, loc="lower left", bbox_to_anchor=(-0.1, 1))
    return figure
