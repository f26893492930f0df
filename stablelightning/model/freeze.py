"""Freezing parts of a model: no gradient, no graph, and norms that use what they have learned."""

from collections.abc import Collection, Sequence

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.spectral_norm import SpectralNorm

from stablelightning.errors import RecipeError
from stablelightning.model.depth import DepthGroup
from stablelightning.model.modules import modules_of, set_training

#: The method that a frozen norm has another one for, on the instance.
_METHOD = "train"


def freeze(model: nn.Module, group: DepthGroup) -> None:
    """Freeze a part of a model, in place: its parameters, and the statistics of its norms.

    Parameters get no gradient and lose the one they have, so that no optimizer moves them, whatever
    its momentum and weight decay: a step leaves alone what has no gradient. Norms with running
    statistics (batch and instance norm, and those built like them) and spectral norms are put into
    eval, and stay there through ``model.train()``. Dropout goes on as before.

    Freezing what is frozen changes nothing. The model can be copied, pickled and saved meanwhile;
    names in its ``state_dict`` are as before.

    Args:
        model: the module that was cut into groups.
        group: of :func:`~stablelightning.model.depth.depth_groups`.

    Example:
        >>> from stablelightning.model.depth import depth_groups
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 1))
        >>> freeze(net, depth_groups(net)[0])
        >>> net.train()[1].training, net[0].weight.requires_grad, trainable_parameters(net)
        (False, False, 4)
    """
    _Named(model).freeze(group)


def unfreeze(model: nn.Module, group: DepthGroup) -> None:
    """Open a part of a model: it has gradients again, and its norms follow ``train()`` again.

    A norm that was in the mode of the module around it when it was frozen is in that mode again;
    one that its user had put into another mode is in that one.

    Args:
        model: the module that was cut into groups; changed in place.
        group: of :func:`~stablelightning.model.depth.depth_groups`.

    Example:
        >>> from stablelightning.model.depth import depth_groups
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 1))
        >>> freeze(net, depth_groups(net)[0])
        >>> unfreeze(net, depth_groups(net)[0])
        >>> net[1].training, trainable_parameters(net)
        (True, 19)
    """
    _Named(model).unfreeze(group)


def open_last(
    model: nn.Module, groups: Sequence[DepthGroup], count: int, *, norms: bool = True
) -> None:
    """Freeze all groups but the last ``count``, which are open afterwards.

    Args:
        model: the module that was cut into groups; changed in place.
        groups: from input to output.
        count: 0 to all of them; the head is the first to be open.
        norms: also those of the frozen groups; ``False`` leaves norms for a later call.

    Raises:
        RecipeError: there are fewer groups.

    Example:
        >>> from stablelightning.model.depth import depth_groups
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
        >>> open_last(net, depth_groups(net), 1)
        >>> [p.requires_grad for p in net.parameters()]
        [False, False, True, True]
    """
    if not 0 <= count <= len(groups):
        raise RecipeError(
            f"open groups must be between 0 and the {len(groups)} that there are, got {count}."
        )
    named = _Named(model)
    closed = len(groups) - count
    for group in groups[:closed]:
        named.freeze(group, norms=norms)
    for group in groups[closed:]:
        named.unfreeze(group)


def release_norms(model: nn.Module, groups: Sequence[DepthGroup]) -> None:
    """Let the norms of groups follow ``train()`` again, and leave the parameters alone.

    Args:
        model: the module that was cut into groups; changed in place.
        groups: of :func:`~stablelightning.model.depth.depth_groups`.

    Example:
        >>> from stablelightning.model.depth import depth_groups
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 1))
        >>> groups = depth_groups(net)
        >>> open_last(net, groups, 1)
        >>> release_norms(net, groups)
        >>> net[1].training, net[1].weight.requires_grad
        (True, False)
    """
    named = _Named(model)
    for group in groups:
        named.release_norms(group)


