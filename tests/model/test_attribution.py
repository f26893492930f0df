"""What consumes each layer, against the tables that were written down by hand."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch

from stablelightning.model.attribution import attribute
from tests.model.zoo.attribution import FUNCTIONS, ZOO, Expected

_WORDS = ("norm", "last", "out", "in")
_GRID = torch.linspace(-4, 4, 401, dtype=torch.float64)


@dataclass(frozen=True)
class Line:
    """One layer: what its table says of it, or what was found."""

    kinds: str
    consumers: str
    words: dict[str, str]  # "yes", "no" or "?" for each word
    depth: str
    uses: str

    def __str__(self) -> str:
        words = " ".join(f"{w}={v}" for w, v in self.words.items())
        return f"{self.kinds:10} {self.consumers:18} {words} d={self.depth} u={self.uses}"


def read_table(table: str) -> dict[str, Line]:
    lines = {}
    for text in filter(None, map(str.strip, table.splitlines())):
        name, kinds, consumers, *words = text.split()
        numbers = dict(word.split("=") for word in words if "=" in word)
        flags = {w: "?" if f"{w}?" in words else "yes" if w in words else "no" for w in _WORDS}
        known = {*_WORDS, *(f"{w}?" for w in _WORDS)}
        assert {w for w in words if "=" not in w} <= known, f"a misspelt word: {text}"
        lines["" if name == "." else name] = Line(
            kinds, consumers, flags, numbers.get("d", "?"), numbers.get("u", "1")
        )
    return lines


def found_line(role: Any) -> Line:
    last = role.branch is not None and role.branch.last_layer == role.name
    held = (role.consumer.normalised, last, role.is_output, role.is_input)
    words = {w: "yes" if h else "no" for w, h in zip(_WORDS, held, strict=True)}
    return Line(role.kind, role.consumer.name, words, str(role.depth), str(role.uses))


def agrees(expected: Line, role: Any) -> bool:
    found = found_line(role)
    names = expected.consumers.split("|")
    return (
        found.kinds in expected.kinds.split("|")
        and any(_same_consumer(name, role.consumer) for name in names)
        and all(v in ("?", found.words[w]) for w, v in expected.words.items())
        and expected.depth in ("?", found.depth)
        and expected.uses in ("?", found.uses)
    )


def _same_consumer(name: str, consumer: Any) -> bool:
    if not name.startswith("~") and name != consumer.name:
        return False
    if name not in FUNCTIONS:  # a role (linear, softmax, attention, gate), not a function
        return True
    if consumer.function is None:
        return False
    values = consumer.function(_GRID)
    return values.shape == _GRID.shape and torch.allclose(values, FUNCTIONS[name](_GRID), atol=1e-9)


@pytest.mark.parametrize("case", ZOO, ids=str)
def test_every_layer_as_written_down(case: Expected):
    model, inputs = case.factory()
    roles = {r.name: r for r in attribute(model, inputs).layers}
    expected = read_table(case.table)
    outside = [name for name in roles if name not in expected]
    differences = [f"{name}: not expected, {found_line(roles[name])}" for name in outside]
    for name, line in expected.items():
        if name not in roles:
            differences.append(f"{name}: missing")
        elif not agrees(line, roles[name]):
            differences.append(f"{name}\n   expected {line}\n   found    {found_line(roles[name])}")
    assert not differences, f"{case}: {len(differences)} of {len(expected)}\n" + "\n".join(
        differences
    )


@pytest.mark.parametrize("case", ZOO, ids=str)
def test_every_residual_branch_as_written_down(case: Expected):
    model, inputs = case.factory()
    attribution = attribute(model, inputs)
    found = [(b.layers, b.last_norm, b.has_norm) for b in attribution.branches]
    assert found == [(b.layers, b.last_norm, b.has_norm) for b in case.branches]
    assert [b.index for b in attribution.branches] == list(range(len(found)))
    assert {b.total for b in attribution.branches} <= {len(found)}


@pytest.mark.parametrize("case", ZOO, ids=str)
def test_the_order_is_that_of_execution(case: Expected):
    model, inputs = case.factory()
    called: dict[str, None] = {}
    expected = read_table(case.table)
    for name, module in model.named_modules():
        if name and name in expected:
            module.register_forward_hook(lambda *_, name=name: called.setdefault(name))
    roles = [r.name for r in attribute(model, inputs).layers]
    assert [name for name in roles if name in called] == list(called)


@pytest.mark.parametrize("case", ZOO, ids=str)
def test_watching_leaves_no_trace(case: Expected):
    model, inputs = case.factory()
    model.train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    generator = torch.get_rng_state()
    attribute(model, inputs)
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_tables_name_layers_that_exist():
    for case in ZOO:
        modules = dict(case.factory()[0].named_modules())
        named = {*read_table(case.table)} | {n for b in case.branches for n in b.layers}
        named |= {b.last_norm for b in case.branches if b.last_norm}
        assert named <= set(modules), case.name
