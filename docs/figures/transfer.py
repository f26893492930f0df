"""Two networks that learned five digits are probed for five others, with ten labels each."""

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from stablelightning.data import DigitsData
from stablelightning.model.head import replace_head
from stablelightning.model.probe import probe_by_depth
from stablelightning.model.transfer_choice import choose_transfer
from stablelightning.nn import MLP, ConvNet
from stablelightning.report.transfer import draw_probes

_EVEN, _ODD = (0, 2, 4, 6, 8), (1, 3, 5, 7, 9)
_LABELS, _EPOCHS = 10, 15


def _rows(data: DigitsData) -> tuple[Tensor, Tensor]:
    data.setup()
    inputs, target = zip(*data.part("train"), strict=True)
    return torch.stack(inputs), torch.stack(target)


def _trained(network: nn.Module, inputs: Tensor, target: Tensor) -> nn.Module:
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    for _ in range(_EPOCHS):
        for rows in torch.randperm(len(inputs)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(inputs[rows]), target[rows]).backward()
            optimizer.step()
    return network


def draw() -> Figure:
    """Draw what was read at each depth, and what was chosen."""
    networks = {
        "five hidden layers": lambda: nn.Sequential(nn.Flatten(), MLP(64, 5, hidden=[128] * 5)),
        "three convolutions": lambda: ConvNet(in_channels=1, out_features=5, channels=[16, 32, 64]),
    }
    few = _rows(DigitsData(held_out=_EVEN, image=True, labels_per_class=_LABELS))
    figure = Figure(figsize=(7.2, 3.4), layout="constrained")
    for axes, (name, make) in zip(
        figure.subplots(1, 2, sharey=True), networks.items(), strict=True
    ):
        with torch.random.fork_rng(), torch.enable_grad():
            torch.manual_seed(0)
            network = _trained(make(), *_rows(DigitsData(held_out=_ODD, image=True)))
            replace_head(network, 5)
        profile = probe_by_depth(network, [few])
        draw_probes(axes, profile, choose_transfer(profile, _LABELS))
        labels = ["inputs", *(f"after {n + 1}" for n in range(len(profile.groups) - 1))]
        axes.set_xticks(range(len(labels)), labels, rotation=0, ha="center")
        axes.set_title(name, fontsize=9, pad=18)
    figure.axes[1].set_ylabel("")
    return figure
