"""Networks of one architecture as one: their weights stacked, their passes one vmapped pass."""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_flatten, tree_unflatten

from stablelightning.errors import EngineError, ModelError, RecipeError
from stablelightning.model.collect import stack_outputs
from stablelightning.model.member_axis import (
    MemberAxis,
    can_go_around,
    level_of,
    outside,
    reads_stacks,
    stack_at,
)
from stablelightning.model.members import Members
from stablelightning.model.side_by_side import has_hooks, layers_of, run_side_by_side
from stablelightning.model.stacking import (
    Swap,
    check_alike,
    like,
    named_tensors,
    places_of,
    put,
    stack_networks,
)
from stablelightning.words import reason_of

StackEngine = Literal["auto", "vmap", "loop"]

#: Stands for a tensor in the structure of an output.
_TENSOR = object()


class StackedNetworks(nn.Module, Members):
    """M networks of one architecture, trained and run side by side in one pass.

    Their parameters and buffers are stacked along a leading axis of M, under the names that a
    single network has: an optimizer holds one tensor where M networks would have M, and a small
    network's pass costs little more for five members than for one. Each member gets the gradient
    that it would have alone if the losses of the members are *added*; what mixes elements of a
    tensor (a joint gradient norm, Muon, LBFGS) sees all members at once.

    A pass is one call under ``torch.vmap``, with draws of their own for every member. Where vmap
    refuses (fused recurrent kernels, in-place dropout on the inputs, control flow that reads data,
    autocast), the members run one after the other, on the same weights: ``engine`` never changes
    what is computed, but for rounding and the random numbers drawn.

    Args:
        networks: M >= 1 modules with equal names, shapes and dtypes of parameters and buffers. The
            first gives the code (dropout rates too) and is copied; the others are only read.
        engine: ``"vmap"``, ``"loop"``, or ``"auto"``: vmap, and the loop where it refuses.

    Attributes:
        members: M.
        networks: the code, with stacked parameters; call the stack, not this.
        refusal: why vmap was given up for the loop, ``""`` where it was not.

    Raises:
        ModelError: no networks, or networks that differ in more than their values; lazy modules.

    Source:
        Lakshminarayanan et al. 2017, arXiv:1612.01474 (ensembles of networks);
        ``torch.func.stack_module_state``.

    Example:
        >>> stacked = StackedNetworks([nn.Linear(4, 2) for _ in range(5)])
        >>> x = torch.randn(8, 4)
        >>> stacked(x).shape, stacked.networks.weight.shape
        (torch.Size([5, 8, 2]), torch.Size([5, 2, 4]))
        >>> stacked.each(torch.randn(5, 8, 4)).shape
        torch.Size([5, 8, 2])
        >>> torch.allclose(stacked.member(3)(x), stacked(x)[3], atol=1e-6)
        True
    """

    def __init__(self, networks: Sequence[nn.Module], *, engine: StackEngine = "auto") -> None:
        super().__init__()
        if engine not in get_args(StackEngine):
            raise RecipeError(
                f"engine must be one of {', '.join(get_args(StackEngine))}, got {engine!r}."
            )
        networks = list(networks)
        check_alike(networks)
        self.members = len(networks)
        self.engine: StackEngine = engine
        self.refusal = ""
        self.networks = stack_networks(networks)
        # Not a plain attribute: those are settings, for which sampling studies a model anew.
        self._now = _Now()
        self._proven: set[tuple[bool, bool]] = set()

    @property
    def chosen(self) -> int | None:  # type: ignore[override]
        """The member that the stack is just now, in :meth:`as_member`; ``None`` for all."""
        return self._now.chosen

    @property
    def is_member(self) -> bool:
        """Whether it is one member just now, in :meth:`map` or :meth:`as_member`."""
        return self._now.is_member

    # ---- calling -----------------------------------------------------------------------------

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The outputs of all members for the same inputs, ``(M, ...)``; of one where it is one."""
        if self._now.level is not None or not self.is_member:
            output = self._side_by_side(args, kwargs)
            if output is not None:
                return output
        if self.is_member:
            return self.networks(*args, **kwargs)
        return self.map(partial(self.networks, *args, **kwargs))

    def selected(self, select: Callable[[Any], Any], *args: Any, **kwargs: Any) -> Any:
        """As a call, of each member's output only what is selected, ``(M, ...)``.

        Args:
            select: takes a member's output and returns tensors in any structure; a tensor it
                returns as it is.
            *args: of the call.
            **kwargs: of the call.
        """
        output = self._side_by_side(args, kwargs)
        if output is not None:
            return output
        return self.map(lambda: select(self.networks(*args, **kwargs)))

    def _side_by_side(self, args: Any, kwargs: Any) -> Tensor | None:
        """The pass of a plain chain without vmap's help; ``None`` where it is none, or not now."""
        if kwargs or len(args) != 1 or self.engine == "loop" or self.refusal:
            return None
        level = self._now.level
        rows = args[0]
        if not can_go_around(rows, level):
            return None
        layers = layers_of(self.networks)
        if layers is None or not reads_stacks(layers, level):
            return None
        if level is None:
            return run_side_by_side(layers, rows, self.members, read=lambda stack: stack)
        read = partial(stack_at, level=level)
        return outside(lambda: run_side_by_side(layers, rows, self.members, read=read), level)

    def each(self, *args: Any, **kwargs: Any) -> Any:
        """The outputs ``(M, ...)`` for inputs of their own: tensors ``(M, ...)``, one each."""
        return self.map(lambda own: self.networks(*own[0], **own[1]), (args, kwargs))

    def member_outputs(self, *args: Any, **kwargs: Any) -> Any:
        """As :meth:`forward`."""
        return self(*args, **kwargs)

    def map(self, function: Callable[..., Any], *own: Any) -> Any:
        """Call a function once per member, in which the stack is that member.

        Args:
            function: calls the stack (or ``networks``), and returns tensors in any structure, a
                loss say. It may run once for all members, under vmap.
            own: what it is called with, in any structure: of each tensor ``(M, ...)`` every member
                gets its own slice.

        Returns:
            The same structure, each tensor ``(M, ...)``.

        Raises:
            EngineError: ``engine="vmap"``, and vmap refuses.

        Example:
            >>> stacked = StackedNetworks([nn.Linear(4, 1) for _ in range(5)])
            >>> x, targets = torch.randn(8, 4), torch.randn(5, 8, 1)
            >>> losses = stacked.map(lambda y: (stacked(x) - y).square().mean(), targets)
            >>> losses.sum().backward()
            >>> losses.shape, stacked.networks.weight.grad.shape
            (torch.Size([5]), torch.Size([5, 1, 4]))
        """
        if self.is_member:
            raise ModelError(
                "a member has no members of its own; call map outside of as_member and of map."
            )
        with self._within():
            if self.engine == "loop" or self.refusal:
                return self._looped(function, own)
            if self.engine == "auto" and any(map(has_hooks, self.networks.modules())):
                return self._looped(function, own)  # what hooks keep must not be vmap's
            key = (self.training, torch.is_grad_enabled())
            if key in self._proven:
                return self._vmapped(function, own)
            return self._tried(function, own, key)

    def _tried(
        self,
        function: Callable[..., Any],
        own: tuple[Any, ...],
        key: tuple[bool, bool],
    ) -> Any:
        """A first pass by vmap; where it fails, nothing of it stays."""
        kept = [(buffer, buffer.clone()) for buffer in self.networks.buffers()]
        try:
            outputs = self._vmapped(function, own)
        except Exception as error:  # vmap's own, or of code that reads values or shapes
            for buffer, values in kept:
                buffer.copy_(values)
            reason = reason_of(error)
            if self.engine == "vmap":
                raise EngineError(
                    f"vmap must be able to run {type(self.networks).__name__}, and cannot "
                    f"({reason}); use engine='auto', which goes from member to member instead."
                ) from error
            outputs = self._looped(function, own)  # an error of the user's comes again
            self.refusal = reason
            return outputs
        self._proven.add(key)
        return outputs

    @contextmanager
    def _within(self) -> Iterator[None]:
        # The fused attention of an eval pass knows no members.
        fast_path = torch.backends.mha.get_fastpath_enabled()
        self._now.is_member = True
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast_path)
            self._now.is_member = False

    def _vmapped(self, function: Callable[..., Any], own: tuple[Any, ...]) -> Any:
        swap = Swap(self.networks)
        device = swap.stacks[0].device if swap.stacks else torch.device("cpu")
        if torch.is_autocast_enabled(device.type):
            raise ModelError("autocast does not reach inside vmap")
        leaves, own_spec = tree_flatten(own)
        mapped = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        spec: Any = None
        others: list[Any] = []

        def one(zero: Tensor, *given: Tensor) -> list[Tensor]:
            nonlocal spec, others
            slices = iter(given[len(swap.stacks) :])
            mine = [next(slices) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
            self._now.level = level_of(zero)
            with swap(given), MemberAxis(zero):
                output = function(*tree_unflatten(mine, own_spec))
            flat, spec = tree_flatten(output)
            others = [_TENSOR if isinstance(leaf, Tensor) else leaf for leaf in flat]
            return [leaf for leaf in flat if isinstance(leaf, Tensor)]

        marker = torch.zeros(self.members, device=device)
        try:
            results = torch.vmap(one, randomness="different")(marker, *swap.stacks, *mapped)
        finally:
            self._now.level = None
        tensors = iter(results)
        flat = [next(tensors) if other is _TENSOR else self._spread(other) for other in others]
        return tree_unflatten(flat, spec)

    def _spread(self, leaf: Any) -> Any:
        if isinstance(leaf, bool | int | float):
            return torch.tensor([leaf] * self.members)
        return leaf

    def _looped(self, function: Callable[..., Any], own: tuple[Any, ...]) -> Any:
        state = {
            **named_tensors(self.networks, "parameters"),
            **named_tensors(self.networks, "buffers"),
        }
        caller = _Caller(self.networks)
        # One node of the graph takes all members apart: a slice each would fill M whole gradients.
        parts = {name: tensor.unbind() for name, tensor in state.items()}
        leaves, own_spec = tree_flatten(own)
        outputs = []
        for number in range(self.members):
            mine = [leaf[number] if isinstance(leaf, Tensor) else leaf for leaf in leaves]
            given = {name: part[number] for name, part in parts.items()}
            left = dict(given)
            call = (function, *tree_unflatten(mine, own_spec))
            outputs.append(functional_call(caller, left, call, tie_weights=False))
            for name, tensor in given.items():
                if left[name] is not tensor:  # a buffer that was replaced
                    state[name][number].copy_(left[name].detach())
        return stack_outputs(outputs)

    # ---- one of them -------------------------------------------------------------------------

    @contextmanager
    def as_member(self, number: int) -> Iterator[nn.Module]:
        """Inside, the stack is one member: ``networks`` has its parameters, under their names.

        They share memory with the stack: what is written into them in place stays.

        Args:
            number: 0 to M - 1.

        Example:
            >>> stacked = StackedNetworks([nn.Linear(4, 2) for _ in range(3)])
            >>> with stacked.as_member(1) as network:
            ...     _ = nn.init.zeros_(network.weight)
            >>> stacked.networks.weight.abs().sum((1, 2)) > 0
            tensor([ True, False,  True])
        """
        if not 0 <= number < self.members:
            raise RecipeError(f"a member's number must be 0 to {self.members - 1}, got {number}.")
        if self.is_member:
            raise ModelError("a member has no members of its own; leave as_member first.")
        places = [*places_of(self.networks, "_parameters"), *places_of(self.networks, "_buffers")]
        alone: dict[int, Tensor] = {}
        for _, _, tensor in places:
            if id(tensor) not in alone:
                part = tensor.detach()[number]
                alone[id(tensor)] = like(tensor, part)
        for module, name, tensor in places:
            put(module, name, alone[id(tensor)])
        self._now.chosen, self._now.is_member = number, True
        try:
            yield self.networks
        finally:
            self._now.chosen, self._now.is_member = None, False
            for module, name, tensor in places:
                self._give_back(module, name, tensor, alone[id(tensor)], number)
            self._stack_new({id(tensor) for _, _, tensor in places})

    @torch.no_grad()
    def _give_back(
        self, module: nn.Module, name: str, stack: Tensor, alone: Tensor, number: int
    ) -> None:
        """Put the stack back in its place, with what became of one member."""
        now = module._buffers.get(name)
        if now is not None and now is not alone:  # replaced, not written into
            stack[number].copy_(now)
        if isinstance(alone, nn.Parameter):
            stack.requires_grad_(alone.requires_grad)
        if name in module._parameters or name in module._buffers:
            put(module, name, stack)

    @torch.no_grad()
    def _stack_new(self, stacks: set[int]) -> None:
        """What a member was given, a norm say, all members get, each a copy of its own."""
        fresh = [*places_of(self.networks, "_parameters"), *places_of(self.networks, "_buffers")]
        made: dict[int, Tensor] = {}
        for module, name, tensor in fresh:
            if id(tensor) in stacks:
                continue
            if id(tensor) not in made:
                made[id(tensor)] = like(tensor, torch.stack([tensor.detach()] * self.members))
            put(module, name, made[id(tensor)])
        if made:
            self._proven.clear()
            self.refusal = ""

    def member(self, number: int) -> nn.Module:
        """A copy of one member as a network of its own."""
        with self.as_member(number) as network:
            alone = copy.deepcopy(network)
        for module, name, tensor in places_of(alone, "_buffers"):
            put(module, name, tensor.clone())  # a copy of a view holds the whole stack
        for module in alone.modules():
            vars(module).pop("flatten_parameters", None)
        return alone


@dataclass
class _Now:
    """What a stack is just now."""

    chosen: int | None = None
    is_member: bool = False
    level: int | None = None  #: of the vmap whose axis the members are


class _Caller(nn.Module):
    """Runs any function while ``functional_call`` holds other parameters in a network."""

    def __init__(self, networks: nn.Module) -> None:
        super().__init__()
        self.networks = networks

    def forward(self, function: Callable[..., Any], *own: Any) -> Any:
        return function(*own)
