"""What balanced masks are, and what they are worth: the error of the mean over the samples."""

import torch
from _digits import BLUE, GREY, ORANGE, trained, unknown
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

import stablelightning as sl
from stablelightning.functional.masks import balanced_masks, fair_mask, uniform_integers
from stablelightning.model.masks import Masks

_COUNTS = (4, 8, 16, 32, 64)
_REFERENCE = 4096
_REPEATS = 12
_ROWS = 64
_LEVELS = (0.01, 0.02, 0.04)

_UNITS, _SAMPLES, _KEEP = 18, 10, 0.7
_EMPTY = ListedColormap([GREY, "white"])


def draw() -> Figure:
    """Masks of either kind, and the error of the mean that they leave."""
    figure = Figure(figsize=(8, 3.4), layout="constrained")
    independent, balanced, errors = figure.subplots(1, 3, width_ratios=(1, 1, 1.8))
    generator = torch.Generator().manual_seed(1)
    shape = (_SAMPLES, _UNITS)
    ordinary = fair_mask(uniform_integers(shape, generator=generator), _KEEP)
    stratified = balanced_masks((_UNITS,), samples=_SAMPLES, keep=_KEEP, generator=generator)
    _show(independent, ordinary, "independent", BLUE)
    _show(balanced, stratified, "balanced", ORANGE)
    independent.set_ylabel("sample")
    _errors(errors)
    return figure


def _show(axes: Axes, masks: torch.Tensor, title: str, color: str) -> None:
    axes.imshow(masks, cmap=_EMPTY, aspect="auto", vmin=0, vmax=1)
    for unit, dropped in enumerate((~masks).sum(0).tolist()):
        axes.text(unit, _SAMPLES, dropped, ha="center", va="center", color=color, fontsize=8)
    axes.set(title=title, xticks=[], yticks=[], ylim=(_SAMPLES + 0.6, -0.5))
    axes.set_xlabel("unit; times dropped")
    axes.grid(visible=False)


def _errors(axes: Axes) -> None:
    inputs = unknown("held_out_digits")[:_ROWS]  # on what is known there is little to average
    exact = sl.mc_dropout(trained(), inputs, samples=_REFERENCE, seed=10_000)
    found: dict[Masks, list[float]] = {"independent": [], "balanced": []}
    for masks, color in (("independent", BLUE), ("balanced", ORANGE)):
        found[masks] = [_error(inputs, exact.mean, masks, count) for count in _COUNTS]
        axes.loglog(_COUNTS, found[masks], "o-", color=color, label=f"{masks} masks")
    one = float(exact.standard_error.square().mean()) * _REFERENCE  # variance of a single sample
    level = found["balanced"][_COUNTS.index(16)]
    worth = one / level**2
    axes.annotate(
        "", (worth, level), xytext=(16, level), arrowprops={"arrowstyle": "->", "color": GREY}
    )
    axes.annotate(
        f"16 are worth {worth:.0f}", (worth, level), xytext=(6, -3), textcoords="offset points",
        color=GREY, fontsize=9,
    )  # fmt: skip
    axes.set(xlabel="samples", ylabel="error of the mean probabilities", xlim=(3.4, 210))
    axes.minorticks_off()
    axes.set_yticks(_LEVELS, [str(level) for level in _LEVELS])
    axes.set_xticks(_COUNTS, [str(count) for count in _COUNTS])
    axes.legend(frameon=False, loc="lower left")


def _error(inputs: torch.Tensor, exact: torch.Tensor, masks: Masks, count: int) -> float:
    squares = [
        (sl.mc_dropout(trained(), inputs, samples=count, seed=seed, masks=masks).mean - exact)
        .square()
        .mean()
        for seed in range(_REPEATS)
    ]
    return float(torch.stack(squares).mean().sqrt())
