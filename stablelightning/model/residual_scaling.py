"""How residual branches begin: closed by a norm's gamma or a zero weight, or scaled by depth."""

import math
from collections.abc import Callable
from dataclasses import replace

from torch import Tensor, nn

from stablelightning.functional.initialize import fixup_factor
from stablelightning.model.attribution import Attribution, LayerRole
from stablelightning.model.branches import Branch
from stablelightning.model.defaults import Verdict
from stablelightning.model.initialization import LayerInitialization, joined


def begin_residual(
    model: nn.Module,
    attribution: Attribution,
    rows: list[LayerInitialization],
    *,
    verdicts: dict[str, Verdict],
) -> list[LayerInitialization]:
    """Close or scale the residual branches whose last weight was written.

    - A norm behind the last weight: its gamma becomes zero, and the block the identity.
    - No norm anywhere: all but the last weights are scaled by ``branches^(-1 / (2 layers - 2))``
      and the last becomes zero (Fixup).
    - Norms, but none behind the last weight (pre-norm transformers): the last weight is divided by
      ``sqrt(branches)``, so that the stream does not grow with depth.
    - A norm on the sum, or a learned scale in the branch: left to do its work.

    A branch whose function comes after its last weight is never closed: behind a ReLU that is
    zero, no gradient would ever open it. It is divided by ``sqrt(branches)``.

    Args:
        model: changed in place.
        attribution: of the model.
        rows: of the layers, as they were written.
        verdicts: which parameters may be written.

    Returns:
        The rows, with what was done and further rows for norms.

    Source:
        Goyal et al. 2017, arXiv:1706.02677, section 5.1 (gamma zero); Zhang et al. 2019,
        arXiv:1901.09321 (Fixup); Radford et al. 2019, "Language models are unsupervised multitask
        learners", section 2.3 (pre-norm).
    """
    parameters: dict[str, Tensor] = dict(model.named_parameters())
    found = {row.name: place for place, row in enumerate(rows)}
    rows = list(rows)
    roles = {role.name: role for role in attribution.layers}
    free = sum(not b.has_norm and not b.norm_after for b in attribution.branches)

    def scale(name: str, factor: float, why: str) -> None:
        row = rows[found[name]]
        for parameter in row.parameters:
            if "bias" not in parameter.rpartition(".")[2]:
                parameters[parameter].mul_(factor)
        rows[found[name]] = replace(
            row,
            distribution=row.distribution if factor else "zero",
            gain=None if row.gain is None else row.gain * factor,
            std_after=row.std_after * factor,
            why=joined([row.why, why]),
        )

    for branch in attribution.branches:
        own = [n for n in branch.layers if n in roles and _is_innermost(roles[n], branch)]
        written = [n for n in own if n in found and rows[found[n]].changed]
        normalised_sum = branch.norm_after and not branch.has_norm
        if branch.scale is not None or normalised_sum or branch.last_layer not in written:
            continue
        closable = _is_closable(roles[branch.last_layer])
        if branch.last_norm is not None:
            if closable:
                rows += _close_norm(branch, parameters, verdicts)
        elif branch.has_norm or not closable:
            _divide(branch, scale)
        else:
            factor = fixup_factor(len(own), branches=free)
            for name in written:
                last = name == branch.last_layer
                why = f"residual branch {branch.index + 1} of {branch.total} without norm (Fixup)"
                scale(name, 0.0 if last else factor, why)
    return rows


def _is_innermost(role: LayerRole, branch: Branch) -> bool:
    return role.branch is not None and role.branch.index == branch.index


def _is_closable(last: LayerRole) -> bool:
    """Whether nothing bends the branch between its last weight and the sum."""
    return last.consumer.function is None or "add" in last.consumer.route


def _divide(branch: Branch, scale: Callable[[str, float, str], None]) -> None:
    why = f"last of residual branch {branch.index + 1} of {branch.total}: 1/sqrt({branch.total})"
    scale(branch.last_layer, 1 / math.sqrt(branch.total), why)


def _close_norm(
    branch: Branch, parameters: dict[str, Tensor], verdicts: dict[str, Verdict]
) -> list[LayerInitialization]:
    name = f"{branch.last_norm}.weight"
    if name not in parameters or not verdicts[name].default:
        return []
    parameters[name].zero_()
    why = (
        f"last norm of residual branch {branch.index + 1} of {branch.total}: the block is identity"
    )
    return [
        LayerInitialization(
            str(branch.last_norm), "norm", "-", "zero", 0.0, 1.0, 0.0, None, None, why, (name,)
        )
    ]
