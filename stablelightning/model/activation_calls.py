"""Activations that a forward calls as functions, which nothing can replace from outside."""

import ast
import inspect
import textwrap
from collections.abc import Iterator

from torch import nn

from stablelightning.model.activation_names import is_activation, known_name

#: Code of these packages is not the reader's to change, and their modules do as they are told.
_NOT_THE_READERS = ("torch.", "lightning.", "torchmetrics.", "stablelightning.")


def functional_activations(model: nn.Module) -> list[tuple[str, str]]:
    """Find calls like ``F.relu(x)`` and ``x.tanh()`` in the source of the modules' ``forward``.

    Args:
        model: any module.

    Returns:
        Pairs of the dotted path of the first module of a class (``""`` is the model itself) and
        what is called there. Classes whose source cannot be read are left out.

    Example:
        >>> functional_activations(nn.Sequential(nn.Linear(1, 1), nn.ReLU()))
        []
    """
    found: dict[tuple[type, str], tuple[str, str]] = {}
    seen: set[type] = set()
    for path, module in model.named_modules():
        kind = type(module)
        if kind in seen or is_activation(module):
            continue
        seen.add(kind)
        for call in _calls_in(kind, "forward", set()):
            found.setdefault((kind, call), (path, call))
    return list(found.values())


def _calls_in(kind: type, method: str, seen: set[str]) -> Iterator[str]:
    """The calls in a method and in those of ``self`` that it calls."""
    seen.add(method)
    body = _body(kind, method)
    for node in ast.walk(body) if body is not None else ():
        if not isinstance(node, ast.Call):
            continue
        if isinstance(node.func, ast.Name) and known_name(node.func.id):
            yield node.func.id
        if not isinstance(node.func, ast.Attribute):
            continue
        name = node.func.attr
        if _root(node.func) == "self":
            direct = isinstance(node.func.value, ast.Name)
            if direct and name not in seen and callable(getattr(kind, name, None)):
                yield from _calls_in(kind, name, seen)
            elif not direct and known_name(name) and isinstance(node.func.value, ast.Call):
                yield f".{name}"  # self.layer(x).relu()
        elif known_name(name):
            owner = ast.unparse(node.func.value)
            is_package = owner in ("F", "torch", "nn.functional", "torch.nn.functional")
            yield f"{owner}.{name}" if is_package else f".{name}"


def _body(kind: type, method: str) -> ast.AST | None:
    function = getattr(kind, method, None)
    home = getattr(function, "__module__", None) or ""
    if not inspect.isfunction(function) or f"{home}.".startswith(_NOT_THE_READERS):
        return None
    try:
        return ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):  # made at run time, or in a console
        return None


def _root(node: ast.expr) -> str:
    while isinstance(node, ast.Attribute | ast.Call | ast.Subscript):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else ""
