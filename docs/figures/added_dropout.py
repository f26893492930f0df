"""A network trained without dropout: which rate, added afterwards, makes validation most likely."""

import copy

from _digits import BLUE, GREY, ORANGE, split, trained
from matplotlib.figure import Figure
from torch import nn

import stablelightning as sl
from stablelightning.model.dropout import added_dropouts


def draw() -> Figure:
    """Validation likelihood by rate, against the plain forward."""
    net = copy.deepcopy(trained(dropout=0))
    inputs, target = split("val")
    plain = nn.functional.cross_entropy(net(inputs), target).item()
    sl.add_dropout(net, data=[(inputs, target)])
    (dropout,) = added_dropouts(net).values()
    table = dropout.nll_by_rate

    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.subplots()
    axes.semilogx(list(table), list(table.values()), "o-", color=BLUE, label="MC dropout")
    axes.axhline(plain, color=GREY, linestyle="--", label="plain forward")
    axes.plot(dropout.p, table[dropout.p], "o", color=ORANGE, markersize=10, label="chosen")
    axes.set(xlabel="rate p", ylabel="validation NLL (nats)")
    axes.set_xticks(list(table), [f"{rate:g}" for rate in table], minor=False)
    axes.minorticks_off()
    axes.legend(frameon=False)
    return figure