def without(group: DepthGroup, names: Collection[str]) -> DepthGroup:
    """A group without what is named, and without what lies in modules that are named.

    Args:
        group: of :func:`~stablelightning.model.depth.depth_groups`.
        names: dotted names of modules and parameters.

    Example:
        >>> without(DepthGroup("a", ("a.0.weight", "a.1.weight"), ("a", "a.0", "a.1")), ["a.0"])
        DepthGroup(name='a', parameters=('a.1.weight',), modules=('a', 'a.1'))
    """

    def kept(inside: Sequence[str]) -> tuple[str, ...]:
        return tuple(
            each for each in inside if not any(f"{each}.".startswith(f"{n}.") for n in names)
        )

    return DepthGroup(group.name, kept(group.parameters), kept(group.modules))


def trainable_parameters(model: nn.Module) -> int:
    """How many numbers of a model are trained: those of parameters that take gradients.

    Parameters that are shared count once; lazy ones, which have no shape yet, count nothing.

    Example:
        >>> trainable_parameters(nn.Linear(2, 3))
        9
    """
    return sum(p.numel() for p in model.parameters() if p.requires_grad and not is_lazy(p))


def keeps_statistics(module: nn.Module) -> bool:
    """Whether a module, in training, changes what it uses in eval.

    Batch and instance norm with running statistics, also of your own (anything with tensors
    ``running_mean`` and ``running_var``), and spectral norm in both of torch's forms. Norms
    without running statistics use those of the batch in either mode.

    Example:
        >>> keeps_statistics(nn.BatchNorm1d(2)), keeps_statistics(nn.LayerNorm(2))
        (True, False)
    """
    if isinstance(module, _NormBase):
        return module.running_mean is not None
    if isinstance(module, _SpectralNorm):
        return True
    if any(isinstance(hook, SpectralNorm) for hook in module._forward_pre_hooks.values()):
        return True
    names = ("running_mean", "running_var")
    return all(isinstance(getattr(module, name, None), Tensor) for name in names)


class _StaysInEval:
    """The method ``train`` of a frozen norm: its own mode stays, what it holds follows.

    An object and no closure, so that a frozen model can be copied and pickled.

    Args:
        module: the norm.
        parent: the module around it.
    """

    def __init__(self, module: nn.Module, parent: nn.Module | None) -> None:
        self.module = module
        self.before = vars(module).get(_METHOD)  # some freeze in this very way by hand
        self.training = module.training
        self.follows = parent is not None and parent.training == module.training

    def __call__(self, mode: bool = True) -> nn.Module:
        """Take the place of ``module.train(mode)``."""
        for child in self.module.children():
            child.train(mode)
        self.training = self.training or mode
        return self.module

    def let_go(self, parent: nn.Module | None) -> None:
        """Give the module its method and its mode again."""
        del vars(self.module)[_METHOD]
        if self.before is not None:
            vars(self.module)[_METHOD] = self.before
            return
        follows = self.follows and parent is not None
        set_training(self.module, parent.training if follows and parent else self.training)


class _Named:
    """The parts of a model by their names, looked up once."""

    def __init__(self, model: nn.Module) -> None:
        self._parameters = dict(model.named_parameters())
        self._modules: dict[str, nn.Module] = dict(model.named_modules(remove_duplicate=False))
        self._parents: dict[int, nn.Module] = {}
        for parent in modules_of(model):
            for child in parent.children():
                self._parents.setdefault(id(child), parent)

    def freeze(self, group: DepthGroup, *, norms: bool = True) -> None:
        for name in group.parameters:
            self._parameters[name].requires_grad = False  # lazy ones do not have the method
            self._parameters[name].grad = None
        for name in group.modules if norms else ():
            module = self._modules[name]
            if keeps_statistics(module):
                if not isinstance(vars(module).get(_METHOD), _StaysInEval):
                    vars(module)[_METHOD] = _StaysInEval(module, self._parents.get(id(module)))
                set_training(module, False)

    def unfreeze(self, group: DepthGroup) -> None:
        for name in group.parameters:
            self._parameters[name].requires_grad = True
        self.release_norms(group)

    def release_norms(self, group: DepthGroup) -> None:
        for name in group.modules:
            held = vars(self._modules[name]).get(_METHOD)
            if isinstance(held, _StaysInEval):
                held.let_go(self._parents.get(id(held.module)))
