"""Coverage of conformal sets over resplits, and intervals of three kinds around one function."""

import torch
from _digits import BLUE, GREY, ORANGE, split, trained
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

import stablelightning as sl
from stablelightning.calibration.conformal import ConformalSets
from stablelightning.calibration.conformal_scores import ConformityScore, ResidualScore
from stablelightning.functional.conformal import conformal_quantile, least_ambiguous_scores
from stablelightning.functional.conformal_coverage import coverage_distribution
from stablelightning.model.task import TASKS
from stablelightning.nn import MLP, QuantileMLP
from stablelightning.report.style import COLOURS

_ALPHA = 0.1
_RESPLITS = 2000
_ROWS, _STEPS = 600, 300


def draw() -> Figure:
    """Left: coverage over resplits. Right: bands around one function."""
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    _coverage(left)
    with torch.random.fork_rng(), torch.enable_grad():
        torch.manual_seed(0)
        _bands(right)
    return figure


def _coverage(axes: Axes) -> None:
    inputs, target = split("test")
    mean = sl.mc_dropout(trained(), inputs, samples=50, seed=0).mean
    scores = least_ambiguous_scores(mean).gather(1, target[:, None]).squeeze(1)
    known = len(scores) // 2
    new = len(scores) - known
    generator = torch.Generator().manual_seed(0)
    held = []
    for _ in range(_RESPLITS):
        shuffled = scores[torch.randperm(len(scores), generator=generator)]
        held.append(int((shuffled[known:] <= conformal_quantile(shuffled[:known], _ALPHA)).sum()))
    counts = torch.tensor(held).bincount(minlength=new + 1) / _RESPLITS
    theory = coverage_distribution(known, new, _ALPHA)
    shown = (theory > 1e-4).nonzero()[:, 0]
    share = 100 * shown / new
    axes.bar(share, counts[shown], width=70 / new, color=BLUE, alpha=0.6, label="resplits")
    axes.plot(share, theory[shown], color=ORANGE, label="beta-binomial")
    axes.axvline(100 * (1 - _ALPHA), color=GREY, linestyle=":", label="promised")
    axes.set(xlabel="digits held by their set (%)", ylabel="share of resplits")
    axes.legend(frameon=False, fontsize=8, loc="upper left")


def _bands(axes: Axes) -> None:
    (x, y), (known, target) = _noisy(_ROWS), _noisy(_ROWS)
    grid = torch.linspace(-3, 3, 200)[:, None]
    axes.plot(x[:300, 0], y[:300], ".", color=GREY, markersize=2, alpha=0.6)
    gaussian = _fitted(MLP(1, hidden=[64, 64], dropout=0.1, variance=True), x, y)
    quantiles = _fitted(QuantileMLP(1, hidden=[64, 64], dropout=0.1, level=0.9), x, y)
    for color, name, net, score in (
        (COLOURS[2], "one width", gaussian, ResidualScore()),
        (BLUE, "scaled by the deviation", gaussian, None),
        (ORANGE, "of quantiles (CQR)", quantiles, None),
    ):
        lower, upper = _ends(net, known, target, grid, score)
        axes.plot(grid[:, 0], lower, color=color, linewidth=1.2, label=name)
        axes.plot(grid[:, 0], upper, color=color, linewidth=1.2)
    axes.set(xlabel="input", ylabel="target, and ends of 90% intervals")
    axes.legend(frameon=False, fontsize=8, loc="upper left")


def _noisy(rows: int) -> tuple[Tensor, Tensor]:
    """Noise that is small on the left and large, and above rather than below, on the right."""
    x = 6 * torch.rand(rows, 1) - 3
    spread = 0.1 + (x[:, 0] + 3).square() / 20
    return x, torch.sin(x[:, 0]) + spread * torch.distributions.Exponential(1.0).sample((rows,))


def _fitted(net: nn.Module, x: Tensor, y: Tensor) -> nn.Module:
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(_STEPS):
        optimizer.zero_grad()
        TASKS["regression"].loss(net(x), y).backward()
        optimizer.step()
    return net.eval()


def _ends(
    net: nn.Module, known: Tensor, target: Tensor, grid: Tensor, score: ConformityScore | None
) -> tuple[Tensor, Tensor]:
    first, second = (sl.mc_dropout(net, rows, samples=400, seed=0) for rows in (known, grid))
    prediction = ConformalSets(_ALPHA, score=score).fit(first, target)(second)
    assert prediction.lower is not None
    assert prediction.upper is not None
    return prediction.lower, prediction.upper
