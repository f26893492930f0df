"""From a message of jsonargparse, a tree of many lines, to the one line that helps."""

import inspect
import re
import sys
from argparse import ArgumentParser
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from stablelightning.cli.recipes import did_you_mean
from stablelightning.cli.slots import SLOTS

_KEY = re.compile(r"Parser key \"([^\"]+)\":")
_CLASS = re.compile(r"class_path(?:=| )'([^']+)'")
_OPTION = re.compile(
    r"(?:(Group|Subcommand) '([^']+)' does not accept option|Option) '([^']+)'(?: is not accepted)?"
)
_UNRECOGNIZED = re.compile(r"unrecognized arguments: (.*)", re.DOTALL)
_REQUIRED = re.compile(r"the following arguments are required: (.*)")
_NESTED = re.compile(r"NestedArg\(key='[^']*', val='(.*)'\)", re.DOTALL)
_NO_CLASS = re.compile(r"Expected a dot import path string: (\S+)")
_NO_IMPORT = re.compile(
    r"No module named '[^']+'|cannot import name '[^']+'[^\n]*"
    r"|module '[^']+' has no attribute '[^']+'"
)
_EXPECTED = re.compile(
    r"Expected (?:an? )?(?!(?:a )?(?:path but|dot import))(.*?)(?:\. Got value: (.*))?$",
    re.MULTILINE,
)
_REASON = re.compile(r"Errors:\n\s+- (.*?)(?=\n\s+- Expected|\n\s*Given value)", re.DOTALL)
_VALUE = re.compile(r"Given value: (.*)")
_NO_FILE = re.compile(r"File does not exist: '([^']+)'")
_LITERAL = re.compile(r"(?:typing\.)?Literal\[(.*)\]")

#: Where short class names are looked up, for suggestions; each only if it is imported.
_FAMILIES = (
    ("lightning.pytorch", "LightningModule"),
    ("lightning.pytorch", "LightningDataModule"),
    ("lightning.pytorch", "Callback"),
    ("lightning.pytorch.loggers", "Logger"),
    ("torch.nn", "Module"),
    ("torch.optim", "Optimizer"),
    ("torch.optim.lr_scheduler", "LRScheduler"),
)
_WORDS = {
    "NoneType": "null",
    "str": "text",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "tuple": "a list",
    "list": "a list",
    "Sequence": "a list",
    "dict": "a mapping",
}
_LONGEST = 300  #: characters of a message that none of the patterns knows
_FEW = 10  #: names that are worth listing where none is near
_SHORT = 3  #: letters of a word that may be part of anything: lr, max
_FEW_PLACES = 3  #: of more settings that share a word, none is likely the one


@dataclass(frozen=True)
class _Complaint:
    """The innermost part of a message: which key, and what is said of it."""

    key: str
    text: str
    classes: list[str]

    @classmethod
    def of(cls, message: str) -> "_Complaint":
        """Follow the keys inwards, as long as each stands deeper than the one before."""
        lines = message.splitlines()
        path: list[str] = []
        depth, start = -1, 0
        for number, line in enumerate(lines):
            found, indent = _KEY.search(line), _indent(line)
            if found and indent > depth:
                path.append(found.group(1))
                depth, start = indent, number
        end = start + 1
        while end < len(lines) and (not lines[end].strip() or _indent(lines[end]) > depth):
            end += 1
        text = _KEY.sub("", "\n".join(lines[start:end])) if path else message
        return cls(".".join(path), text, _CLASS.findall("\n".join(lines[:end])))


def explain(message: str, parser: ArgumentParser) -> str:
    """State what the parser refuses, what it received, and the nearest name where one is near.

    Args:
        message: what jsonargparse says.
        parser: the parser that said it; its settings are the names to choose from.
    """
    complaint = _Complaint.of(message)
    for attempt in (
        _unrecognized,
        _required,
        _unreadable,
        _unknown_option,
        _unknown_class,
        _unfit_value,
    ):
        if line := attempt(complaint, parser):
            return line
    flat = re.sub(r"\s+", " ", message).strip()
    return flat if len(flat) <= _LONGEST else flat[:_LONGEST] + " ..."


