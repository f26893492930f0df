"""A hundred plain ReLU layers before the first step, by three ways to draw their weights."""

import torch
import torch.nn.functional as F
from _digits import BLUE, GREY, ORANGE, split
from matplotlib.figure import Figure
from torch import Tensor, nn

import stablelightning as sl
from stablelightning.functional.depth import cosine_map

_DEPTH, _WIDTH, _ROWS = 100, 128, 128


def _network() -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Linear(64, _WIDTH), nn.ReLU()]
    for _ in range(_DEPTH - 2):
        layers += [nn.Linear(_WIDTH, _WIDTH), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(_WIDTH, 8))


def _profile(network: nn.Module, x: Tensor) -> dict[str, list[float]]:
    """Spread over the data, mean cosine between inputs, and gradient, behind each layer."""
    outputs = []
    for module in network.children():
        x = module(x)
        if isinstance(module, nn.Linear):
            outputs.append(x)
    gradients = torch.autograd.grad(x, outputs[:-1], torch.randn_like(x))
    hidden = [output.detach() for output in outputs[:-1]]
    half = _ROWS // 2
    return {
        "std over the data": [h.std(0).square().mean().sqrt().item() for h in hidden],
        "mean cosine between inputs": [
            F.cosine_similarity(h[:half], h[half:]).mean().item() for h in hidden
        ],
        "rms of the gradient": [g.square().mean().sqrt().item() for g in gradients],
    }


def draw() -> Figure:
    """Three panels over the layers."""
    inputs = split("train")[0].flatten(1)[:_ROWS]
    inputs = (inputs - inputs.mean()) / inputs.std()
    figure = Figure(figsize=(9.5, 3.1), layout="constrained")
    panels = figure.subplots(1, 3, sharex=True)
    schemes = (("PyTorch's default", None, GREY), ("He", "he", ORANGE), ("auto", "auto", BLUE))
    for name, scheme, colour in schemes:
        network = _network()
        if scheme is not None:
            sl.initialize(network, inputs, scheme=scheme)
        for axes, (quantity, values) in zip(panels, _profile(network, inputs).items(), strict=True):
            axes.plot(range(1, _DEPTH), values, color=colour, label=name, linewidth=2)
            axes.set(xlabel="layer", title=quantity)
    cosine = [panels[1].lines[1].get_ydata()[0]]
    while len(cosine) < _DEPTH - 1:
        cosine.append(cosine_map(torch.relu, float(cosine[-1])))
    panels[1].plot(
        range(1, _DEPTH), cosine, color="black", linewidth=1, linestyle=":", label="theory"
    )
    for axes in (panels[0], panels[2]):
        axes.set_yscale("log")
        axes.set_ylim(1e-12, 1e2)
    panels[1].legend(frameon=False, loc="center right")
    return figure
