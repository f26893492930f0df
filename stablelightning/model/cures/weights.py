"""The cure that writes weights: initialize the named layers anew."""

from collections import Counter
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from stablelightning.functional.isometry import in_mirrored_halves
from stablelightning.model.cures.patient import Patient, Snapshot
from stablelightning.model.cures.treatment import NotSafe
from stablelightning.model.schemes import DEEP
from stablelightning.model.stacks import plain_stacks

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
    names = tuple(_with_their_stacks(patient, named))
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


def _with_their_stacks(patient: Patient, named: list[str]) -> list[str]:
    """Deep or mirrored plain stacks belong together: half an isometry is none."""
    wanted = set(named)
    for stack in plain_stacks(patient.attribution, model=patient.model):
        whole = len(stack.layers) > DEEP or any(_is_mirrored(role.module) for role in stack.layers)
        if whole and any(role.name in wanted for role in stack.layers):
            wanted.update(role.name for role in stack.layers if not _is_frozen(role.module))
    return [role.name for role in patient.roles() if role.name in wanted]


def _is_mirrored(layer: nn.Module) -> bool:
    weight = getattr(layer, "weight", None)
    return isinstance(weight, Tensor) and in_mirrored_halves(weight)


def _is_frozen(layer: nn.Module) -> bool:
    return not any(parameter.requires_grad for parameter in layer.parameters(recurse=False))


def _told(rows: "list[LayerInitialization]") -> str:
    count = Counter(
        f"{row.distribution}{f' for {row.consumer}' if row.consumer else ''}" for row in rows
    )
    kinds = [f"{number} {kind}" for kind, number in count.most_common(_MOST_KINDS)]
    more = f" and {len(count) - _MOST_KINDS} more kinds" if len(count) > _MOST_KINDS else ""
    layers = f"{len(rows)} layer{'s' if len(rows) > 1 else ''}"
    return f"the weights of {layers} were drawn anew: {', '.join(kinds)}{more}"
