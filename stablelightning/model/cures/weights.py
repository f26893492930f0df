"""The cure that writes weights: initialize the named layers anew."""

from collections import Counter
from typing import TYPE_CHECKING, Any

from stablelightning.model.cures.patient import Patient, Snapshot
from stablelightning.model.cures.treatment import NotSafe

if TYPE_CHECKING:
    from stablelightning.model.initialization import LayerInitialization

_MOST_KINDS = 4  # of distributions, in words; sl.initialize tells them all


def initialize_again(
    patient: Patient, modules: tuple[str, ...], arguments: dict[str, Any]
) -> tuple[str, tuple[str, ...]]:
    """Initialize the layers in the named modules, whatever they hold now.

    Args:
        patient: the model.
        modules: dotted names of layers or of what holds them; none is the whole model. Where the
            outputs of the model are not finite, all layers behind the first of them count too.
        arguments: ``scheme``, as for :func:`stablelightning.initialize`.

    Returns:
        What was done, in words, and the names of the layers.

    Raises:
        NotSafe: nothing could be initialized; the weights are as they were.
    """
    from stablelightning.model.initialize import initialize

    named = [role.name for role in patient.roles(modules)]
    if not named:
        raise NotSafe("the example reaches no layer of the named modules")
    if not patient.was_finite:
        # Behind the first layer that overflows nothing could be measured, and so nothing be named.
        order = [role.name for role in patient.roles()]
        named = order[order.index(named[0]) :]
    names = tuple(named)
    snapshot = Snapshot(patient.model)
    try:
        report = initialize(
            patient.model,
            patient.example,
            scheme=str(arguments.get("scheme", "auto")),
            overwrite=names,
        )
        patient.check()
    except BaseException:
        snapshot.restore()
        raise
    written = [row for row in report.rows if row.changed]
    if not written:
        raise NotSafe(f"nothing could be written: {report.rows[0].why if report.rows else 'none'}")
    return _told(written), tuple(row.name for row in written)


def _told(rows: "list[LayerInitialization]") -> str:
    count = Counter(
        f"{row.distribution}{f' for {row.consumer}' if row.consumer else ''}" for row in rows
    )
    kinds = [f"{number} {kind}" for kind, number in count.most_common(_MOST_KINDS)]
    more = f" and {len(count) - _MOST_KINDS} more kinds" if len(count) > _MOST_KINDS else ""
    layers = f"{len(rows)} layer{'s' if len(rows) > 1 else ''}"
    return f"the weights of {layers} were drawn anew: {', '.join(kinds)}{more}"
