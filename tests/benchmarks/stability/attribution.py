"""Attribution: every layer of published networks against tables that were written down first."""

from typing import Any

from stablelightning.model.attribution import attribute
from tests.model.test_attribution import agrees, read_table
from tests.model.zoo.attribution import ZOO


def attribution_scores() -> list[dict[str, Any]]:
    """For each network: layers in its table, and those that were assigned as it says."""
    rows = []
    for case in ZOO:
        model, inputs = case.factory()
        roles = {role.name: role for role in attribute(model, inputs).layers}
        expected = read_table(case.table)
        wrong = [n for n, line in expected.items() if n not in roles or not agrees(line, roles[n])]
        wrong += [name for name in roles if name not in expected]
        rows.append({"network": case.name, "layers": len(expected), "wrong": wrong})
    return rows
