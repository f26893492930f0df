"""What the network does not know: digits it never saw get more mutual information."""

from _digits import BLUE, ORANGE, digits, split, trained, unknown
from matplotlib.figure import Figure

import stablelightning as sl

_SAMPLES = 100


def draw() -> Figure:
    """Histogram of the epistemic uncertainty beside the digits it is largest for."""
    test, _ = split("test")
    unseen = unknown("held_out_digits")
    known = sl.mc_dropout(trained(), test, samples=_SAMPLES, seed=0)
    new = sl.mc_dropout(trained(), unseen, samples=_SAMPLES, seed=0)

    figure = Figure(figsize=(8, 2.9), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(3, 2))
    axes = left.subplots()
    bins = [i * 0.03 for i in range(26)]
    kwargs = {"bins": bins, "density": True, "alpha": 0.7}
    axes.hist(known.epistemic.numpy(), color=BLUE, label="0 to 7: trained on", **kwargs)
    axes.hist(new.epistemic.numpy(), color=ORANGE, label="8 and 9: never seen", **kwargs)
    axes.set(xlabel="mutual information (nats)", ylabel="density")
    axes.legend(frameon=False)

    names = digits().class_names
    order = new.epistemic.argsort(descending=True)[:6].tolist()
    right.suptitle("never seen, most uncertain", fontsize=9)
    for panel, row in zip(right.subplots(2, 3).flat, order, strict=True):
        panel.imshow(unseen[row].reshape(8, 8), cmap="gray_r")
        guess = int(new.mean[row].argmax())
        panel.set_title(f"{names[guess]}? at {new.mean[row, guess]:.2f}", fontsize=8)
        panel.set_axis_off()
    return figure
