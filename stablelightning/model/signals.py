"""Measuring a model: one training step, watched, that leaves the model as it was."""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.utils._pytree import tree_leaves

from stablelightning.errors import DataError, ModelError
from stablelightning.model.attribution import Attribution, LayerRole
from stablelightning.model.first_fault import first_backward_fault, first_fault
from stablelightning.model.layer_graph import gates_only, unavoidable
from stablelightning.model.measurement import MeasuredLayer, Measurement
from stablelightning.model.modules import parameters_of
from stablelightning.model.observe import TensorSignal, observe
from stablelightning.model.step import TrainingStep
from stablelightning.model.step_watch import StepWatch
from stablelightning.model.structure import is_weight_layer
from stablelightning.model.watched import Watched
from stablelightning.model.weight_statistics import WeightStatistics, statistics_of

#: Where gradients are float16, the loss is multiplied by this before the backward pass, and the
#: gradients are divided again: only so can one see what float16 would have lost.
_HALF_PRECISION_SCALE = 2.0**12


def measure(
    model: nn.Module,
    step: TrainingStep,
    attribution: Attribution | None = None,
    *,
    lossy_dtype: torch.dtype | None = None,
) -> Measurement:
    """Run one training step forward and backward and read the signal at every layer.

    One forward and one backward pass in training mode, with every parameter that training would
    move; a second forward only where a number is not finite. The caller preserves the model
    (:func:`~stablelightning.model.preserve.preserved`).

    Args:
        model: in training mode.
        step: its training step.
        attribution: the roles of its layers.
        lossy_dtype: count gradients that this dtype would lose, instead of their own.

    Raises:
        DataError: the batch does not fit the forward or the loss.
        ModelError: the backward pass cannot run.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> step = TrainingStep(net, (torch.randn(16, 4), torch.randint(2, (16,))))
        >>> [layer.name for layer in measure(net, step).layers]
        ['0', '2']
    """
    names = {
        module: name
        for name, module in model.named_modules()
        if not isinstance(module, torch.jit.ScriptModule)  # takes no hooks
    }
    roles = _roles(model, names, attribution)
    watch = StepWatch(roles, names, examples=step.examples, lossy_dtype=lossy_dtype)
    statistics = statistics_of(roles)
    silent = _silent_heads(roles)
    gradients: dict[nn.Parameter, Tensor] = {}
    try:
        with _awake(silent):
            with watch:
                loss = step.run()
                watch.ends_with(loss)
            parameters = [p for p in parameters_of(model) if p.requires_grad]
            if loss.requires_grad and bool(torch.isfinite(loss)):
                with watch.recomputing():
                    gradients = _gradients(loss, parameters, watch)
    except DataError:
        # A norm that refuses one row stops the forward; what was seen until then says why.
        if not any(norm.rows == 1 for norm in watch.norms.values()):
            raise
        loss = torch.tensor(math.nan)
    measurement = _read(watch, statistics, gradients, loss)
    measurement.attribution = attribution
    measurement.silent_heads = [names[module] for module in silent]
    measurement.inputs = _input_signals(step.inputs, measurement.examples)
    measurement.modules = dict(model.named_modules())
    measurement.notes = list(step.notes)
    if not loss.requires_grad:
        measurement.notes.append("no parameter asks for a gradient: nothing was measured backward")
    if not (_all_finite(measurement) and _parameters_are_finite(model, roles)):
        measurement.fault = first_fault(model, step) or first_backward_fault(model, step)
    return measurement


def _roles(
    model: nn.Module, names: dict[nn.Module, str], attribution: Attribution | None
) -> dict[nn.Module, LayerRole | None]:
    """Every layer with weights, with its role where the watched forward came by."""
    roles: dict[nn.Module, LayerRole | None] = {}
    for role in [] if attribution is None else attribution.layers:
        if role.module not in names:
            continue
        own = any(True for _ in role.module.parameters(recurse=False))
        if role.module is not model and own:
            roles.setdefault(role.module, role)
    for module in names:
        if is_weight_layer(module) or isinstance(module, nn.MultiheadAttention | nn.Embedding):
            roles.setdefault(module, None)
    return {module: role for module, role in roles.items() if _mixes(module)}


def _mixes(module: nn.Module) -> bool:
    """Whether a layer has a matrix: scales of the shape (channels, 1, 1) mix nothing."""
    if isinstance(module, nn.Linear | _ConvNd | nn.MultiheadAttention):
        return True
    return any(sum(size > 1 for size in p.shape) > 1 for p in module.parameters())


def _input_signals(inputs: Any, examples: int) -> list[TensorSignal]:
    """Signals of the floating inputs; masks and other 0-or-1 columns are theirs to judge."""
    found = []
    for leaf in tree_leaves(inputs):
        if isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.numel() > 0:
            dimension = 1 if leaf.ndim >= 4 else leaf.ndim - 1
            found.append(observe(leaf, dimension=max(dimension, 0), examples=examples))
    return found


def _silent_heads(roles: dict[nn.Module, LayerRole | None]) -> list[nn.Module]:
    """Output layers whose weights are all zero."""
    silent = []
    for module, role in roles.items():
        weight = getattr(module, "weight", None)
        if role is None or not role.is_output or not isinstance(weight, nn.Parameter):
            continue
        if weight.ndim == 2 and not bool(weight.detach().any()):
            silent.append(module)
    return silent


