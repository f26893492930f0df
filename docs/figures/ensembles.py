"""What members disagree about, and what each further one is worth."""

from functools import partial
from itertools import combinations

import torch
from _digits import BLUE, GREY, ORANGE, split
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

import stablelightning as sl
from stablelightning.functional.mixture import mixture_logits
from stablelightning.model.ensemble import draw_networks
from stablelightning.model.prediction import Task
from stablelightning.model.stacked import StackedNetworks
from stablelightning.model.task import TASKS
from stablelightning.nn import MLP

_MEMBERS = 10
_SUBSETS = 40
_LABELLED = 100  # with more, digits are too easy for anybody to gain


def draw() -> Figure:
    """Members on a curve with a gap in its data, and the likelihood by their number."""
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    curve, numbers = figure.subplots(1, 2, width_ratios=(1.5, 1))
    with torch.random.fork_rng(), torch.enable_grad():
        torch.manual_seed(0)
        _curve(curve)
        torch.manual_seed(0)
        _numbers(numbers)
    return figure


def _trained(
    make: partial[nn.Module], task: Task, rows: tuple[Tensor, Tensor], steps: int
) -> StackedNetworks:
    stacked = StackedNetworks(draw_networks(make, _MEMBERS))
    optimizer = torch.optim.AdamW(stacked.parameters(), lr=0.01)
    inputs, target = rows
    for _ in range(steps):
        chosen = torch.randint(len(inputs), (64,))
        x, y = inputs[chosen], target[chosen]
        optimizer.zero_grad()
        stacked.map(lambda x=x, y=y: TASKS[task].loss(stacked(x), y)).sum().backward()
        optimizer.step()
    return stacked.eval()


def _curve(axes: Axes) -> None:
    x = torch.cat([torch.rand(60) - 2, torch.rand(60) + 1])[:, None]
    y = torch.sin(2 * x) + 0.1 * torch.randn_like(x)
    make = partial(MLP, 1, hidden=[50, 50], dropout=0.0, variance=True)
    stacked = _trained(make, "regression", (x, y), 400)
    where = torch.linspace(-3, 3, 200)[:, None]
    with torch.no_grad():
        members = stacked(where).mean
    found = sl.mc_dropout(stacked, where, task="regression")
    mean, spread = found.mean, 2 * found.std
    noise = 2 * found.aleatoric.sqrt()
    at = where[:, 0]
    axes.fill_between(at, mean - spread, mean + spread, color=ORANGE, alpha=0.2, lw=0,
                      label="total: two deviations")  # fmt: skip
    axes.fill_between(at, mean - noise, mean + noise, color=BLUE, alpha=0.25, lw=0,
                      label="aleatoric part")  # fmt: skip
    for member in members:
        axes.plot(at, member, color=GREY, lw=0.7)
    axes.plot(at, mean, color=BLUE, label=f"mean of {_MEMBERS} members (grey)")
    axes.plot(x, y, ".", color="black", ms=3)
    axes.set(ylim=(-3, 3), xlim=(-3, 3), title="members agree where there is data", xlabel="input")
    axes.legend(loc="upper center", fontsize=7, ncols=2)


def _numbers(axes: Axes) -> None:
    few = tuple(part[:_LABELLED] for part in split("train"))
    make = partial(MLP, 64, 8, hidden=[64], dropout=0.0)
    stacked = _trained(make, "classification", few, 200)
    inputs, target = split("test")
    with torch.no_grad():
        logits = stacked(inputs)
    counts = range(1, _MEMBERS + 1)
    losses = [_loss(logits, target, count) for count in counts]
    axes.plot(counts, losses, "o-", color=BLUE)
    axes.set(
        title=f"{_LABELLED} digits: what a member is worth",
        xlabel="members",
        xticks=[1, 2, 3, 5, 10],
    )
    axes.set_ylabel("test negative log-likelihood, nats")
    axes.set_ylim(0, 1.1 * max(losses))


def _loss(logits: Tensor, target: Tensor, count: int) -> float:
    """Mean over subsets of the members."""
    subsets = list(combinations(range(_MEMBERS), count))
    chosen = subsets[:: max(1, len(subsets) // _SUBSETS)]
    task = TASKS["classification"]
    found = [task.loss(mixture_logits(logits[list(subset)]), target) for subset in chosen]
    return float(torch.stack(found).mean())
