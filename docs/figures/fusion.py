"""Two towers see half a digit each, one loud and one quiet: joined as they are, and balanced."""

import torch
from _digits import BLUE, GREY, digits, split
from matplotlib.figure import Figure
from torch import Tensor, nn

from stablelightning.nn import BalancedFusion

_EPOCHS, _SEEDS, _LOUDER = 8, 3, 100.0


class _Cat(nn.Module):
    def forward(self, *outputs: Tensor) -> Tensor:
        return torch.cat(outputs, 1)


class _Halves(nn.Module):
    def __init__(self, fusion: nn.Module) -> None:
        super().__init__()
        self.towers = nn.ModuleList(nn.Sequential(nn.Linear(32, 32), nn.ReLU()) for _ in range(2))
        self.fusion = fusion
        self.head = nn.Linear(64, 8)

    def forward(self, inputs: Tensor) -> Tensor:
        left, right = inputs.unflatten(1, (8, 2, 4)).unbind(2)
        loud = _LOUDER * self.towers[0](left.flatten(1))
        return self.head(self.fusion(loud, self.towers[1](right.flatten(1))))


def _accuracies(fusion: type[nn.Module], seed: int) -> list[float]:
    torch.manual_seed(seed)
    net = _Halves(fusion())
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
    inputs, target = split("val")
    found = []
    for _ in range(_EPOCHS):
        for rows, classes in digits().train_dataloader():
            optimizer.zero_grad()
            nn.functional.cross_entropy(net.train()(rows), classes).backward()
            optimizer.step()
        with torch.no_grad():
            hits = net.eval()(inputs).argmax(1) == target
        found.append(hits.float().mean().item())
    return found


def draw() -> Figure:
    """Validation accuracy by epoch: mean over seeds, and every seed."""
    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.subplots()
    epochs = range(1, _EPOCHS + 1)
    for kind, name, colour in ((_Cat, "torch.cat", GREY), (BalancedFusion, "BalancedFusion", BLUE)):
        runs = torch.tensor([_accuracies(kind, seed) for seed in range(_SEEDS)])
        axes.plot(epochs, runs.T, color=colour, linewidth=0.6, alpha=0.5)
        axes.plot(epochs, runs.mean(0), "o-", color=colour, label=name)
    axes.set(xlabel="epoch", ylabel="validation accuracy")
    axes.legend(frameon=False, loc="lower right")
    return figure