@contextmanager
def _awake(heads: list[nn.Module]) -> Iterator[None]:
    """Give output layers that start at zero some weights, for the time of the measurement.

    Zero is a legitimate start for a classifier's last layer, and hides every gradient behind it.
    """
    weights = [head.weight for head in heads if isinstance(head.weight, nn.Parameter)]
    try:
        with torch.no_grad():
            for weight in weights:
                weight.normal_(0.0, weight.shape[1] ** -0.5)
        yield
    finally:
        for weight in weights:
            weight.data.zero_()


def _gradients(
    loss: Tensor, parameters: list[nn.Parameter], watch: StepWatch
) -> dict[nn.Parameter, Tensor]:
    half = any(layer.dtype is torch.float16 for layer in watch.layers.values())
    watch.scale = _HALF_PRECISION_SCALE if half else 1.0
    try:
        found = _differentiated(loss * watch.scale, parameters)
    except RuntimeError as error:
        reason = str(error).strip().partition("\n")[0]
        raise ModelError(
            f"the backward pass of a model must run, and it raised: {reason} "
            "torch.autograd.set_detect_anomaly(True) names the operation of the forward."
        ) from error
    return {
        p: g if watch.scale == 1.0 else g / watch.scale
        for p, g in zip(parameters, found, strict=True)
        if g is not None
    }


def _differentiated(loss: Tensor, parameters: list[nn.Parameter]) -> list[Tensor | None]:
    try:
        return list(torch.autograd.grad(loss, parameters, allow_unused=True))
    except RuntimeError as error:
        if "Checkpointing" not in str(error):
            raise
    for parameter in parameters:  # reentrant checkpoints know only backward()
        parameter.grad = None
    loss.backward()
    return [parameter.grad for parameter in parameters]


def _read(
    watch: StepWatch,
    statistics: dict[nn.Module, WeightStatistics],
    gradients: dict[nn.Parameter, Tensor],
    loss: Tensor,
) -> Measurement:
    watch.finish()
    layers = [
        _layer(watched, statistics.get(module), gradients)
        for module, watched in watch.layers.items()
        if watched.output is not None
    ]
    _place(layers, watch)
    lost = [pair for x in watch.layers.values() for pair in x.gradient_lost]
    gone, alive = _stacked(lost).sum(0).tolist() if lost else (0, 0)
    return Measurement(
        layers=layers,
        attribution=None,
        norms=list(watch.norms.values()),
        losses=watch.losses,
        loss=float(loss.detach()),
        inputs=[],
        examples=watch.examples,
        gradients=gradients,
        underflow=gone / alive if alive else 0.0,
    )


def _place(layers: list[MeasuredLayer], watch: StepWatch) -> None:
    """Say of each layer whether there is a way around it, and whether it only gates."""
    reads = {watched.index: watched.reads for watched in watch.layers.values()}
    gated = {watched.index for watched in watch.layers.values() if watched.gates}
    gates = gates_only(reads, watch.ends, gated)
    starts = {x.index for x in layers if x.is_input or (x.role is None and not reads[x.index])}
    trunk = unavoidable(reads, watch.ends, starts) if watch.followed else set()
    for layer in layers:
        layer.gates = layer.index in gates
        layer.ends = layer.index in watch.ends
        layer.unavoidable = layer.index in trunk if trunk else layer.branch is None


def _layer(
    watched: Watched,
    weights: WeightStatistics | None,
    gradients: dict[nn.Parameter, Tensor],
) -> MeasuredLayer:
    assert watched.output is not None
    norm = math.nan
    if watched.gradient_squares:
        norm = _or_infinite(torch.stack(watched.gradient_squares).norm())
    own = [gradients[p] for p in parameters_of(watched.module) if p in gradients]
    moves = [torch.linalg.vector_norm(_real(g)) for g in own]
    return MeasuredLayer(
        name=watched.name,
        module=watched.module,
        kind=watched.kind,
        index=watched.index,
        role=watched.role,
        weights=weights,
        input=watched.input,
        output=watched.output,
        activation=watched.activation,
        gradient_norm=norm,
        gradient_rms=norm / math.sqrt(max(watched.gradient_values, 1)),
        weight_gradient=_or_infinite(torch.stack(moves).norm()) if moves else math.nan,
        calls=watched.calls,
        norm=watched.norm,
    )


def _real(values: Tensor) -> Tensor:
    """Dense real single-precision values of the same norm."""
    values = values.detach()
    values = values.coalesce().values() if values.is_sparse else values
    return (torch.view_as_real(values) if values.is_complex() else values).float()


def _or_infinite(norm: Tensor) -> float:
    """The norm, infinite where it is NaN: NaN stands for a gradient that never came."""
    value = float(norm)
    return math.inf if math.isnan(value) else value


def _all_finite(measurement: Measurement) -> bool:
    forward = all(
        layer.output.finite and (layer.weights is None or layer.weights.finite)
        for layer in measurement.layers
    )
    backward = not any(_got_bad_gradient(layer) for layer in measurement.layers)
    return forward and backward and math.isfinite(measurement.loss)


def _parameters_are_finite(model: nn.Module, layers: Iterable[nn.Module]) -> bool:
    """Also of norms, where a ReLU may hide an infinity from everything that follows."""
    seen = {id(p) for layer in layers for p in parameters_of(layer)}  # their sizes are known
    norms = [torch.linalg.vector_norm(_real(p)) for p in parameters_of(model) if id(p) not in seen]
    return not norms or bool(torch.isfinite(_stacked(norms)).all())


def _stacked(numbers: list[Tensor]) -> Tensor:
    """One tensor of several, which may lie on several devices."""
    return torch.stack([number.to(numbers[0].device) for number in numbers])


def _got_bad_gradient(layer: MeasuredLayer) -> bool:
    return math.isinf(layer.weight_gradient) or math.isinf(layer.gradient_norm)
