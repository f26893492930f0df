"""The floors of the package, read from the import contract in pyproject.toml."""

import tomllib
from pathlib import Path

from _digits import BLUE, GREY
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

_PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"
_SAYS = {
    "cli": "the command",
    "pretraining": "learning without labels",
    "ensemble": "several networks as one",
    "module": "any network as a LightningModule",
    "mixin": "what needs self",
    "optimization": "optimizers and their schedules",
    "hyperparameters": "what is kept",
    "inheritance": "checked bases",
    "callbacks": "when",
    "data": "LightningDataModules",
    "report": "numbers, plots, W&B",
    "metrics": "torchmetrics",
    "calibration": "fitted corrections",
    "model": "tools that act on a whole model",
    "nn": "modules",
    "functional": "tensors in, tensors out",
    "optional": "may be missing",
    "files": "written whole",
    "checks": "of settings",
    "errors": "one tree",
    "words": "of messages",
}


def floors() -> list[list[str]]:
    """The layers from the top, each with the packages that share it."""
    tool = tomllib.loads(_PYPROJECT.read_text(encoding="utf-8"))["tool"]["importlinter"]
    (contract,) = (c for c in tool["contracts"] if c["type"] == "layers")
    return [[name.strip() for name in layer.split("|")] for layer in contract["layers"]]


def draw() -> Figure:
    """One row a floor; the floors without Lightning are blue."""
    layers = floors()
    figure = Figure(figsize=(6, 0.42 * len(layers)), layout="constrained")
    axes = figure.subplots()
    free = layers.index(["model"])
    for height, names in enumerate(reversed(layers)):
        width = 1 / len(names)
        color = BLUE if height < len(layers) - free else GREY
        for number, name in enumerate(names):
            x = number * width
            box = (x + 0.005, height + 0.08), width - 0.01, 0.84
            axes.add_patch(
                FancyBboxPatch(*box, boxstyle="round,pad=0,rounding_size=0.01", fc=color)
            )
            text = f"{name}: {_SAYS[name]}" if name in _SAYS else name
            axes.text(x + width / 2, height + 0.5, text, ha="center", va="center", color="white")
    axes.set(xlim=(0, 1), ylim=(0, len(layers)))
    axes.set_axis_off()
    return figure
