"""Findings about batch norm: what it normalises over, and what comes before it."""

from collections.abc import Iterator

from torch import Tensor

from stablelightning.functional.signals import root_mean_square
from stablelightning.model.diagnosis import Finding
from stablelightning.model.findings.examination import Examination
from stablelightning.model.step_watch import NORMS
from stablelightning.model.watched import WatchedNorm

#: No norm starts with a larger scale (1 is usual, 0 at the end of a branch): ten times the signal.
LARGE_SCALE = 10.0
#: An offset so many times the scale keeps nearly every value of the norm on one side of zero.
FAR_OFFSET = 5.0


def norm_parameters(examination: Examination) -> Iterator[Finding]:
    """A norm whose own scale or offset undoes what it is there for."""
    for name, module in examination.measurement.modules.items():
        weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
        if not isinstance(module, NORMS) or not isinstance(weight, Tensor):
            continue
        scale = float(root_mean_square(weight.detach()))
        offset = 0.0 if bias is None else float(root_mean_square(bias.detach()))
        if scale > LARGE_SCALE:
            yield Finding(
                "exploding-signal",
                "warning",
                name,
                f"{name} multiplies what it has normalised by {scale:.3g}.",
                {"scale": scale},
                "let norms start with a scale of one.",
                modules=(name,),
            )
        elif 0 < FAR_OFFSET * scale < offset and offset > 1:
            dead = _silenced_by(examination, name)
            yield Finding(
                "dead-units" if dead else "not-zero-centred",
                "error" if dead == 1.0 else "warning",
                name,
                f"{name} adds {offset:.3g} to values of scale {scale:.2g}: nearly all lie on one "
                "side of zero"
                + (f", and {dead:.0%} of the units behind it are off." if dead else "."),
                {"scale": scale, "offset": offset, "dead": dead},
                "let norms start with an offset of zero.",
                modules=(name,),
            )


def _silenced_by(examination: Examination, norm: str) -> float:
    """Share of dead units behind a norm; its layers are then not blamed themselves."""
    dead = 0.0
    for layer in examination.layers:
        if layer.norm == norm and layer.activation is not None:
            if layer.activation.dead >= 0.5:
                examination.blame_activation(layer, layer.activation.slope)
            dead = max(dead, layer.activation.dead)
    return dead


def batch_norm_one_row(examination: Examination) -> Iterator[Finding]:
    """A mean over one value is the value: nothing is left of it."""
    norms = [n for n in examination.measurement.norms if n.training]
    single = [n for n in norms if n.rows == 1]
    if single:
        yield _finding(
            single,
            "error",
            "batch-norm-one-row",
            f"{single[0].name} normalises over one value for each channel: training stops with an "
            "error there.",
            "use batches of two rows or more (drop_last=True for the last one), or layer or group "
            "norm.",
        )
        return
    lonely = [n for n in norms if n.examples == 1]
    if lonely:
        yield _finding(
            lonely,
            "warning",
            "batch-norm-one-row",
            f"{lonely[0].name} takes its statistics from the positions of a single example: "
            "training and evaluation will differ.",
            "use larger batches, or layer or group norm.",
        )


def dropout_before_norm(examination: Examination) -> Iterator[Finding]:
    """Dropout raises the variance in training only; the running variance is then wrong in eval."""
    norms = [n for n in examination.measurement.norms if n.after_dropout is not None]
    if norms:
        dropout = norms[0].after_dropout
        yield _finding(
            norms,
            "warning",
            "dropout-before-norm",
            f"{dropout or 'dropout'} comes right before {norms[0].name}: the variance that it "
            "stores is that of dropped activations, which evaluation never sees.",
            "put the dropout behind the last batch norm, or use layer norm.",
            cure="drop-dropout",
            **({"dropout": dropout} if dropout in examination.measurement.modules else {}),
        )


def recurrent_batch_norm(examination: Examination) -> Iterator[Finding]:
    """One set of running statistics for every time step fits none of them."""
    norms = [n for n in examination.measurement.norms if n.recurrent]
    if norms:
        yield _finding(
            norms,
            "warning",
            "recurrent-batch-norm",
            f"{norms[0].name} is applied again to what came out of it: its statistics mix all time "
            "steps, and grow with the length of the sequence.",
            "use layer norm inside a recurrent loop.",
        )


def _finding(
    norms: list[WatchedNorm],
    severity: str,
    code: str,
    message: str,
    remedy: str,
    cure: str | None = None,
    **arguments: str,
) -> Finding:
    return Finding(
        code,
        severity,  # type: ignore[arg-type]
        norms[0].name,
        message,
        {"norms": float(len(norms)), "rows": float(norms[0].rows)},
        remedy,
        cure,
        dict(arguments),
        tuple(n.name for n in norms),
    )
