"""The cure that writes weights: initialize the named layers anew."""

from typing import Any

from stablelightning.model.cures.patient import Patient, Snapshot
from stablelightning.model.cures.treatment import NotSafe


def initialize_again(
    patient: Patient, modules: tuple[str, ...], arguments: dict[str, Any]
) -> tuple[str, tuple[str, ...]]:
    """Initialize the layers in the named modules, whatever they hold now.

    Args:
        patient: the model.
        modules: dotted names of layers or of what holds them; none is the whole model.
        arguments: ``scheme``, as for :func:`stablelightning.initialize`.

    Returns:
        What was done, in words, and the names of the layers.

    Raises:
        NotSafe: nothing could be initialized; the weights are as they were.
    """
    from stablelightning.model.initialize import initialize

    names = tuple(role.name for role in patient.roles(modules))
    if not names:
        raise NotSafe("the example reaches no layer of the named modules")
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
    raise NotSafe(str(report))