def inner_error(message: str) -> str | None:
    """What a constructor said, out of the list of reasons that jsonargparse wraps around it."""
    found = _REASON.search(message)
    return found.group(1) if found else None


def _unrecognized(complaint: _Complaint, parser: ArgumentParser) -> str | None:
    found = _UNRECOGNIZED.search(complaint.text)
    if not found:
        return None
    first = found.group(1).split()[0]
    if not first.startswith("-"):
        return f"settings must be given as --key=value, got {first!r}; write the key before it."
    return _no_such_setting(first.lstrip("-").partition("=")[0], settings(parser))


def _required(complaint: _Complaint, parser: ArgumentParser) -> str | None:
    found = _REQUIRED.search(complaint.text)
    if not found:
        return None
    missing = ", ".join(key.split(".")[-1] for key in found.group(1).strip().split(", "))
    return (
        f"a recipe must give {missing}, and none is given; name its class under that key, or give "
        "a recipe with --config."
    )


def _unreadable(complaint: _Complaint, parser: ArgumentParser) -> str | None:
    if found := _NO_FILE.search(complaint.text):
        return (
            f"{complaint.key} must be a file that exists, got {found.group(1)!r}; check the path."
        )
    for start in ("Problems parsing config:", "Unexpected config:"):
        if complaint.text.startswith(start):
            reason = re.sub(r"\s+", " ", complaint.text.removeprefix(start)).strip()
            return (
                f"a recipe must be YAML with settings under their keys, and this is not: {reason}"
            )
    return None


def _unknown_option(complaint: _Complaint, parser: ArgumentParser) -> str | None:
    found = _OPTION.search(complaint.text)
    if not found:
        return None
    kind, group, option = found.groups()
    if kind == "Subcommand":
        return _no_such_setting(option, settings(parser, group))
    if kind == "Group" or not complaint.classes:
        return _no_such_setting(f"{group}.{option}" if group else option, settings(parser))
    owner = complaint.classes[-1]
    if owner.endswith(".Callback"):
        return (
            f"{complaint.key} must first name its class, and only {option!r} is given; "
            f"add --{complaint.key}=CLASS before it."
        )
    known = [name for name in parameters(owner) if name != option]
    near = did_you_mean(option, known) or _list_of(known, "it has")
    return f"{owner.rpartition('.')[2]} has no setting {option!r} (under {complaint.key}){near}"


def _unknown_class(complaint: _Complaint, parser: ArgumentParser) -> str | None:
    if missing := _NO_IMPORT.search(complaint.text):
        name = complaint.classes[-1] if complaint.classes else ""
        return (
            f"{complaint.key} must be a class that can be imported, got {name!r}: "
            f"{missing.group()}; classes of your own are looked for in the working folder."
        )
    found = _NO_CLASS.search(complaint.text)
    if not found or _SCALARS & {_name(kind) for kind, _ in _EXPECTED.findall(complaint.text)}:
        return None
    near = did_you_mean(found.group(1), _class_names()) or "; give its whole path, module.Class."
    return f"{complaint.key} must be a class that can be imported, got {found.group(1)!r}{near}"


_SCALARS = {"int", "float", "bool", "str"}


def _unfit_value(complaint: _Complaint, parser: ArgumentParser) -> str | None:
    expected = _EXPECTED.findall(complaint.text)
    given = [value for _, value in expected if value] or _VALUE.findall(complaint.text)
    if not complaint.key or not expected or not given:
        return None
    nested = _NESTED.search(given[0])
    received = nested.group(1) if nested else given[0].partition(". Got value:")[0]
    return f"{complaint.key} must be {_one_of(expected)}, got {received.strip()[:80]!r}."


