"""The curves under which AURC and AUGRC are areas, and the points on them."""

import torch
from _digits import BLUE, GREY, ORANGE
from matplotlib.figure import Figure
from metrics_classes import noisy

from stablelightning.functional.selective import (
    augrc,
    aurc,
    coverage_at_risk,
    excess_aurc,
    risk_at_coverage,
    risk_coverage_curve,
)
from stablelightning.report.style import legend

_COVERAGE, _RISK = 0.8, 0.05


def draw() -> Figure:
    """Risk, and generalised risk, over the coverage."""
    logits, target = noisy()
    confidence, chosen = logits.softmax(1).double().max(1)
    score, wrong = 1 - confidence, (chosen != target).double()
    curve = risk_coverage_curve(score, wrong)
    best = risk_coverage_curve(torch.arange(len(wrong)), wrong.sort().values)

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    area, excess = aurc(score, wrong), excess_aurc(score, wrong)
    left.plot(curve.coverage, curve.risk, color=BLUE, label="risk")
    left.fill_between(curve.coverage, curve.risk, color=BLUE, alpha=0.14, lw=0)
    left.plot(best.coverage, best.risk, color=GREY, ls="--", label="the best order")
    share = coverage_at_risk(score, wrong, risk=_RISK)
    risk = risk_at_coverage(score, wrong, coverage=_COVERAGE)
    left.plot([share, share, 0], [0, _RISK, _RISK], color=ORANGE, lw=0.8, ls=":")
    left.plot(share, _RISK, "o", color=ORANGE, label=f"coverage at {_RISK:.0%} risk: {share:.0%}")
    left.plot(_COVERAGE, risk, "s", color=BLUE, label=f"risk at {_COVERAGE:.0%}: {risk:.1%}")
    left.text(0.04, 0.02, f"AURC {area:.4f}\nexcess {excess:.4f}", fontsize=8.5, color=BLUE)
    left.set(xlabel="coverage: share of rows answered", ylabel="risk: share of answers wrong")
    legend(left, columns=2)

    generalised = curve.risk * curve.coverage
    right.plot(curve.coverage, generalised, color=BLUE, label="generalised risk")
    right.fill_between(curve.coverage, generalised, color=BLUE, alpha=0.14, lw=0)
    blind = wrong.mean()
    right.plot([0, 1], [0, blind], color=GREY, ls=":", label="a score that knows nothing")
    right.text(0.06, 0.05, f"AUGRC {augrc(score, wrong):.4f}", fontsize=8.5, color=BLUE)
    right.set(xlabel="coverage: share of rows answered", ylabel="share of rows answered and wrong")
    legend(right, columns=2)
    for axes in (left, right):
        axes.set(xlim=(0, 1), ylim=0)
    return figure
