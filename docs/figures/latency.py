"""One pass and Monte Carlo dropout over the batch size, with and without folded batch norms."""

import torch
from matplotlib.figure import Figure

from stablelightning.model.latency import measure_latency
from stablelightning.nn import ConvNet
from stablelightning.report.latency import latency_figure


def draw() -> Figure:
    """The picture of the doctor's page and of a run's report, of a small network."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = ConvNet(1, 8, channels=[16, 32], dropout=0.1).eval()
        images = torch.randn(64, 1, 16, 16)
        report = measure_latency(net, images, batch_sizes=(1, 8, 32), seconds=4.0)
    return latency_figure(report)
