"""Objects made from their description in a recipe: ``class_path`` and ``init_args``."""

import inspect
from argparse import ArgumentError
from collections.abc import Mapping
from importlib import import_module
from typing import Any, TypeVar

from jsonargparse import ArgumentParser, Namespace

from stablelightning.errors import RecipeError

_Kind = TypeVar("_Kind")

#: What a description consists of.
_PARTS = ("class_path", "init_args")


def described(
    what: str, description: Mapping[str, Any] | str, base: type[_Kind], **given: Any
) -> _Kind:
    """Make an object from its description, as a recipe would, with what is known beside it.

    Args:
        what: the setting that holds the description, for messages.
        description: ``class_path`` (dotted, or the bare name of a class that is imported) and
            ``init_args``, which may describe further objects; or a ``class_path`` alone.
        base: what the class must be.
        **given: arguments that the description leaves out, because only the program has them.

    Raises:
        RecipeError: there is no such class, it is none of ``base``, or it takes other arguments.

    Example:
        >>> from torch import nn
        >>> text = {"class_path": "torch.nn.Linear", "init_args": {"out_features": 3}}
        >>> described("layer", text, nn.Module, in_features=2)
        Linear(in_features=2, out_features=3, bias=True)
    """
    path, arguments = _parts(what, description)
    kind = _class(what, path, base)
    unknown = [name for name in given if name not in inspect.signature(kind).parameters]
    if unknown:
        raise RecipeError(
            f"{what} must be a class that takes a {unknown[0]}, got {path}, which does not."
        )
    parser = ArgumentParser(exit_on_error=False)
    try:
        parser.add_class_arguments(kind, what, skip=set(given), instantiate=False)
        parsed = parser.parse_object({what: arguments})
        # Renamed in jsonargparse 4.49.
        instantiate = getattr(parser, "instantiate", parser.instantiate_classes)
        made = instantiate(parsed).get(what)
    except (ArgumentError, TypeError, ValueError) as error:
        if isinstance(error, RecipeError):
            raise
        raise RecipeError(f"{what} does not describe a {kind.__name__}: {_short(error)}") from error
    return kind(**given, **(vars(made) if made else {}))


def plain(value: Any) -> Any:
    """A description as plain types, whatever the parser made of parts of it.

    Example:
        >>> plain(Namespace(class_path="a.B", init_args=Namespace(width=2)))
        {'class_path': 'a.B', 'init_args': {'width': 2}}
    """
    if isinstance(value, Namespace):
        value = vars(value)
    if isinstance(value, Mapping):
        return {str(key): plain(inside) for key, inside in value.items()}
    return [plain(inside) for inside in value] if isinstance(value, list) else value


def check_described(what: str, description: Any) -> None:
    """Refuse what cannot be a description; no class is looked for.

    Raises:
        RecipeError: it is not.

    Example:
        >>> check_described("data", {"class_path": "stablelightning.data.DigitsData"})
    """
    _parts(what, description)


def _parts(what: str, description: Any) -> tuple[str, dict[str, Any]]:
    if isinstance(description, str) and description:
        return description, {}
    path = description.get("class_path") if isinstance(description, Mapping) else None
    if not isinstance(path, str) or not path:
        raise RecipeError(
            f"{what} must be a description with a class_path and its init_args, got "
            f"{description!r}; write it as in a recipe."
        )
    # An argument that is overridden on the command line stands beside the two.
    beside = {name: value for name, value in description.items() if name not in _PARTS}
    return path, {**(description.get("init_args") or {}), **beside}


def _class(what: str, path: str, base: type[_Kind]) -> type[_Kind]:
    module, _, name = path.rpartition(".")
    if module:
        try:
            found = getattr(import_module(module), name)
        except (ImportError, AttributeError) as error:
            raise RecipeError(f"{what} must name a class, got {path!r} ({error}).") from error
    else:
        same = {kind.__qualname__: kind for kind in _subclasses(base)}
        found = same.get(name)
    if not inspect.isclass(found) or not issubclass(found, base):
        remedy = "name one that is" if module else "write its whole dotted path"
        raise RecipeError(f"{what} must be a {base.__name__}, got {path!r}; {remedy}.")
    return found


def _subclasses(base: type[_Kind]) -> list[type[_Kind]]:
    below = base.__subclasses__()
    return below + [kind for each in below for kind in _subclasses(each)]


def _short(error: Exception) -> str:
    """The parser's message in one line, without the place that it speaks of."""
    text = error.message if isinstance(error, ArgumentError) else str(error)
    lines = [line.strip() for line in str(text).splitlines() if line.strip()]
    return " ".join(lines[:2])
