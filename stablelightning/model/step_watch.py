"""Watching one training step: hooks on layers, norms, dropout, and the functions between."""

from collections import ChainMap
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.dropout import _DropoutNd
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from stablelightning.model.attribution import LayerRole
from stablelightning.model.graph import Node, first_met
from stablelightning.model.inputs import leaves_of
from stablelightning.model.modules import set_training
from stablelightning.model.observations import Observations
from stablelightning.model.observe import (
    FunctionShape,
    first_tensor,
    function_shape,
    unit_dimension,
)
from stablelightning.model.watched import Bent, LossCall, Watched, WatchedNorm, kind_of

#: Functions that bend a signal element by element, by the names that torch gives them.
_ACTIVATIONS = frozenset(
    (
        *("celu", "elu", "gelu", "hardsigmoid", "hardswish", "hardtanh", "leaky_relu"),
        *("logsigmoid", "mish", "prelu", "relu", "relu6", "rrelu", "selu", "sigmoid", "silu"),
        *("softplus", "softsign", "tanh", "threshold"),
    )
)
#: Losses whose inputs must be logits, probabilities or their logarithms.
_LOSSES = ("cross_entropy", "nll_loss", "binary_cross_entropy", "binary_cross_entropy_with_logits")
#: Norms of torch, and what inherits from them.
NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
#: Products, in all their spellings: where two signals meet in one, one gates the other.
_PRODUCTS = frozenset(("mul", "__mul", "__rmul", "__imul", "multiply"))
#: Functional dropouts that make what follows noisier in training than in eval.
_DROPOUTS = ("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout")


