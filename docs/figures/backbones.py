"""What files of other networks would put into a ResNet-18 with a head of its own."""

from collections.abc import Callable

import timm
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import nn
from torchvision import models

from stablelightning.model.weights_match import match

_FITS, _USED, _RULE = "#0072B2", "#9CC9E3", "#D55E00"
_LEAST = 0.9

#: From the file that fits best to the one that fits least; none of them has a value on disk.
_FILES: dict[str, Callable[[], nn.Module]] = {
    "ResNet-18 of torchvision, 1000 classes": models.resnet18,
    "the same, of timm": lambda: timm.create_model("resnet18"),
    "a Lightning checkpoint of one, 37 classes": lambda: models.resnet18(num_classes=37),
    "ResNet-18-D of timm (another stem)": lambda: timm.create_model("resnet18d"),
    "ResNet-34": models.resnet34,
    "ResNet-50": models.resnet50,
    "ResNet-18 without its last stage": models.resnet18,
    "MobileNetV3": models.mobilenet_v3_small,
}


def draw() -> Figure:
    """Two bars for each file: how much of the network it fills, how much of it is used."""
    figure = Figure(figsize=(7.4, 3.9), layout="constrained")
    axes = figure.add_subplot()
    with torch.device("meta"):
        network = models.resnet18(num_classes=5)
        for row, (name, make) in enumerate(_FILES.items()):
            prefix = "network." if "Lightning" in name else ""
            state = {f"{prefix}{key}": value for key, value in make().state_dict().items()}
            if "without" in name:
                state = {key: value for key, value in state.items() if "layer4" not in key}
            found = match(network, state)
            _bars(axes, row, found.share, found.share_of_file)
    axes.axvline(_LEAST, color=_RULE, linewidth=1.2, linestyle=(0, (4, 2)))
    axes.text(_LEAST, -0.82, "least_share", color=_RULE, fontsize=8.5, ha="center", va="bottom")
    axes.set(xlim=(0, 1.2), ylim=(len(_FILES) - 0.4, -0.75), yticks=range(len(_FILES)))
    axes.set_yticklabels(_FILES)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25%", "50%", "75%", "100%"])
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", visible=True)
    axes.tick_params(length=0)
    shares = {"of the network below its head": _FITS, "of the file's same parts": _USED}
    handles = [Patch(color=colour, label=name) for name, colour in shares.items()]
    axes.legend(
        handles=handles, loc="upper center", bbox_to_anchor=(0.4, -0.08), ncols=2, frameon=False
    )
    return figure


def _bars(axes: object, row: int, fits: float, used: float) -> None:
    loaded = min(fits, used) >= _LEAST
    whole = min(fits, used) == 1
    axes.barh(row - 0.17, fits, height=0.32, color=_FITS)
    axes.barh(row + 0.17, used, height=0.32, color=_USED)
    word, colour = (
        ("loaded" if whole else "with a word", "#262626") if loaded else ("refused", _RULE)
    )
    axes.text(1.02, row, word, color=colour, fontsize=8.5, va="center")
