"""Whether the parameters of a model are still as torch's constructors drew them.

Torch's loading leaves no mark on a tensor: what is loaded, trained or set by hand is known only by
what it no longer is. A parameter counts as default where nothing contradicts the draw of its
layer's constructor and enough speaks for it; where in doubt it is not.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from stablelightning.functional.defaults import (
    Evidence,
    constant_evidence,
    normal_evidence,
    uniform_evidence,
)
from stablelightning.model.loaded import loaded_parameters

#: ``nn.Linear`` and the convolutions draw by He's rule for a leaky slope of sqrt(5).
_SLOPE_GAIN = math.sqrt(2 / (1 + 5))
_AFFINE_NORMS = nn.LayerNorm | nn.GroupNorm | nn.RMSNorm | _NormBase

Law = Callable[[Tensor], Evidence]


@dataclass(frozen=True)
class Verdict:
    """Whether one parameter may be written.

    Args:
        default: whether it looks as torch's constructor left it.
        reason: why not, in words; ``""`` if it does.
    """

    default: bool
    reason: str = ""


def default_parameters(model: nn.Module) -> dict[str, Verdict]:
    """Judge every parameter of a model, by the layer that it belongs to.

    Known are linear and bilinear layers, convolutions of all kinds, recurrent layers and cells,
    embeddings (the row of ``padding_idx`` zero), multi-head attention, norms (a norm with running
    statistics that have moved is not fresh) and PReLU; in float64, float32, bf16 and fp16. A fresh
    parameter is taken for another with a chance of about 1e-6.

    What is frozen, shared between modules, made by a parametrization, or was loaded by
    :func:`~stablelightning.model.weights_file.load_weights` is not default. A layer is one witness:
    with a weight that was set, its bias counts as set too. Layers too small to judge alone, and
    embeddings, whose normal numbers tell less, go with the rest of the model: default only if all
    together look so, and none was set.

    Args:
        model: any module; not changed.

    Returns:
        A verdict for each name of ``model.named_parameters()``.

    Example:
        >>> net = nn.Sequential(nn.Linear(20, 20), nn.Linear(20, 20))
        >>> _ = nn.init.normal_(net[1].weight, std=0.1)
        >>> [name for name, verdict in default_parameters(net).items() if verdict.default]
        ['0.weight', '0.bias']
    """
    with torch.no_grad():
        witnesses = list(_witnesses(model))
    # Small layers speak together: what one says by chance, several do not.
    bits = sum(w.bits for w in witnesses if not w.against and not w.normal)
    contradicted = any(w.against for w in witnesses)
    verdicts: dict[str, Verdict] = {}
    for witness in witnesses:
        verdicts.update(witness.verdicts(vouched=Evidence(None, bits).enough and not contradicted))
    barred = _barred(model)
    return {
        name: barred.get(name)
        or verdicts.get(name)
        or Verdict(False, "torch has no default for it")
        for name, _ in model.named_parameters()
    }


@dataclass
class _Witness:
    """What one layer says of its parameters: of its weights together, of each bias beside."""

    name: str
    weights: dict[str, Evidence]
    others: dict[str, Evidence]
    normal: bool = False

    @property
    def against(self) -> str | None:
        return next((e.against for e in self.weights.values() if e.against), None)

    @property
    def bits(self) -> float:
        """How much speaks for the layer as it was drawn."""
        fine = [e for e in (*self.weights.values(), *self.others.values()) if not e.against]
        return sum(e.bits for e in fine)

    @property
    def enough(self) -> bool:
        return Evidence(None, self.bits).enough

    def verdicts(self, *, vouched: bool) -> dict[str, Verdict]:
        """Of each parameter by its dotted name."""
        whole = ""
        if self.against:
            whole = f"not torch's default: {self.against}"
        elif not vouched and self.normal:
            whole = "normal numbers tell too little without other layers at their default"
        elif not vouched and not self.enough:
            whole = "too small to be judged alone, and no other layer vouches for it"
        found = {}
        for local, evidence in (*self.weights.items(), *self.others.items()):
            reason = whole
            if evidence.against:
                reason = f"not torch's default: {evidence.against}"
            elif self.against:
                reason = "its layer's weight is not torch's default"
            full = f"{self.name}.{local}" if self.name else local
            found[full] = Verdict(not reason, reason)
        return found


def _witnesses(model: nn.Module) -> Iterator[_Witness]:
    for name, module in model.named_modules():
        laws = _laws(module)
        if laws is None:
            continue
        own = {k: p for k, p in module.named_parameters(recurse=False) if k in laws}
        weights, others = {}, {}
        for local, parameter in own.items():
            evidence = _evidence(parameter, laws[local])
            if "weight" in local:
                weights[local] = evidence
            else:
                others[local] = evidence
        if isinstance(module, _AFFINE_NORMS) and weights and _has_run(module):
            weights = {k: Evidence("its running statistics have moved", 0.0) for k in weights}
        if isinstance(module, _AFFINE_NORMS | nn.PReLU):
            yield _Fixed(name, weights, others)
        elif weights:
            normal = isinstance(module, nn.Embedding | nn.EmbeddingBag)
            yield _Witness(name, weights, others, normal)


class _Fixed(_Witness):
    """Norms and PReLU: constants are judged to the bit, and vouch for nobody."""

    @property
    def against(self) -> str | None:
        return None

    @property
    def bits(self) -> float:
        return 0.0

    def verdicts(self, *, vouched: bool) -> dict[str, Verdict]:
        return super().verdicts(vouched=True)


def _evidence(parameter: Tensor, law: Law) -> Evidence:
    if is_lazy(parameter) or parameter.is_meta:
        return Evidence(None, math.inf)  # nothing was ever written into it
    if not parameter.is_floating_point():
        return Evidence("it is not made of floating point numbers", 0.0)
    return law(parameter)


def _has_run(module: nn.Module) -> bool:
    batches = getattr(module, "num_batches_tracked", None)
    mean, var = (getattr(module, name, None) for name in ("running_mean", "running_var"))
    if isinstance(mean, Tensor) and (is_lazy(mean) or mean.is_meta):
        return False
    return (
        (isinstance(batches, Tensor) and bool(batches > 0))
        or (isinstance(mean, Tensor) and bool(mean.any()))
        or (isinstance(var, Tensor) and bool((var != 1).any()))
    )


# ---- what torch draws -------------------------------------------------------------------------


def _laws(module: nn.Module) -> dict[str, Law] | None:
    """How torch fills each parameter of a module of its own; ``None`` for modules of others."""
    if isinstance(module, nn.Linear | _ConvNd):
        return _linear_laws(module)
    if isinstance(module, nn.Bilinear):
        bound = 1 / math.sqrt(max(1, module.in1_features))
        return dict.fromkeys(("weight", "bias"), _uniform(bound))
    if isinstance(module, nn.RNNBase | nn.RNNCellBase):
        bound = 1 / math.sqrt(max(1, module.hidden_size))
        names = [name for name, _ in module.named_parameters(recurse=False)]
        return dict.fromkeys(names, _uniform(bound))
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        padding = module.padding_idx
        return {"weight": lambda weight: _embedding_evidence(weight, padding)}
    if isinstance(module, nn.MultiheadAttention):
        return _attention_laws(module)
    if isinstance(module, nn.PReLU):
        initial = float(getattr(module, "init", 0.25))
        return {"weight": lambda weight: constant_evidence(weight, initial)}
    if isinstance(module, _AFFINE_NORMS):
        return {
            "weight": lambda weight: constant_evidence(weight, 1.0),
            "bias": lambda bias: constant_evidence(bias, 0.0),
        }
    return None


def _uniform(bound: float) -> Law:
    return lambda values: uniform_evidence(values, bound)


def _linear_laws(module: nn.Linear | _ConvNd) -> dict[str, Law]:
    # Not the attribute: of a parametrized layer that is computed, and a spectral norm moves by it.
    weight = module._parameters.get("weight")
    if weight is None or is_lazy(weight):
        return dict.fromkeys(("weight", "bias"), _uniform(1.0))
    # torch's own count, which for a transposed convolution is of another axis than the true one.
    fan_in = max(1, weight[0].numel())
    laws = {
        "weight": _uniform(math.sqrt(3) * (_SLOPE_GAIN / math.sqrt(fan_in))),
        "bias": _uniform(1 / math.sqrt(fan_in)),
    }
    if isinstance(module, NonDynamicallyQuantizableLinear):  # the output layer of attention
        laws["bias"] = lambda bias: constant_evidence(bias, 0.0)
    return laws


def _attention_laws(module: nn.MultiheadAttention) -> dict[str, Law]:
    laws: dict[str, Law] = {"in_proj_bias": lambda bias: constant_evidence(bias, 0.0)}
    for name in ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"):
        weight = module._parameters.get(name)
        if weight is not None:
            laws[name] = _uniform(math.sqrt(3.0) * math.sqrt(2.0 / sum(weight.shape)))
    for name in ("bias_k", "bias_v"):
        std = 1 / math.sqrt(module.embed_dim)
        laws[name] = lambda values, std=std: normal_evidence(values, std)  # type: ignore[misc]
    return laws


def _embedding_evidence(weight: Tensor, padding: int | None) -> Evidence:
    if padding is None:
        return normal_evidence(weight)
    if bool(weight[padding].any()):
        return Evidence("the row of padding_idx is not zero", 0.0)
    kept = torch.arange(len(weight), device=weight.device) != padding
    return normal_evidence(weight[kept])


# ---- what must not be written, whatever it looks like -----------------------------------------


def _barred(model: nn.Module) -> dict[str, Verdict]:
    """Parameters that are frozen, shared, or only what another tensor is made of."""
    owners: dict[Tensor, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(parameter, []).append(name)
    barred = {}
    loaded = loaded_parameters(model)
    for owned, names in owners.items():
        reason = ""
        if not loaded.isdisjoint(names):
            reason = "loaded from a file"
        elif len(names) > 1:
            reason = f"shared: {' and '.join(names)} are one tensor"
        elif not owned.requires_grad:
            reason = "frozen: requires_grad is False"
        if reason:
            barred.update({name: Verdict(False, reason) for name in names})
    for name, module in model.named_modules():
        how = reparametrized(module)
        if how:
            inside = [n for n, _ in module.named_parameters(prefix=name) if n not in barred]
            barred.update({n: Verdict(False, f"its weight is made by {how}") for n in inside})
    return barred


def reparametrized(module: nn.Module) -> str:
    """What makes a module's weight from other tensors (spectral norm, weight norm); ``""`` if none.

    Example:
        >>> from torch.nn.utils.parametrizations import spectral_norm
        >>> reparametrized(spectral_norm(nn.Linear(2, 2))), reparametrized(nn.Linear(2, 2))
        ('a parametrization (_SpectralNorm)', '')
    """
    if parametrize.is_parametrized(module):
        makers = {type(m).__name__ for each in module.parametrizations.values() for m in each}  # type: ignore[operator]
        return f"a parametrization ({', '.join(sorted(makers))})"
    for hook in module._forward_pre_hooks.values():
        kind = type(hook).__name__
        if kind in ("SpectralNorm", "WeightNorm") or "prun" in type(hook).__module__:
            return kind
    return ""
