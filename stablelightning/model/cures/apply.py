"""From findings to treatments: which cures, in which order, and what became of each."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from stablelightning.errors import CheckpointError, StableLightningError
from stablelightning.model.cures import norms, replacements, scales, skips, weights
from stablelightning.model.cures.patient import Patient, Snapshot
from stablelightning.model.cures.treatment import (
    NotSafe,
    Treatment,
    record_treatment,
    recorded_treatments,
)

if TYPE_CHECKING:
    from stablelightning.model.diagnosis import Finding
from stablelightning.model.members import members_of

Plan = dict[str, Any]


@dataclass(frozen=True)
class Cure:
    """The three steps of a structural cure.

    Args:
        plan: finds what can be changed, in the named modules; raises ``NotSafe`` where nothing can.
        perform: changes it; the plan alone says how, so that it can be done again before a
            checkpoint is loaded.
        tell: says in words what was done.
    """

    plan: Callable[[Patient, tuple[str, ...], dict[str, Any]], Plan]
    perform: Callable[[nn.Module, Plan], None]
    tell: Callable[[Plan], str]


#: Structural cures by the name that a finding gives, in the order in which they are applied: what
#: bends the signal, then norms and what these make void, then the ways around all of that.
CURES: dict[str, Cure] = {
    "swap-activation": Cure(
        replacements.plan_swap, replacements.perform_swap, replacements.tell_swap
    ),
    "alpha-dropout": Cure(
        replacements.plan_alpha_dropout,
        replacements.perform_alpha_dropout,
        replacements.tell_alpha_dropout,
    ),
    "drop-dropout": Cure(
        replacements.plan_drop_dropout,
        replacements.perform_drop_dropout,
        replacements.tell_drop_dropout,
    ),
    "insert-norm": Cure(norms.plan_norms, norms.perform_norms, norms.tell_norms),
    "drop-bias": Cure(norms.plan_bias_drop, norms.perform_bias_drop, norms.tell_bias_drop),
    "add-skips": Cure(skips.plan_skips, skips.perform_skips, skips.tell_skips),
    "add-scale": Cure(scales.plan_scales, scales.perform_scales, scales.tell_scales),
}

#: The one cure that writes weights.
INITIALIZE = "initialize"
#: It comes when functions and norms are what they will be, and before the ways around: a branch
#: keeps the weights of the isometry that its layers made up, and trains better with them.
_BEHIND = ("add-skips", "add-scale")


@dataclass
class _Request:
    """What several findings ask of one cure."""

    cure: str
    arguments: dict[str, Any]
    modules: list[str]
    anywhere: bool = False

    @property
    def places(self) -> tuple[str, ...]:
        return () if self.anywhere else tuple(self.modules)


def apply_cures(model: nn.Module, findings: "Iterable[Finding]", example: Any) -> list[Treatment]:
    """Perform the cures that findings name, each whole or not at all, on the model in place.

    Args:
        model: any eager module; changed. Make its optimizer afterwards where a treatment says that
            there are new parameters; those that are there already stay the same objects.
        findings: of :func:`stablelightning.diagnose`; those without a cure are passed over, and
            several that ask for the same cure are one.
        example: inputs of one batch: a tensor, a tuple to spread, a dict of keywords.

    Returns:
        A :class:`Treatment` for each cure, those that could not be done included.

    Raises:
        DataError: the example does not fit the forward; nothing was changed.
        ModelError: the model is compiled or scripted; nothing was changed.

    Example:
        >>> import torch
        >>> from stablelightning.model.diagnosis import Finding
        >>> net = nn.Sequential(*[m for _ in range(4) for m in (nn.Linear(8, 8), nn.ReLU())])
        >>> _ = net.append(nn.Linear(8, 2))
        >>> found = [Finding("plain-depth", "warning", "", "deep", cure="add-skips")]
        >>> [treatment] = apply_cures(net, found, torch.randn(5, 8))
        >>> print(treatment)
        add-skips done: 2 residual branches in the model: x + scale * branch(x), where each scale
        is learned and 0.5 at first; no weight was changed or renamed
    """
    requests = _requests(findings)
    if not requests:
        return []
    patient = Patient(model, example)
    return [_treated(patient, request) for request in requests]


def repeat_treatments(model: nn.Module, treatments: Sequence[dict[str, Any]]) -> int:
    """Change the structure of a new model as that of a treated one was, before loading its weights.

    Args:
        model: made as the treated one was; changed in place. Treatments that it already has are not
            repeated.
        treatments: of :func:`recorded_treatments`.

    Returns:
        How many were repeated.

    Raises:
        CheckpointError: the model is another one, or was treated otherwise; nothing was changed.

    Example:
        >>> import torch
        >>> from stablelightning.model.cures import recorded_treatments
        >>> from stablelightning.model.diagnosis import Finding
        >>> def make():
        ...     return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> treated, new = make(), make()
        >>> found = [Finding("loud", "warning", "0", "loud", cure="insert-norm")]
        >>> _ = apply_cures(treated, found, torch.randn(5, 4))
        >>> repeat_treatments(new, recorded_treatments(treated))
        1
        >>> new.load_state_dict(treated.state_dict())
        <All keys matched successfully>
    """
    if (members := members_of(model)) is not None:
        with members.as_member(0):  # the structure is that of all
            return repeat_treatments(model, treatments)
    had = recorded_treatments(model)
    wanted = [dict(entry) for entry in treatments]
    if wanted[: len(had)] != had:
        raise CheckpointError(
            f"this {type(model).__name__} was treated in another way than the one of the "
            "checkpoint; make it anew."
        )
    snapshot = Snapshot(model)
    try:
        for entry in wanted[len(had) :]:
            CURES[entry["cure"]].perform(model, entry["plan"])
            record_treatment(model, entry["cure"], entry["plan"])
    except (KeyError, NotSafe, AssertionError, StableLightningError) as error:
        snapshot.restore()
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(
            f"what the doctor changed must be changed again before the weights are loaded, and "
            f"this {type(model).__name__} does not allow it ({error}); give the settings that the "
            "model was trained with."
        ) from error
    return len(wanted) - len(had)


def _requests(findings: "Iterable[Finding]") -> list[_Request]:
    """One for each cure and its arguments, in the order of treatment."""
    merged: dict[tuple[str, str], _Request] = {}

    def ask(cure: str, arguments: dict[str, Any], finding: "Finding") -> None:
        key = cure, repr(sorted(arguments.items()))
        request = merged.setdefault(key, _Request(cure, arguments, []))
        places = [*finding.modules] or ([finding.module] if finding.module else [])
        request.anywhere |= not places
        request.modules += [name for name in places if name not in request.modules]

    for finding in findings:
        if finding.cure is None:
            continue
        arguments = dict(finding.cure_arguments)
        weights_too = arguments.pop(INITIALIZE, None)
        ask(finding.cure, arguments, finding)
        if weights_too:
            named = {"scheme": weights_too} if isinstance(weights_too, str) else {}
            ask(INITIALIZE, named, finding)
    _draw_once(list(merged.values()))
    for request in merged.values():
        if request.cure == INITIALIZE and any(other.cure in _BEHIND for other in merged.values()):
            # What becomes branches need not be straight, and bends more with a larger signal.
            request.arguments.setdefault("scheme", "branches")
    order = [*(name for name in CURES if name not in _BEHIND), INITIALIZE, *_BEHIND]

    def place(request: _Request) -> tuple[int, bool]:
        # A scheme that is asked for by name has the last word on its layers.
        known = order.index(request.cure) if request.cure in order else len(order)
        return known, "scheme" in request.arguments

    wanted = [request for request in merged.values() if request.anywhere or request.modules]
    return sorted(wanted, key=place)


def _draw_once(requests: list[_Request]) -> None:
    """Let a scheme that a finding names draw the layers that others, too, want drawn."""
    drawn = [request for request in requests if request.cure == INITIALIZE]
    for named in (request for request in drawn if "scheme" in request.arguments):
        for usual in (request for request in drawn if "scheme" not in request.arguments):
            if set(named.modules) & set(usual.modules):
                named.modules += [name for name in usual.modules if name not in named.modules]
                usual.modules.clear()


def _treated(patient: Patient, request: _Request) -> Treatment:
    name = request.cure
    try:
        if name == INITIALIZE:
            words, modules = weights.initialize_again(patient, request.places, request.arguments)
            return Treatment(name, True, words, modules)
        if name not in CURES:
            raise NotSafe(f"there is no such cure; known are {', '.join([*CURES, INITIALIZE])}")
        cure = CURES[name]
        plan = cure.plan(patient, request.places, request.arguments)
    except (NotSafe, StableLightningError) as reason:
        return Treatment(name, False, str(reason))
    snapshot = Snapshot(patient.model)
    before = patient.attribution
    try:
        cure.perform(patient.model, plan)
        patient.check()
    except BaseException as error:
        snapshot.restore()
        patient.attribution = before
        if not isinstance(error, NotSafe | StableLightningError | RuntimeError):
            raise
        return Treatment(name, False, f"it was tried and undone: {error}")
    record_treatment(patient.model, name, plan)
    return Treatment(name, True, cure.tell(plan), _changed(plan), plan)


def _changed(plan: Plan) -> tuple[str, ...]:
    places = [*plan.get("containers", []), *plan.get("places", [])]
    return (*(place["module"] for place in places), *plan.get("modules", []))
