"""Known and unknown digits by their entropy, and the numbers that come of it."""

import torch
from _digits import BLUE, GREY, ORANGE, split, trained, unknown
from matplotlib.figure import Figure

import stablelightning as sl
from stablelightning.functional.out_of_distribution import (
    false_positive_rate,
    ood_aupr_in,
    ood_aupr_out,
    ood_auroc,
)
from stablelightning.functional.rank_groups import reversed_groups, tie_groups
from stablelightning.report.style import legend

_SAMPLES = 100


def draw() -> Figure:
    """Histogram with the threshold of FPR95, ROC curve, precision and recall of both kinds."""
    inputs, _ = split("test")
    strange = unknown("held_out_digits")
    score = torch.cat(
        [sl.mc_dropout(trained(), x, samples=_SAMPLES, seed=0).total for x in (inputs, strange)]
    )
    out = torch.arange(len(score)) >= len(inputs)
    figure = Figure(figsize=(10, 3.4), layout="constrained")
    left, middle, right = figure.subplots(1, 3)

    threshold = score[~out].quantile(0.95, interpolation="higher").item()
    edges = torch.linspace(0, float(score.max()), 31).tolist()
    for part, colour, name in ((~out, BLUE, "known"), (out, ORANGE, "unknown")):
        left.hist(
            score[part].tolist(), bins=edges, density=True, alpha=0.55, color=colour, label=name
        )
    left.axvline(threshold, color=GREY, lw=1, ls="--")
    rate = false_positive_rate(score, out)
    left.set(xlabel="entropy (nats)", ylabel="density", yticks=[])
    left.text(
        threshold,
        left.get_ylim()[1] * 0.97,
        f" FPR95: {rate:.0%} of the\n unknown are left\n of this line",
        fontsize=8.5,
        va="top",
    )
    legend(left, columns=2)

    groups = reversed_groups(tie_groups(score, out))
    found = groups.mark.cumsum(0) / groups.mark.sum()
    others = groups.rows - groups.mark
    false = others.cumsum(0) / others.sum()
    middle.plot([0, *false.tolist()], [0, *found.tolist()], color=BLUE)
    middle.fill_between([0, *false.tolist()], [0, *found.tolist()], color=BLUE, alpha=0.14, lw=0)
    middle.plot([0, 1], [0, 1], color=GREY, ls=":")
    middle.text(0.4, 0.1, f"AUROC {ood_auroc(score, out):.3f}", fontsize=8.5, color=BLUE)
    middle.set(xlabel="share of the known flagged", ylabel="share of the unknown flagged")

    for kind, sign, area, colour in (
        ("out", 1, ood_aupr_out(score, out), ORANGE),
        ("in", -1, ood_aupr_in(score, out), BLUE),
    ):
        part = tie_groups(sign * score, out if sign > 0 else ~out)
        part = reversed_groups(part)
        precision = part.mark.cumsum(0) / part.rows.cumsum(0)
        recall = part.mark.cumsum(0) / part.mark.sum()
        right.plot(recall, precision, color=colour, label=f"AUPR {kind} {area:.3f}")
    right.set(xlabel="recall", ylabel="precision", ylim=(0, 1.02))
    legend(right, columns=2)
    return figure
