"""Fold batch norms into the layers beside them: the same outputs from fewer operations."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvTransposeNd
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_map

from stablelightning.errors import DataError, ModelError
from stablelightning.functional.fold import (
    relative_difference,
    with_scaled_inputs,
    with_scaled_outputs,
)
from stablelightning.model.fold_layers import NotFoldable
from stablelightning.model.foldable import FoldFinder, Pair, is_batch_norm
from stablelightning.model.folding import FoldedNorm, FoldReport, LeftNorm
from stablelightning.model.footprint import Footprint
from stablelightning.model.generators import (
    HostGeneratorWatch,
    preserved_generators,
    undisturbed_generators,
)
from stablelightning.model.inputs import arguments_of, leading_inputs, tensors_in
from stablelightning.model.modules import modules_of
from stablelightning.model.stochastic import StochasticModules, sampling_mode, stochastic_modules
from stablelightning.model.trace import Operation, Trace, watch
from stablelightning.words import reason_of

#: Largest difference of an output, over its largest absolute value, by precision.
_TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
#: Halves of autocast resolve no more than this many of their own steps.
_HALF_STEPS = 2
_SEED = 0
_QUANTIZED = ("torch.ao.nn.", "torch.nn.quantized", "torch.nn.intrinsic", "torch.nn.qat")


def fold_batch_norm(model: nn.Module, example_batch: Any = None) -> FoldReport:
    """Fold every batch norm that may be into the convolution or linear layer beside it, in place.

    In eval a batch norm is one multiplication and one addition per channel, which the weights of
    the layer before it, or behind it, can do as well. Which layer that is, and whether it is legal,
    is read from one watched forward: nobody else may read what lies between them (no second
    consumer, no hook, no dropout), the layer's weights are its own, and channels are kept.
    Convolutions of any dimension, depthwise, grouped and transposed ones, and linear layers are
    folded into. A norm before a layer with zero padding is left: the border would change.

    Afterwards the outputs on the example are compared, in eval and, where the model can be sampled,
    with dropout live and equal masks. A pair that makes a difference of more than 1e-5 (relative
    to the largest output; 1e-10 in float64) is put back, whole. A folded norm becomes an
    ``nn.Identity``, so that the names of all other weights stay; a layer without a bias gets one.

    The model is for inference from then on: fold after loading the weights, and a copy
    (``copy.deepcopy``) where training goes on.

    Args:
        model: any eager module in eval, of float32 or float64 weights; changed in place.
        example_batch: what the forward takes: a tensor, a tuple or list of arguments, a dict of
            keywords; a batch with targets behind the inputs does as well. ``None`` takes the
            model's own ``example_input_array``, which LightningModules may have.

    Returns:
        One row for each batch norm: where it went, or why it was left.

    Raises:
        ModelError: the model is in training mode, compiled, scripted, quantized, lazy or without
            memory (meta), or its outputs hold no numbers to compare.
        DataError: there is no example, it does not fit the forward, or lies on another device.

    Source:
        Jacob et al. 2018, arXiv:1712.05877, section 3.2; Ioffe, Szegedy 2015, arXiv:1502.03167.

    Example:
        >>> import stablelightning as sl
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()).eval()
        >>> report = sl.fold_batch_norm(net, torch.randn(2, 3, 8, 8))
        >>> [(row.norm, row.layer) for row in report.folded], net[1]
        ([('1', '0')], Identity())
    """
    _refuse(model)
    inputs = leading_inputs(model, _example(model, example_batch))
    if not any(map(is_batch_norm, modules_of(model))):
        return FoldReport([], _functional(watch(model, tree_map(_own, inputs))))
    with torch.inference_mode(False), torch.no_grad():
        trace = watch(model, tree_map(_own, inputs))
        trial = _Trial(model, inputs)
        pairs, left = _pairs(model, trace, trial)
        reference = trial.outputs()
        del trace
        folded, refused = _folded(model, pairs, lambda: trial.difference(reference))
        eval_difference, sampled = trial.differences(reference) if folded else (0.0, None)
        rows = [FoldedNorm(p.norm, p.layer, p.after) for p in folded]
        return FoldReport(rows, [*left, *refused], eval_difference, sampled)


# ---- what is refused as a whole -----------------------------------------------------------------


def _refuse(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"fold_batch_norm needs an nn.Module, got {type(model).__name__}; pass the network."
        )
    name = type(model).__name__
    modules = modules_of(model)
    if any(isinstance(m, torch.jit.ScriptModule) for m in modules):
        raise ModelError("folding needs an eager module, got a scripted one; fold, then script.")
    if any(hasattr(m, "_orig_mod") or m._compiled_call_impl is not None for m in modules):
        raise ModelError(f"folding needs an eager module, and {name} is compiled; fold first.")
    if any(type(m).__module__.startswith(_QUANTIZED) for m in modules) or any(
        t.is_quantized for m in modules for t in m._buffers.values() if t is not None
    ):
        raise ModelError(
            f"folding needs weights in floating point, and {name} is quantized or prepared for it; "
            "fold first, quantize afterwards."
        )
    tensors = [t for m in modules for t in (*m._parameters.values(), *m._buffers.values())]
    present = [t for t in tensors if t is not None]
    if any(map(is_lazy, present)):
        raise ModelError(f"folding needs weights, and {name} has lazy modules; run it once first.")
    if any(t.is_meta for t in present):
        raise ModelError(
            f"folding needs weights, and {name} is on the meta device; load its weights first."
        )
    if model.training:
        raise ModelError(
            f"folding changes what batch norm does in training, and {name} is in training mode; "
            "call model.eval() first, on a copy where training goes on."
        )


def _example(model: nn.Module, example_batch: Any) -> Any:
    if example_batch is None:
        example_batch = getattr(model, "example_input_array", None)
    if example_batch is None:
        raise DataError(
            f"folding needs an example that the forward of {type(model).__name__} takes, got none; "
            "pass a batch as the second argument."
        )
    return example_batch


# ---- what is found ------------------------------------------------------------------------------


def _pairs(model: nn.Module, trace: Trace, trial: "_Trial") -> tuple[list[Pair], list[LeftNorm]]:
    finder = FoldFinder(model, trace, [*trial.found.flagged, *trial.found.functional])
    pairs, left = [], []
    for norm in filter(is_batch_norm, modules_of(model)):
        name = trace.names[norm]
        try:
            if trial.wilful:
                raise NotFoldable(
                    "the forward draws from Python's or NumPy's generator, and may go another way "
                    "at the next call"
                )
            pairs.append(finder.pair(norm))
        except NotFoldable as reason:
            left.append(LeftNorm(name, str(reason)))
    return pairs, [*left, *_functional(trace)]


def _functional(trace: Trace) -> list[LeftNorm]:
    """Batch norms that a forward calls as functions: there is no module to take away."""
    places = dict.fromkeys(
        "the model itself" if o.module is None else trace.names[o.module] or "the model itself"
        for o in trace.operations
        if _is_functional(o)
    )
    why = "the forward calls it as a function, which stays; write it as an nn.BatchNorm module"
    return [LeftNorm(f"F.batch_norm in {place}", why) for place in places]


def _is_functional(operation: Operation) -> bool:
    on_signal = bool(operation.outputs) and operation.outputs[0].moving  # not to make a weight
    named = operation.kind == "norm" and "batch_norm" in operation.name
    return named and on_signal and not isinstance(operation.module, _NormBase)


# ---- what is done -------------------------------------------------------------------------------


def _folded(
    model: nn.Module, pairs: list[Pair], difference: Callable[[], float]
) -> tuple[list[Pair], list[LeftNorm]]:
    """Fold all pairs, or, where the outputs then differ, those that make no difference."""
    undo: list[Callable[[], None]] = []
    try:
        for pair in pairs:
            undo.append(_fold(model, pair))
        if difference() <= 1.0:
            return pairs, []
    except Exception:  # a forward that misses its norm: which one it is, is found out below
        pass
    while undo:
        undo.pop()()
    kept, refused = [], []
    for pair in pairs:
        put_back = _fold(model, pair)
        try:
            found = difference()
            why = "" if found <= 1.0 else _too_far(found)
        except Exception as error:
            reason = reason_of(error)
            why = f"the model does not run without it ({reason})"
        if why:
            put_back()
            refused.append(LeftNorm(pair.norm, f"folded into {pair.layer}, {why}"))
        else:
            kept.append(pair)
    return kept, refused


def _too_far(found: float) -> str:
    return f"the outputs on the example differ by {found:.3g} times what is allowed (1e-5)"


def _fold(model: nn.Module, pair: Pair) -> Callable[[], None]:
    """Fold one pair; returns what puts everything back."""
    layer: Any = model.get_submodule(pair.layer)
    norm = model.get_submodule(pair.norm)
    rewrite = with_scaled_outputs if pair.after else with_scaled_inputs
    weight, bias = rewrite(
        layer.weight,
        layer.bias,
        pair.scale,
        pair.shift,
        transposed=isinstance(layer, _ConvTransposeNd),
        groups=getattr(layer, "groups", 1),
    )
    old_weight = layer.weight.detach().clone()
    old_bias = None if layer.bias is None else layer.bias.detach().clone()
    layer.weight.copy_(weight)
    if layer.bias is None:
        layer.bias = nn.Parameter(bias, requires_grad=layer.weight.requires_grad)
    else:
        layer.bias.copy_(bias)
    replacement = _rest_of(norm, pair.behind)
    _replace(model, norm, replacement)

    def put_back() -> None:
        layer.weight.copy_(old_weight)
        if old_bias is None:
            layer.bias = None
        else:
            layer.bias.copy_(old_bias)
        _replace(model, replacement, norm)

    return put_back


def _rest_of(norm: nn.Module, behind: tuple[str, ...]) -> nn.Module:
    """What a norm's module does besides: nothing, or what its children do, under their names."""
    rest: nn.Module = nn.Identity()
    if behind:
        rest = nn.Sequential()
        for name in behind:
            rest.add_module(name, norm.get_submodule(name))
    rest.training = False  # not eval(), which would reach the children
    return rest


