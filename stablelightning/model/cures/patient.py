"""A model under treatment: what is known of it, a trial after each change, and the way back."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from stablelightning.errors import ModelError
from stablelightning.model.attribution import Attribution, LayerRole, attribute
from stablelightning.model.cures.treatment import NotSafe
from stablelightning.model.inputs import arguments_of
from stablelightning.model.modules import modules_of
from stablelightning.model.preserve import preserved
from stablelightning.model.trace import Call, Value
from stablelightning.words import reason_of


class Patient:
    """A model, an example of its inputs, and what a watched forward tells of it.

    Args:
        model: the model.
        example: inputs of one batch, as for :func:`~stablelightning.model.attribution.attribute`.

    Attributes:
        was_finite: whether its outputs were finite before it was treated.

    Raises:
        DataError: the example does not fit the forward.
        ModelError: the model is compiled or scripted, or no module.
    """

    def __init__(self, model: nn.Module, example: Any) -> None:
        _refuse_compiled(model)
        self.model = model
        self.example = example
        self.attribution: Attribution = attribute(model, example)
        self._shapes = _shapes(self.attribution.trace.outputs)
        self.was_finite = _all_finite(self.attribution.trace.outputs)
        # One row and a batch norm, say: what does not run before need not run afterwards.
        self._had_trouble = bool(self._trouble_in_training())

    @property
    def names(self) -> dict[nn.Module, str]:
        """Dotted name of every module; of a shared one, the first."""
        return {module: name for name, module in self.model.named_modules()}

    @property
    def names_to_modules(self) -> dict[str, nn.Module]:
        """Every module by its dotted name."""
        return dict(self.model.named_modules())

    def roles(self, modules: Iterable[str] = ()) -> list[LayerRole]:
        """The weight layers in the named modules, in order of execution; all of them if none is."""
        wanted = list(modules)
        layers = self.attribution.layers
        if not wanted or "" in wanted:
            return layers
        return [r for r in layers if any(r.name == n or r.name.startswith(f"{n}.") for n in wanted)]

    def calls_of(self, module: nn.Module) -> list[Call]:
        """The calls of a module in the watched forward."""
        return [call for call in self.attribution.trace.calls if call.module is module]

    def check(self) -> None:
        """Run the changed model once in eval and once in training, and leave no trace of it.

        Raises:
            NotSafe: its outputs have another shape, or are no longer finite.
            StableLightningError: it does not run.
        """
        self.attribution = attribute(self.model, self.example)
        outputs = self.attribution.trace.outputs
        if _shapes(outputs) != self._shapes:
            raise NotSafe("the outputs would have another shape")
        if self.was_finite and not _all_finite(outputs):
            raise NotSafe("the outputs would not be finite")
        trouble = self._trouble_in_training()
        if trouble and not self._had_trouble:
            raise NotSafe(f"it would not run in training ({trouble})")

    def _trouble_in_training(self) -> str:
        """Why the model does not run in training on the example; "" where it does."""
        args, kwargs = arguments_of(self.example)
        with preserved(self.model), torch.no_grad():
            self.model.train()
            try:
                self.model(*args, **kwargs)
            except Exception as error:
                return reason_of(error)
        return ""


def _shapes(outputs: list[Value]) -> list[torch.Size]:
    return [value.tensor.shape for value in outputs]


def _all_finite(outputs: list[Value]) -> bool:
    known = [value.tensor for value in outputs if not value.tensor.is_meta]
    return all(bool(torch.isfinite(tensor).all()) for tensor in known)


def _refuse_compiled(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise ModelError(f"model must be a torch.nn.Module, got {type(model).__name__}.")
    for name, module in model.named_modules():
        compiled = hasattr(module, "_orig_mod") or module._compiled_call_impl is not None
        if compiled or isinstance(module, torch.jit.ScriptModule):
            raise ModelError(
                f"cures need a model in Python, and {name or 'this one'} is compiled or scripted; "
                "apply them before compiling."
            )


class Snapshot:
    """Classes, children, attributes, hooks and numbers of a model, to go back to.

    Args:
        model: any module.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2))
        >>> before = Snapshot(net)
        >>> _ = net.append(nn.ReLU())
        >>> before.restore()
        >>> len(net)
        1
    """

    def __init__(self, model: nn.Module) -> None:
        self._modules = [
            (module, type(module), {name: _copy(v) for name, v in vars(module).items()})
            for module in modules_of(model)
        ]
        tensors = {id(t): t for t in [*model.parameters(), *model.buffers()]}
        self._tensors = [
            (t, t.detach().clone(), t.requires_grad)
            for t in tensors.values()
            if not is_lazy(t) and not t.is_meta
        ]

    def restore(self) -> None:
        """Put everything back; objects that were there are there again, not copies of them."""
        for module, kind, attributes in self._modules:
            module.__class__ = kind
            present = vars(module)
            for name in [name for name in present if name not in attributes]:
                del present[name]
            for name, (value, content) in attributes.items():
                if content is not None:
                    value.clear()
                    value.update(content)
                present[name] = value
        for tensor, content, requires_grad in self._tensors:
            _write_back(tensor, content)
            if tensor.is_leaf:
                tensor.requires_grad_(requires_grad)


def _copy(value: Any) -> tuple[Any, Any]:
    """A value, and the content of one that is changed in place (``_modules``, hooks, ...)."""
    return value, value.copy() if isinstance(value, dict | set) else None


def _write_back(tensor: Tensor, content: Tensor) -> None:
    if not torch.equal(tensor.detach(), content):
        tensor.data.copy_(content)