class StepWatch(TorchFunctionMode):
    """Records layers, activations, norms and losses while it is entered.

    Args:
        layers: each weight layer, with its place in the network where that is known.
        names: dotted name of every module.
        examples: size of the batch.
        lossy_dtype: gradients that are zero in this dtype count as lost; ``None``: their own.
    """

    def __init__(
        self,
        layers: dict[nn.Module, LayerRole | None],
        names: dict[nn.Module, str],
        *,
        examples: int,
        lossy_dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.layers: dict[nn.Module, Watched] = {}
        self.norms: dict[nn.Module, WatchedNorm] = {}
        self.losses: list[LossCall] = []
        self.scale = 1.0
        self._roles = layers
        self._names = names
        self.examples = examples
        self._observations = Observations(examples)
        self._functions: dict[Any, Callable[[Tensor], Tensor]] = {}
        self._lossy_dtype = lossy_dtype
        self.ends: set[int] = set()
        self.followed = True
        self._shapes: dict[str, FunctionShape] = {}
        self._makers: dict[Node, Watched | Bent] = {}
        self._noisy: dict[Node, str | None] = {}
        self._norm_outputs: dict[nn.Module, dict[Node, bool]] = {}
        self._scales: dict[Node, str] = {}
        self._latest: Watched | None = None
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> "StepWatch":
        for module in self._names:
            if module in self._roles:
                self._handles.append(module.register_forward_pre_hook(self._layer_enters))
                self._handles.append(module.register_forward_hook(self._layer_leaves))
            elif isinstance(module, _BatchNorm):
                self._handles.append(module.register_forward_pre_hook(self._norm_enters))
                self._handles.append(module.register_forward_hook(self._norm_leaves))
            if isinstance(module, NORMS):
                self._handles.append(module.register_forward_hook(self._scaled))
            elif isinstance(module, _DropoutNd | nn.AlphaDropout):
                self._handles.append(module.register_forward_hook(self._dropout_leaves))
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *details: Any) -> None:
        super().__exit__(*details)  # type: ignore[no-untyped-call]
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    @contextmanager
    def recomputing(self) -> Iterator[None]:
        """Watch the backward pass, in which checkpointed layers run again, now in a graph."""
        dark = [layer for layer in self.layers.values() if not layer.in_graph]
        handles = [x.module.register_forward_hook(self._layer_again(x)) for x in dark]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _layer_again(self, layer: Watched) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            made = first_tensor(output)
            if made is not None and made.requires_grad:
                made.register_hook(self._gradient_hook(layer))

        return hook

    def finish(self) -> None:
        """Look at what waits; let go of the graph, and with it of the memory that it holds."""
        self._observations.finish()
        self._makers.clear()
        self._noisy.clear()
        self._norm_outputs.clear()
        self._scales.clear()

    # ---- the functions between modules -------------------------------------------------------

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "").rstrip("_")
        first = args[0] if args else kwargs.get("input")
        if name in _LOSSES and isinstance(first, Tensor):
            return self._loss(name, func, first, args, kwargs)
        if name in _ACTIVATIONS and isinstance(first, Tensor) and first.is_floating_point():
            reached = self._reached(first)
            for layer in reached:
                if layer.shape is None and _is_bent(layer.role):
                    self._observe_activation(layer, name, func, first, args, kwargs)
            output = func(*args, **kwargs)
            if isinstance(output, Tensor) and output.grad_fn is not None:
                self._makers[output.grad_fn] = Bent(tuple(reached))
            return output
        if name in _PRODUCTS and len(args) == 2:
            self._product(*args)
        output = func(*args, **kwargs)
        if name in _DROPOUTS and isinstance(output, Tensor) and _drops(args, kwargs):
            self._noisy[output.grad_fn] = "a functional dropout"
        return output

    def _reached(self, value: Tensor) -> list[Watched]:
        """The layers whose output this value is made from, nothing that bends in between."""
        if value.grad_fn is None:  # a frozen part: the order of execution is all there is
            return [self._latest] if self._latest is not None else []
        met = first_met(value.grad_fn, self._makers)
        return [layer for mark in met for layer in _layers_of(mark)]

    def _reached_from(self, value: Tensor) -> list[Watched]:
        return [] if value.grad_fn is None else self._reached(value)

    def ends_with(self, loss: Tensor) -> None:
        """Say what the loss is, so that it is known which layers it was made from."""
        self.ends = {layer.index for layer in self._reached_from(loss)}

    def _product(self, one: Any, other: Any) -> None:
        """Mark the layers whose bounded activation is multiplied with another signal."""
        if not all(isinstance(t, Tensor) and t.grad_fn is not None for t in (one, other)):
            return
        if one is other:
            return
        for factor in (one, other):
            for mark in first_met(factor.grad_fn, self._makers):
                for layer in mark.layers if isinstance(mark, Bent) else ():
                    layer.gates |= layer.shape is not None and layer.shape.flat_sides == 2

    def _observe_region(self, layer: Watched, made: Tensor, dimension: int) -> None:
        """The whole function that consumes the output, where nothing changes it in between."""
        consumer = None if layer.role is None else layer.role.consumer
        if consumer is None or consumer.function is None or set(consumer.route) - {"dropout"}:
            return
        self._observe_function(layer, consumer.name, consumer.function, made, dimension)

    def _observe_activation(
        self, layer: Watched, name: str, func: Any, first: Tensor, args: Any, kwargs: Any
    ) -> None:
        if first.ndim == 0 or first.numel() == 0:
            return
        rest = args[1:]
        plain = {k: v for k, v in kwargs.items() if k not in ("input", "inplace")}

        def applied(values: Tensor) -> Tensor:
            result: Tensor = func(values, *rest, **plain)
            return result

        function: Callable[[Tensor], Tensor] = applied
        if all(isinstance(a, bool | int | float | str) for a in (*rest, *plain.values())):
            same = (func, repr((rest, plain)))
            function = self._functions.setdefault(same, applied)
        dimension = unit_dimension(first.shape, layer.module, layer.units)
        self._observe_function(layer, name, function, first, dimension)
        stops: ChainMap[Node, Any] = ChainMap(self._scales, self._makers)
        layer.norm = next((x for x in first_met(first.grad_fn, stops) if isinstance(x, str)), "")

    def _observe_function(
        self,
        layer: Watched,
        name: str,
        function: Callable[[Tensor], Tensor],
        values: Tensor,
        dimension: int,
    ) -> None:
        shape = self._shapes.get(name)
        if shape is None:
            shape = function_shape(function, values)
            if name in _ACTIVATIONS:  # others share a name without being the same
                self._shapes[name] = shape
        layer.shape = shape
        self._observations.of_activation(
            function,
            values,
            named=name,
            dimension=dimension,
            shape=shape,
            then=partial(setattr, layer, "activation"),
        )

    def _loss(self, name: str, func: Any, first: Tensor, args: Any, kwargs: Any) -> Any:
        after = type(first.grad_fn).__name__ if first.grad_fn is not None else ""
        self.losses.append(LossCall(name, first.detach(), after))
        outside = bool(((first < 0) | (first > 1)).any())
        if name == "binary_cross_entropy" and outside:  # it would refuse; what follows need not
            return nn.functional.binary_cross_entropy_with_logits(*args, **kwargs)
        return func(*args, **kwargs)

    # ---- the modules -------------------------------------------------------------------------

    def _layer_enters(self, module: nn.Module, args: Any) -> None:
        if module not in self.layers:
            with _unwatched():
                self._first_enters(module, args)

    def _first_enters(self, module: nn.Module, args: Any) -> None:
        role = self._roles[module]
        layer = Watched(self._names[module], module, kind_of(module, role), len(self.layers))
        layer.role = role
        self.layers[module] = layer
        for tensor in [t for t in leaves_of(args) if isinstance(t, Tensor)]:
            layer.reads |= {earlier.index for earlier in self._reached_from(tensor)}
        given = first_tensor(args)
        if given is not None and given.ndim > 0 and given.numel() > 0:
            self._observations.of_tensor(
                given,
                dimension=unit_dimension(given.shape, module, None),
                then=partial(setattr, layer, "input"),
            )

    def _layer_leaves(self, module: nn.Module, _args: Any, output: Any) -> None:
        with _unwatched():
            self._leaves(module, output)

    def _leaves(self, module: nn.Module, output: Any) -> None:
        layer = self.layers.get(module)
        made = first_tensor(output)
        if layer is None or made is None or made.numel() == 0:
            return
        layer.calls += 1
        self._latest = layer
        if layer.calls == 1:
            dimension = unit_dimension(made.shape, module, None)
            layer.units = self._observations.of_tensor(
                made, dimension=dimension, then=partial(setattr, layer, "output")
            )
            layer.dtype = made.dtype
            self._observe_region(layer, made, dimension)
        if made.grad_fn is not None:
            self._makers[made.grad_fn] = layer
        else:
            self.followed = False
        if made.requires_grad:
            layer.in_graph = True
            made.register_hook(self._gradient_hook(layer))

    def _gradient_hook(self, layer: Watched) -> Callable[[Tensor], None]:
        def hook(gradient: Tensor) -> None:
            gradient = gradient.detach()
            layer.gradient_values += gradient.numel()
            dtype = self._lossy_dtype or layer.dtype
            if dtype.itemsize >= 4:  # loses nothing that anybody would miss
                layer.gradient_squares.append(torch.linalg.vector_norm(gradient))
                return
            wide = gradient.float() / self.scale
            layer.gradient_squares.append(torch.linalg.vector_norm(wide))
            alive = wide != 0
            lost = alive & (wide.to(dtype) == 0)
            layer.gradient_lost.append(torch.stack([lost.sum(), alive.sum()]))

        return hook

    def _norm_enters(self, module: nn.Module, args: Any) -> None:
        given = first_tensor(args)
        if given is None or given.ndim < 2:
            return
        rows = given.numel() // max(given.shape[1], 1)
        if module not in self.norms:
            name, examples = self._names[module], given.shape[0]
            self.norms[module] = norm = WatchedNorm(name, rows, examples, module.training)
            if module.training and given.grad_fn is not None:
                stops: ChainMap[Node, Any] = ChainMap(self._noisy, self._makers)
                met = first_met(given.grad_fn, stops)
                norm.after_dropout = next((x for x in met if isinstance(x, str)), None)
        elif not self.norms[module].recurrent:
            earlier = self._norm_outputs.get(module, {})
            self.norms[module].recurrent = bool(first_met(given.grad_fn, earlier))
        if module.training and rows == 1:
            set_training(module, False)  # it would refuse; the rest of the model can be seen

    def _norm_leaves(self, module: nn.Module, _args: Any, output: Any) -> None:
        made = first_tensor(output)
        if made is not None and made.grad_fn is not None:
            self._norm_outputs.setdefault(module, {})[made.grad_fn] = True
            self._noisy[made.grad_fn] = None  # a norm between dropout and norm takes the blame off

    def _scaled(self, module: nn.Module, _args: Any, output: Any) -> None:
        made = first_tensor(output)
        if made is not None and made.grad_fn is not None:
            self._scales[made.grad_fn] = self._names[module]

    def _dropout_leaves(self, module: nn.Module, _args: Any, output: Any) -> None:
        made = first_tensor(output)
        dropping = module.training and getattr(module, "p", 0) > 0
        if dropping and made is not None and made.grad_fn is not None:
            self._noisy[made.grad_fn] = self._names[module]


def _unwatched() -> AbstractContextManager[None]:
    """Run without being shown each function: what is done here is no part of the model."""
    return torch._C.DisableTorchFunction()


def _layers_of(mark: Watched | Bent) -> tuple[Watched, ...]:
    return mark.layers if isinstance(mark, Bent) else (mark,)


def _is_bent(role: LayerRole | None) -> bool:
    """Whether a function of one number consumes the layer (a gate or a softmax is none)."""
    return role is None or role.consumer.function is not None


def _drops(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a functional dropout drops: its rate, and whether it is told that it trains."""
    rate = kwargs.get("p", args[1] if len(args) > 1 else 0.5)
    training = kwargs.get("training", args[2] if len(args) > 2 else True)
    return bool(training) and rate > 0
