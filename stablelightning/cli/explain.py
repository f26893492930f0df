"""From a message of jsonargparse, many lines long, to the one line that helps."""

import inspect
import re
from argparse import ArgumentParser
from importlib import import_module
from typing import Any, get_args

from stablelightning.cli.recipes import did_you_mean

_KEY = re.compile(r"Parser key \"([^\"]+)\":")
_CLASS = re.compile(r"Problem with given class_path '([^']+)'")
_OPTION = re.compile(r"(?:Group '([^']+)' does not accept option|Option) '([^']+)'(?: is not accepted)?")
_UNRECOGNIZED = re.compile(r"unrecognized arguments: (.*)", re.DOTALL)
_REQUIRED = re.compile(r"the following arguments are required: (.*)")
_VALUE = re.compile(r"Given value: (.*)", re.DOTALL)
_NESTED = re.compile(r"NestedArg\(key='([^']*)', val='(.*)'\)", re.DOTALL)
_NO_CLASS = re.compile(r"Expected a dot import path string: (\S+)")
_NO_IMPORT = re.compile(r"(No module named '[^']+'|cannot import name '[^']+'[^\n]*|module '[^']+' has no attribute '[^']+')")
_EXPECTED = re.compile(r"Expected an? ([^\n]*?)(?:\. Got value: ([^\n]*))?(?:\n|$)")
_LONGEST = 300  #: characters of a message that none of the patterns knows


def explain(message: str, parser: ArgumentParser) -> str:
    """State what the parser refuses, what it received, and the nearest name where one is near.

    Args:
        message: what jsonargparse says.
        parser: the parser that said it; its settings are the names to choose from.
    """
    prefix = _KEY.search(message)
    key = prefix.group(1) if prefix else ""
    for attempt in (_unrecognized, _required, _unknown_option, _unknown_class, _unfit_value):
        if line := attempt(message, key, parser):
            return line
    flat = re.sub(r"\s+", " ", message).strip()
    return flat if len(flat) <= _LONGEST else flat[:_LONGEST] + " ..."


def _unrecognized(message: str, key: str, parser: ArgumentParser) -> str | None:
    found = _UNRECOGNIZED.search(message)
    if not found:
        return None
    first = found.group(1).split()[0]
    if not first.startswith("-"):
        return f"every argument after the verb must be --key=value, got {first!r}; write its --key."
    name = first.lstrip("-").partition("=")[0]
    return _no_such_setting(name, settings(parser))


def _required(message: str, key: str, parser: ArgumentParser) -> str | None:
    found = _REQUIRED.search(message)
    if not found:
        return None
    return (
        f"a recipe must give {found.group(1).strip()}, and none is given; "
        f"name its class under that key, or give a recipe with --config."
    )


def _unknown_option(message: str, key: str, parser: ArgumentParser) -> str | None:
    found = _OPTION.search(message)
    if not found or "not accept" not in message:
        return None
    group, option = found.groups()
    if classes := _CLASS.findall(message):
        return (
            f"{classes[-1].rpartition('.')[2]} has no setting {option!r}"
            f"{f' (under {key})' if key else ''}"
            f"{did_you_mean(option, parameters(classes[-1])) or _those(parameters(classes[-1]))}"
        )
    return _no_such_setting(f"{group}.{option}" if group else option, settings(parser))


def _unknown_class(message: str, key: str, parser: ArgumentParser) -> str | None:
    found = _NO_CLASS.search(message)
    if found:
        name = found.group(1)
        known = _class_names(parser, key)
        return f"{key} must be a class that can be imported, got {name!r}" + (
            f"{did_you_mean(name, known) or '; give its whole path, module.Class.'}"
        )
    if missing := _NO_IMPORT.search(message):
        classes = _CLASS.findall(message)
        what = f"{classes[-1]!r}" if classes else "one that is not there"
        return (
            f"{key} must be a class that can be imported, got {what}: {missing.group(1)}; "
            "classes of your own are looked for in the working folder."
        )
    return None


def _unfit_value(message: str, key: str, parser: ArgumentParser) -> str | None:
    if not key:
        return None
    keys = [k for k in _KEY.findall(message) if not k.startswith(key)]
    expected = [kind for kind, _ in _EXPECTED.findall(message)]
    got = [value for _, value in _EXPECTED.findall(message) if value]
    given = got[-1] if got else _given(message)
    if not expected or given is None:
        return None
    nested = _NESTED.search(given)
    if nested:
        keys, given = [nested.group(1)], nested.group(2)
    kinds = list(dict.fromkeys(_plain(kind) for kind in expected))
    if keys:  # the class around it was fine; only what is said of the inner key helps
        kinds = kinds[:1]
    name = ".".join([key, *keys])
    return f"{name} must be {' or '.join(kinds)}, got {given.strip()[:80]!r}."


def settings(parser: Any) -> list[str]:
    """Every key that the parser knows by itself, those of the classes' own arguments left out."""
    names = {action.dest for action in parser._actions if action.dest not in {"help", "print_config"}}
    return sorted(name.removesuffix(".help") for name in names)


def parameters(class_path: str) -> list[str]:
    """The constructor's parameters of a class by its path, those passed on to its bases included."""
    module, _, name = class_path.rpartition(".")
    try:
        kind = getattr(import_module(module), name)
        signatures = [inspect.signature(base.__init__) for base in kind.__mro__[:-1]]
    except (ImportError, AttributeError, ValueError, TypeError):
        return []
    return list(
        dict.fromkeys(
            parameter.name
            for signature in signatures
            for parameter in signature.parameters.values()
            if parameter.name != "self"
            and parameter.kind not in {parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD}
        )
    )


def _no_such_setting(name: str, known: list[str]) -> str:
    # The longest part that is known by no setting is the one that is misspelt: of
    # stable.uncertaint.class_path it is stable.uncertaint.
    parts = name.split(".")
    branches = {".".join(key.split(".")[:depth]) for key in known for depth in range(1, 4)}
    starts = [".".join(parts[:depth]) for depth in range(1, len(parts) + 1)]
    wrong = next((start for start in starts if start not in branches), name)
    near = did_you_mean(wrong, sorted(branches))
    return f"there is no setting {wrong!r}{near or '; stablelightning fit --help lists them.'}"


def _class_names(parser: Any, key: str) -> list[str]:
    for action in parser._actions:
        if action.dest == key:
            bases = _members(getattr(action, "_typehint", None))
            return sorted({kind.__name__ for base in bases for kind in _below(base)})
    return []


def _members(hint: Any) -> list[type]:
    return [kind for kind in (get_args(hint) or (hint,)) if isinstance(kind, type)]


def _below(base: type) -> list[type]:
    return [base, *(kind for child in type.__subclasses__(base) for kind in _below(child))]


def _given(message: str) -> str | None:
    found = _VALUE.search(message)
    return found.group(1) if found else None


def _plain(kind: str) -> str:
    kind = kind.strip().rstrip(".:")
    if found := re.fullmatch(r"<class '(?:.*\.)?(\w+)'>", kind):
        kind = found.group(1)
    return {"NoneType": "null", "str": "text", "int": "a whole number", "float": "a number"}.get(
        kind, kind
    )


def _those(names: list[str]) -> str:
    return f"; it has {', '.join(names)}." if 0 < len(names) <= 12 else "."