def _one_of(expected: list[tuple[str, str]]) -> str:
    literals = [found.group(1) for kind, _ in expected if (found := _LITERAL.fullmatch(kind))]
    names = [_name(kind) for kind, _ in expected if not _LITERAL.fullmatch(kind)]
    kinds = [f"one of {', '.join(literals)}"] if literals else []
    return " or ".join(dict.fromkeys([*kinds, *(_WORDS.get(name, name) for name in names)]))


def settings(parser: Any, subcommand: str | None = None) -> list[str]:
    """Every key that a parser knows by itself, those of the classes' own arguments left out."""
    if subcommand is not None and parser._subcommands_action is not None:
        parser = parser._subcommands_action._name_parser_map[subcommand]
    hidden = {"help", "print_config"}
    return sorted({a.dest.removesuffix(".help") for a in parser._actions if a.dest not in hidden})


def parameters(class_path: str) -> list[str]:
    """The constructor's parameters of a class by its path, those of its bases included."""
    module, _, name = class_path.rpartition(".")
    try:
        kind = getattr(import_module(module), name)
        makers = [vars(base)["__init__"] for base in kind.__mro__ if "__init__" in vars(base)]
        signatures = [inspect.signature(maker) for maker in makers]
    except (ImportError, AttributeError, ValueError, TypeError):
        return []
    found = (p for signature in signatures for p in signature.parameters.values())
    named = {p.name: None for p in found if p.kind not in {p.VAR_POSITIONAL, p.VAR_KEYWORD}}
    return [name for name in named if name != "self"]


def _no_such_setting(name: str, known: list[str]) -> str:
    # The shortest beginning that no setting has is what is misspelt: stable.uncertaint, of
    # stable.uncertaint.class_path.
    parts = name.split(".")
    branches = {".".join(key.split(".")[:depth]) for key in known for depth in range(1, 4)}
    starts = [".".join(parts[:depth]) for depth in range(1, len(parts) + 1)]
    wrong = next((start for start in starts if start not in branches), name)
    if places := _places(name, known):
        return f"there is no setting {name!r}; did you mean {' or '.join(map(repr, places))}?"
    parent = wrong.rpartition(".")[0]
    siblings = sorted(b for b in branches if b.rpartition(".")[0] == parent)
    near = did_you_mean(wrong, siblings) or did_you_mean(wrong, sorted(branches - {parent}))
    listed = near or _list_of(siblings, "known there are")
    return f"there is no setting {wrong!r}{listed}"


def _places(name: str, known: list[str]) -> list[str]:
    """Where a setting stands that is named right, or in part: --samples, --epochs, --seed."""
    ours = [f"{slot.key}.{own}" for slot in SLOTS for own in parameters(slot.callback)]
    last = {key: key.rpartition(".")[2] for key in (*known, *ours)}
    places = [key for key, own in last.items() if f"_{name}_" in f"_{own}_"]
    if len(places) > _FEW_PLACES:  # what stands deep in a recipe is asked for by its place
        shallow = min(key.count(".") for key in places)
        places = [key for key in places if key.count(".") == shallow]
    return places if len(name) > _SHORT and len(places) <= _FEW_PLACES else []


def _list_of(names: list[str], lead: str) -> str:
    if 0 < len(names) <= _FEW:
        return f"; {lead} {', '.join(names)}."
    return "; stablelightning fit --help lists the settings."


def _class_names() -> list[str]:
    """Short names of everything that could be meant where a class is."""
    roots = [getattr(sys.modules[home], name) for home, name in _FAMILIES if home in sys.modules]
    return sorted({kind.__name__ for root in roots for kind in _below(root)})


def _below(base: type) -> set[type]:
    children: list[type] = type.__subclasses__(base)
    return {base}.union(*(_below(child) for child in children))


def _name(kind: str) -> str:
    found = re.fullmatch(r"<class '(?:.*\.)?(\w+)'>", kind.strip())
    return found.group(1) if found else kind.strip().rstrip(".:")


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip(" -"))