def _replace(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    for parent in modules_of(model):
        for name, child in parent._modules.items():
            if child is old:
                parent._modules[name] = new


# ---- what is compared ---------------------------------------------------------------------------

_Outputs = tuple[list[Tensor], list[Tensor] | None]


class _Trial:
    """Runs a model on an example, in eval and sampled, and says how far its outputs have moved."""

    def __init__(self, model: nn.Module, inputs: Any) -> None:
        self._model = model
        self._inputs = arguments_of(inputs)
        host = HostGeneratorWatch()
        with undisturbed_generators(), Footprint(model):
            self.found = stochastic_modules(model, self._run)
            with sampling_mode(StochasticModules(modules=modules_of(model))):
                self._run()
            #: Whether the forward asks generators that are not torch's what to do.
            self.wilful = host.moved()

    def outputs(self) -> _Outputs:
        """What the model gives in eval and, if anything in it is random, with dropout live."""
        plain = self._once(StochasticModules())
        return plain, self._once(self.found) if self.found else None

    def difference(self, reference: _Outputs) -> float:
        """How far the outputs have moved, as a multiple of what their precision allows."""
        plain, sampled = reference
        worst = _worst(self._once(StochasticModules()), plain, scaled=True)
        if sampled is not None and worst <= 1.0:
            worst = max(worst, _worst(self._once(self.found), sampled, scaled=True))
        return worst

    def differences(self, reference: _Outputs) -> tuple[float, float | None]:
        """Relative difference in eval, and with dropout live."""
        plain, sampled = reference
        moved = _worst(self._once(StochasticModules()), plain)
        return moved, None if sampled is None else _worst(self._once(self.found), sampled)

    def _run(self) -> Any:
        args, kwargs = tree_map(_own, self._inputs)
        return self._model(*args, **kwargs)

    def _once(self, live: StochasticModules) -> list[Tensor]:
        modules = modules_of(self._model)  # which the last fold may have changed
        live = StochasticModules(modules, live.flagged, live.functional)
        alone = Footprint(self._model), undisturbed_generators(), preserved_generators(_SEED)
        with alone[0], alone[1], alone[2], sampling_mode(live), _exactly(self._inputs):
            outputs = [t.detach().clone() for t in tensors_in(self._run())]
        if not any(t.is_floating_point() for t in outputs):
            raise ModelError(
                "folding is checked on the model's outputs, and those of "
                f"{type(self._model).__name__} hold no numbers; fold the network inside."
            )
        return outputs


def _own(leaf: Any) -> Any:
    """Forwards may write into their inputs."""
    return leaf.clone() if isinstance(leaf, Tensor) else leaf


def _worst(outputs: list[Tensor], reference: list[Tensor], *, scaled: bool = False) -> float:
    if len(outputs) != len(reference):
        return float("inf")
    pairs = zip(outputs, reference, strict=True)
    return max(relative_difference(a, b) / (_allowed(b.dtype) if scaled else 1.0) for a, b in pairs)


def _allowed(dtype: torch.dtype) -> float:
    known = _TOLERANCE.get(dtype)
    if known is None and dtype.is_floating_point:
        return _HALF_STEPS * torch.finfo(dtype).eps
    return known or 1.0


@contextmanager
def _exactly(inputs: Any) -> Iterator[None]:
    """Without autocast and TF32, whose rounding would hide what is compared."""
    devices = {t.device.type for t in tensors_in(inputs)} or {"cpu"}
    matmul = torch.backends.cuda.matmul.allow_tf32
    try:
        torch.backends.cuda.matmul.allow_tf32 = False
        plain = torch.autocast(next(iter(devices)), enabled=False)
        with torch.backends.cudnn.flags(allow_tf32=False), plain:
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = matmul
