"""The one network that the figures share, trained in seconds on scikit-learn's digits."""

from functools import cache

import torch
from torch import Tensor, nn

from stablelightning.data import DigitsData
from stablelightning.report.style import COLOURS, MUTED

DROPOUT = 0.3
_EPOCHS = 20

BLUE, ORANGE = COLOURS[:2]
GREY = MUTED


@cache
def digits() -> DigitsData:
    """Digits 0 to 7, split; 8 and 9 are held out."""
    data = DigitsData()
    data.setup()
    return data


def split(name: str) -> tuple[Tensor, Tensor]:
    """All rows of one split."""
    inputs, target = zip(*digits().part(name), strict=True)
    return torch.stack(inputs), torch.stack(target)


def unknown(name: str) -> Tensor:
    """All rows of one out-of-distribution set."""
    return torch.cat([inputs for inputs, _ in digits().ood_dataloaders()[name]])


@cache
def trained(dropout: float = DROPOUT) -> nn.Sequential:
    """A network of two hidden layers, trained with dropout, or without if it is 0."""
    with torch.random.fork_rng(), torch.enable_grad():
        torch.manual_seed(0)
        between = [nn.Dropout(dropout)] if dropout else []
        net = nn.Sequential(
            *(nn.Linear(64, 128), nn.ReLU(), *between),
            *(nn.Linear(128, 128), nn.ReLU(), *between),
            nn.Linear(128, 8),
        )
        optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
        for _ in range(_EPOCHS):
            for inputs, target in digits().train_dataloader():
                optimizer.zero_grad()
                nn.functional.cross_entropy(net(inputs), target).backward()
                optimizer.step()
        return net.eval()
