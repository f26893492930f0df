"""Which parameters came out of a file: a mark beside them, as loading leaves none on a tensor."""

from collections.abc import Iterable

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

#: Under this name a model keeps a few numbers of each parameter that was loaded into it.
_MARK = "_stablelightning_loaded"
#: And under this one, that none was.
_FRESH = "_stablelightning_fresh"
#: Numbers kept of each; by them a parameter that has been drawn anew since is told apart.
_KEPT = 16
#: What ``torch.compile`` puts into the names of what it wraps.
_COMPILED = "_orig_mod."


def mark_loaded(model: nn.Module, names: Iterable[str]) -> None:
    """Remember that parameters of a model came out of a file, with a few numbers of each.

    Args:
        model: gets an attribute, which copies and pickles take along; no key of the state dict.
        names: of its parameters; others (buffers) are passed over.

    Example:
        >>> net = nn.Linear(3, 2)
        >>> mark_loaded(net, ["weight"])
        >>> loaded_parameters(net)
        {'weight'}
        >>> _ = nn.init.ones_(net.weight)
        >>> loaded_parameters(net)
        set()
    """
    chosen = set(names)
    marks = {
        _clean(name): numbers
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if _clean(name) in chosen and (numbers := _numbers(parameter))
    }
    vars(model)[_MARK] = {**vars(model).get(_MARK, {}), **marks}


def mark_fresh(model: nn.Module) -> None:
    """Remember that nothing was loaded into a model when it was made, however its weights look.

    Args:
        model: gets an attribute, as for :func:`mark_loaded`.
    """
    vars(model)[_FRESH] = True


def is_marked_fresh(model: nn.Module) -> bool:
    """Whether nothing was loaded into a model, by the word of who made it.

    Example:
        >>> net = nn.Linear(3, 2)
        >>> mark_fresh(net)
        >>> is_marked_fresh(net)
        True
    """
    return _FRESH in vars(model)


def loaded_parameters(model: nn.Module) -> set[str]:
    """Names of the parameters that were loaded into a model, or a part of it, and not drawn since.

    Args:
        model: not changed.

    Example:
        >>> loaded_parameters(nn.Linear(3, 2))
        set()
    """
    marked = {
        ".".join(filter(None, (_clean(prefix), name))): numbers
        for prefix, module in model.named_modules()
        for name, numbers in vars(module).get(_MARK, {}).items()
    }
    if not marked:
        return set()
    return {
        name
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if (kept := marked.get(_clean(name))) and kept == _numbers(parameter)
    }


def _clean(name: str) -> str:
    """A name as it is without ``torch.compile``, which may come before or after."""
    return name.replace(_COMPILED, "").removesuffix(_COMPILED[:-1]).rstrip(".")


def _numbers(parameter: Tensor) -> list[float]:
    if is_lazy(parameter) or parameter.is_meta or not parameter.numel():
        return []
    flat = parameter.detach().flatten()
    chosen: list[float] = flat[:: max(1, flat.numel() // _KEPT)][:_KEPT].tolist()
    return chosen
