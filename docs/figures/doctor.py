"""The doctor's page on fifty plain layers: before and after what it did."""

import torch
from _digits import split
from matplotlib.figure import Figure

import stablelightning as sl
from stablelightning.nn import DeepMLP
from stablelightning.report.diagnosis import diagnosis_figure


def draw() -> Figure:
    """The picture that the command leaves as ``doctor.png``."""
    inputs, target = split("train")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = DeepMLP(64, 8, depth=50, width=128)
        return diagnosis_figure(sl.diagnose(network, (inputs[:256], target[:256])).apply())
