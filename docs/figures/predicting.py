"""How rows are dealt out and put together; a test loss with repeated rows, and without."""

import torch
from _digits import BLUE, GREY, ORANGE, split, trained
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch.utils.data import DataLoader, DistributedSampler

from stablelightning.callbacks.records import Positions

_PROCESSES, _SHOWN = 3, 10
_ROWS, _MOST = 31, 8


def draw() -> Figure:
    """Ten rows on three processes; the loss of 31 digits on one to eight."""
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    _draw_rows(left)
    _draw_losses(right)
    return figure


def _draw_rows(axes: Axes) -> None:
    for rank in range(_PROCESSES):
        sampler = DistributedSampler(range(_SHOWN), _PROCESSES, rank, shuffle=False)
        positions = Positions(
            DataLoader(range(_SHOWN), sampler=sampler), rank=rank, world=_PROCESSES
        )
        dealt = list(sampler)
        fresh = positions.next(len(dealt))[1].tolist()
        for column, (row, new) in enumerate(zip(dealt, fresh, strict=True)):
            _cell(axes, (column, -rank), row, new=new)
        axes.text(-0.75, -rank, f"process {rank}", ha="right", va="center")
    for row in range(_SHOWN):
        _cell(axes, (row, -_PROCESSES - 0.8), row, new=True)
    axes.text(-0.75, -_PROCESSES - 0.8, "the file", ha="right", va="center")
    axes.text(4, -1, "struck out: given once more to fill up,\nand counted by nobody", va="center")
    axes.set(xlim=(-3, _SHOWN - 0.4), ylim=(-_PROCESSES - 1.4, 0.6), aspect="equal")
    axes.set_axis_off()


def _cell(axes: Axes, place: tuple[float, float], row: int, *, new: bool) -> None:
    x, y = place
    axes.text(
        x,
        y,
        str(row),
        ha="center",
        va="center",
        color="white",
        bbox={
            "boxstyle": "round,pad=0.35",
            "facecolor": BLUE if new else GREY,
            "edgecolor": "none",
        },
    )
    if not new:
        axes.plot([x - 0.4, x + 0.4], [y - 0.4, y + 0.4], color=ORANGE, linewidth=2, zorder=9)


def _draw_losses(axes: Axes) -> None:
    inputs, target = split("test")
    with torch.no_grad():
        loss = torch.nn.functional.cross_entropy(
            trained()(inputs[:_ROWS]), target[:_ROWS], reduction="none"
        )
    counts = list(range(1, _MOST + 1))
    repeated, once = [], []
    for world in counts:
        every, fresh = [], []
        for rank in range(world):
            sampler = DistributedSampler(range(_ROWS), world, rank, shuffle=False)
            positions = Positions(DataLoader(range(_ROWS), sampler=sampler), rank=rank, world=world)
            dealt = torch.tensor(list(sampler))
            every.append(dealt)
            fresh.append(dealt[positions.next(len(dealt))[1]])
        repeated.append(float(loss[torch.cat(every)].mean()))
        once.append(float(loss[torch.cat(fresh)].mean()))
    axes.plot(counts, repeated, "o-", color=GREY, label="every row that was given")
    axes.plot(counts, once, "o-", color=BLUE, label="every row once")
    axes.set(xlabel="processes", ylabel=f"test loss of {_ROWS} digits (nats)", xticks=counts)
    axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0.0, 1.01), borderaxespad=0.0)
