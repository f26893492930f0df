"""Writing the weights of a model by a scheme, layer by layer, and keeping the report."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from stablelightning.functional.initialize import Layout
from stablelightning.model.attribution import Attribution, LayerRole
from stablelightning.model.defaults import Verdict
from stablelightning.model.initialization import LayerInitialization, joined, left_row
from stablelightning.model.isometries import isometry_rules
from stablelightning.model.modules import set_training
from stablelightning.model.schemes import FunctionBook, Layer, Rule, Scheme
from stablelightning.model.special_layers import (
    Write,
    attention_writes,
    embedding_rule,
    is_recurrent,
    joint_projection_rule,
    recurrent_writes,
)
from stablelightning.model.stacks import plain_stacks
from stablelightning.model.weights import weight_uses

_FEED_FORWARD = ("linear", "conv", "transposed_conv", "other")
_NEVER_READ = "the example did not reach it"


@dataclass(frozen=True)
class _Target:
    """A weight as a rule fills it, and where it goes."""

    tensor: Tensor
    layout: Layout


class Writer:
    """Writes the weights of one model.

    Args:
        model: changed in place by :meth:`write`.
        attribution: of the model.
        scheme: how.
        verdicts: which parameters may be written, by dotted name.
    """

    def __init__(
        self,
        model: nn.Module,
        attribution: Attribution,
        scheme: Scheme,
        *,
        verdicts: dict[str, Verdict],
    ) -> None:
        self.model, self.attribution, self.scheme = model, attribution, scheme
        self._verdicts = verdicts
        self._parameters: dict[str, Tensor] = dict(model.named_parameters())
        self._book = FunctionBook()
        uses = weight_uses(model, attribution.trace)
        self._made = {use.parameters: use.output.tensor.shape for use in uses}
        self._rules = isometry_rules(
            plain_stacks(attribution, model=model),
            scheme,
            book=self._book,
            weight_of=self._plain_weight,
        )
        self._handled: set[nn.Module] = set()

    def write(self) -> list[LayerInitialization]:
        """Write every layer in order of execution.

        Returns:
            A row for each.
        """
        self._reset_norms()
        rows = [row for role in self.attribution.layers for row in self._layer(role)]
        return [*rows, *self._unreached({name for row in rows for name in row.parameters})]

    # ---- one layer ---------------------------------------------------------------------------

    def _layer(self, role: LayerRole) -> list[LayerInitialization]:
        module = role.module
        if is_recurrent(module) or isinstance(module, nn.MultiheadAttention):
            if module in self._handled or not self._owns(role):
                return []
            self._handled.add(module)
            return [self._special(role)]
        return [self._single(role)]

    def _owns(self, role: LayerRole) -> bool:
        """Whether the weight lies in the module itself, not in a child that it never calls."""
        own = {p for p, _ in role.module.named_parameters(recurse=False)}
        return any(name.rpartition(".")[2] in own for name in role.parameters)

    def _special(self, role: LayerRole) -> LayerInitialization:
        module: Any = role.module
        recurrent = is_recurrent(module)
        writes = recurrent_writes(module) if recurrent else attention_writes(module)
        prefix = f"{role.name}." if role.name else ""
        own = dict(module.named_parameters(recurse=False))
        before = _size(p for n, p in own.items() if "weight" in n)
        written, reasons = self._write_all(prefix, own, writes)
        std = _size(p for n, p in own.items() if "weight" in n)
        consumer = role.consumer.name
        if not written:
            return left_row(role.name, role.kind, consumer, std=std, why=joined(reasons))
        how, why = "Glorot uniform", "queries, keys and values each by themselves"
        if recurrent:
            how, why = "orthogonal, Glorot input", "gate by gate; biases zero"
            if isinstance(module, nn.LSTM | nn.LSTMCell):
                why = "gate by gate; forget bias 1 in total, other biases zero"
        why = joined([why, *(f"in part: {reason}" for reason in dict.fromkeys(reasons))])
        return LayerInitialization(
            role.name, role.kind, consumer, how, 1.0, before, std, None, None, why, tuple(written)
        )

    def _write_all(
        self, prefix: str, own: dict[str, Tensor], writes: dict[str, Write]
    ) -> tuple[list[str], list[str]]:
        """Fill what may be filled; names of that, and why the rest may not."""
        written, reasons = [], []
        for local, write in writes.items():
            verdict = self._verdicts.get(prefix + local, Verdict(False, _NEVER_READ))
            if verdict.default:
                write(own[local])
                written.append(prefix + local)
            else:
                reasons.append(verdict.reason)
        return written, reasons

    def _single(self, role: LayerRole) -> LayerInitialization:
        name = role.name or role.parameters[0]
        tensors = [self._parameters[n] for n in role.parameters if n in self._parameters]
        before = _size(tensors)
        reason = self._why_left(role, tensors)
        target = None if reason else self._target(role, tensors)
        if target is None:
            reason = reason or "its weight is made of several parameters"
            return left_row(name, role.kind, role.consumer.name, std=before, why=reason)
        layer = self._book.layer(role, target.layout)
        rule = self._rule(layer, target.tensor)
        rule.write(target.tensor)
        self._store(role, tensors, target)
        written = [*role.parameters, *self._zero_bias(role)]
        found = layer.properties
        also = ", ".join(dict.fromkeys(other.name for other in role.others))
        return LayerInitialization(
            name,
            role.kind,
            role.consumer.name,
            rule.distribution,
            rule.gain,
            before,
            _size(tensors),
            None if found is None else found.at_zero,
            None if found is None else found.slope_at_zero,
            joined([rule.why, f"also read by {also}" if also else ""]),
            tuple(written),
        )

    def _rule(self, layer: Layer, weight: Tensor) -> Rule:
        role = layer.role
        if role.kind == "embedding":
            return embedding_rule(role, weight)
        planned = self._rules.get(role.parameters) or joint_projection_rule(role, weight)
        return planned or self.scheme.rule(layer)

    def _why_left(self, role: LayerRole, tensors: list[Tensor]) -> str:
        reasons = [
            self._verdicts[n].reason
            for n in role.parameters
            if n in self._verdicts and not self._verdicts[n].default
        ]
        if not tensors:
            return "its weight is no parameter of the model"
        if reasons:
            return joined(reasons)
        if role.kind not in (*_FEED_FORWARD, "embedding"):
            return f"no rule for a layer of kind {role.kind}"
        return ""

    # ---- weights -----------------------------------------------------------------------------

    def _target(self, role: LayerRole, tensors: list[Tensor]) -> _Target | None:
        module = role.module
        if parametrize.is_parametrized(module, "weight"):
            return _Target(_made_weight(module), Layout.of(module))
        if len(tensors) != 1 or tensors[0].ndim < 2:
            return None
        return _Target(tensors[0], self._layout(role, tensors[0]))

    def _layout(self, role: LayerRole, weight: Tensor) -> Layout:
        if isinstance(role.module, nn.Linear) or weight.ndim > 2 or role.kind == "embedding":
            return Layout.of(role.module)
        # A layer of the user's own: what came out says which axis counts outputs.
        outputs = self._made[role.parameters][-1]
        return Layout(transposed=weight.shape[0] != outputs == weight.shape[1])

    def _store(self, role: LayerRole, tensors: list[Tensor], target: _Target) -> None:
        if parametrize.is_parametrized(role.module, "weight"):
            role.module.weight = target.tensor

    def _plain_weight(self, role: LayerRole) -> Tensor | None:
        """The weight of a linear layer or convolution of torch, if it may be written."""
        (name, *more) = role.parameters
        plain = isinstance(role.module, nn.Linear | nn.modules.conv._ConvNd)
        if more or not plain or name not in self._parameters or not self._verdicts[name].default:
            return None
        fine = not parametrize.is_parametrized(role.module)
        return self._parameters[name] if fine and not self._holds_bias(role) else None

    def _holds_bias(self, role: LayerRole) -> bool:
        """Whether the layer has a bias that stays, and is not zero."""
        name = f"{role.name}.bias" if role.name else "bias"
        bias = self._parameters.get(name)
        return bias is not None and not self._verdicts[name].default and bool(bias.any())

    def _zero_bias(self, role: LayerRole) -> list[str]:
        name = f"{role.name}.bias" if role.name else "bias"
        bias = self._parameters.get(name)
        if bias is None or bias.ndim != 1 or not self._verdicts[name].default:
            return []
        bias.zero_()
        return [name]

    def _reset_norms(self) -> None:
        """Put scales and shifts back to one and zero, where that was asked for."""
        for name, module in self.model.named_modules():
            if not hasattr(module, "eps") or is_recurrent(module):
                continue  # every norm of torch has an epsilon, and no layer does
            for local, value in (("weight", 1.0), ("bias", 0.0)):
                full = f"{name}.{local}" if name else local
                if full in self._parameters and self._verdicts[full].default:
                    self._parameters[full].fill_(value)

    # ---- the rest ----------------------------------------------------------------------------

    def _unreached(self, written: set[str]) -> list[LayerInitialization]:
        """Rows of matrices that no layer of the watched forward used."""
        used = {name for role in self.attribution.layers for name in role.parameters} | written
        rows = []
        for name, parameter in self._parameters.items():
            if parameter.ndim < 2 or name in used or self._modules_weight_used(name):
                continue
            owner = name.rpartition(".")[0] or name
            verdict = self._verdicts[name]
            why = _NEVER_READ if verdict.default else verdict.reason
            rows.append(left_row(owner, "other", "-", std=_size([parameter]), why=why))
        return rows

    def _modules_weight_used(self, name: str) -> bool:
        """Whether a parameter belongs to a recurrent or attention module that has its row."""
        owner = name.rpartition(".")[0]
        return self.model.get_submodule(owner) in self._handled


def _made_weight(module: nn.Module) -> Tensor:
    """A copy of the weight that a parametrization makes; in eval, or a spectral norm moves."""
    flags = [(m, m.training) for m in module.modules()]
    try:
        for each, _ in flags:
            set_training(each, False)
        made = module.weight
    finally:
        for each, training in flags:
            set_training(each, training)
    assert isinstance(made, Tensor)
    return made.detach().clone()


def _size(tensors: Iterable[Tensor]) -> float:
    """Root mean square of all values together."""
    total, count = 0.0, 0
    for tensor in tensors:
        wide = torch.complex128 if tensor.is_complex() else torch.float64
        total += float(torch.linalg.vector_norm(tensor.detach(), dtype=wide)) ** 2
        count += tensor.numel()
    return math.sqrt(total / count) if count else 0.0
