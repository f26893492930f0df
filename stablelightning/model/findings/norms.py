"""Findings about batch norm: what it normalises over, and what comes before it."""

from collections.abc import Iterator

from stablelightning.model.diagnosis import Finding
from stablelightning.model.findings.examination import Examination
from stablelightning.model.step_watch import WatchedNorm


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
