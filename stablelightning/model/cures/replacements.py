"""Cures that put another module in the place of one without weights: activations, dropout."""

from typing import Any

from torch import nn

from stablelightning.errors import RecipeError
from stablelightning.model.activation import swap_activations
from stablelightning.model.activation_names import is_activation
from stablelightning.model.cures.patient import Patient
from stablelightning.model.cures.treatment import NotSafe, module_named

#: What keeps the mean and variance of a self-normalizing network, for each kind of dropout.
_ALPHA: dict[type[nn.Module], type[nn.Module]] = {
    nn.Dropout: nn.AlphaDropout,
    nn.Dropout1d: nn.FeatureAlphaDropout,
    nn.Dropout2d: nn.FeatureAlphaDropout,
    nn.Dropout3d: nn.FeatureAlphaDropout,
}


# ---- activations --------------------------------------------------------------------------------


def plan_swap(
    patient: Patient, modules: tuple[str, ...], arguments: dict[str, Any]
) -> dict[str, Any]:
    """Name the new activation, and the modules that it takes the places of.

    Args:
        patient: the model.
        modules: dotted names of the weight layers behind which it stands, or of what holds them;
            none is every hidden activation.
        arguments: ``activation``, a name for
            :func:`~stablelightning.model.activation.swap_activations`.

    Raises:
        NotSafe: no activation is named.
    """
    activation = arguments.get("activation")
    if not isinstance(activation, str):
        raise NotSafe("no activation is named")
    named = patient.names_to_modules
    behind = {role.consumer.module for role in patient.roles(modules)} if modules else set()
    only = sorted(path for path in behind if path in named and is_activation(named[path]))
    return {"activation": activation, "only": only or None}


def perform_swap(model: nn.Module, plan: dict[str, Any]) -> None:
    """Swap the planned activations."""
    try:
        report = swap_activations(model, plan["activation"], only=plan.get("only"))
    except RecipeError as error:
        raise NotSafe(str(error)) from error
    if not report.swapped:
        raise NotSafe(
            "no hidden activation is a module: those that a forward calls by itself are its own"
        )


def tell_swap(plan: dict[str, Any]) -> str:
    """What was done, in words."""
    only = plan.get("only")
    where = "the hidden activations, but for those that a forward calls by itself,"
    if only:
        where = f"{only[0]}{f' and {len(only) - 1} more activations' if len(only) > 1 else ''}"
    return (
        f"{where} {'are' if not only or len(only) > 1 else 'is'} now {plan['activation']}; weights "
        "are as they were, and their gain may no longer fit"
    )


# ---- dropout ------------------------------------------------------------------------------------


def plan_alpha_dropout(
    patient: Patient, modules: tuple[str, ...], arguments: dict[str, Any]
) -> dict[str, Any]:
    """Find the dropout modules.

    Args:
        patient: the model.
        modules: dotted names of dropout modules, of what holds them, or of layers that one follows
            or precedes; none is every dropout of the model.
        arguments: none.

    Raises:
        NotSafe: there is none that can be exchanged.
    """
    return _plan_dropout(patient, modules)


def plan_drop_dropout(
    patient: Patient, modules: tuple[str, ...], arguments: dict[str, Any]
) -> dict[str, Any]:
    """As :func:`plan_alpha_dropout`; ``arguments`` may name one as ``dropout``."""
    named = arguments.get("dropout")
    return _plan_dropout(patient, (*modules, str(named)) if named else modules)


def _plan_dropout(patient: Patient, modules: tuple[str, ...]) -> dict[str, Any]:
    beside = _beside(patient, modules)
    found = [
        name
        for name, module in patient.model.named_modules()
        if name and type(module) in _ALPHA and (module in beside or _is_within(name, modules))
    ]
    free = [name for name in found if not _is_hooked(patient.model.get_submodule(name))]
    if not free:
        raise NotSafe(
            "its dropout carries hooks" if found else "its dropout is no module that can be changed"
        )
    return {"modules": free}


def _beside(patient: Patient, modules: tuple[str, ...]) -> set[nn.Module]:
    """Dropout modules whose output is the very input of a named module, or the other way round."""
    named = {patient.names_to_modules[name] for name in modules if name in patient.names_to_modules}
    read = {id(v) for m in named for call in patient.calls_of(m) for v in call.inputs}
    made = {id(v) for m in named for call in patient.calls_of(m) for v in call.outputs}
    return {
        call.module
        for call in patient.attribution.trace.calls
        if type(call.module) in _ALPHA
        and ({id(v) for v in call.outputs} & read or {id(v) for v in call.inputs} & made)
    }


def perform_alpha_dropout(model: nn.Module, plan: dict[str, Any]) -> None:
    """Put alpha dropout of the same rate into the places of the dropout modules."""
    for name in plan["modules"]:
        old: Any = module_named(model, name)
        _replace(model, old, _ALPHA[type(old)](old.p))


def perform_drop_dropout(model: nn.Module, plan: dict[str, Any]) -> None:
    """Put the identity into the places of the dropout modules."""
    for name in plan["modules"]:
        _replace(model, module_named(model, name), nn.Identity())


def tell_alpha_dropout(plan: dict[str, Any]) -> str:
    """What was done, in words."""
    return f"{_named(plan)} became alpha dropout of the same rate, which keeps mean and variance"


def tell_drop_dropout(plan: dict[str, Any]) -> str:
    """What was done, in words."""
    return f"{_named(plan)} was taken out: an identity stands in its place"


def _named(plan: dict[str, Any]) -> str:
    first, *others = plan["modules"]
    return f"the dropout at {first}{f' and {len(others)} more places' if others else ''}"


def _is_within(name: str, modules: tuple[str, ...]) -> bool:
    return not modules or any(not m or name == m or name.startswith(f"{m}.") for m in modules)


def _is_hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _replace(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """In every place where the model holds it."""
    new.train(old.training)
    for owner in list(model.modules()):
        for key, child in owner._modules.items():
            if child is old:
                owner._modules[key] = new
