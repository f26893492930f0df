"""Which of a module's methods is sampled, and how it is called without a trace."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import lightning as L
import torch
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor
from torch.utils._pytree import tree_map

from stablelightning.callbacks.shards import refuse_shards
from stablelightning.errors import (
    ModelError,
    RecipeError,
    StableLightningError,
    StableLightningWarning,
)
from stablelightning.model.generators import preserved_generators
from stablelightning.model.inputs import spread
from stablelightning.model.prediction import Prediction
from stablelightning.model.summarize import select_output
from stablelightning.nn.heads import Distribution

#: Modules of this package whose ``predict_step`` samples by itself.
_SAMPLES_ALREADY = ("stablelightning.mixin", "stablelightning.module")

Step = Callable[..., Any]

#: What stands in the place of a module's methods: what was there first, then each replacement.
_REPLACED: WeakKeyDictionary[L.LightningModule, dict[str, list[Any]]] = WeakKeyDictionary()


@dataclass(frozen=True)
class Call:
    """What is called once per sample.

    Args:
        name: what it is, for messages: ``"Model.predict_step"``.
        function: a bound method; ``None`` is the module itself (its ``forward``, with hooks).
        inputs: a tensor; a tuple is spread over the arguments, a dict over the keywords.
    """

    name: str
    function: Step | None
    inputs: Any

    def plain(self, pl_module: L.LightningModule, *, seed: int) -> Tensor | Distribution:
        """One pass as the module stands (eval in Lightning's test and predict loops), read.

        Raises:
            ModelError: the output is not a prediction that can be averaged.
        """
        function = self.function or pl_module
        # A method may write into its batch, and the batch is still needed.
        inputs = tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, self.inputs)
        args, kwargs = spread(inputs)
        with preserved_generators(seed):
            output = function(*args, **kwargs)
        return _readable(output, self.name)


class Calls:
    """The calls that could be sampled, the user's own ``predict_step`` first.

    The first batch tries them in order: ``predict_step`` on the batch as it is, ``predict_step`` on
    the inputs alone (one written for a predict set without targets), ``forward`` on the inputs.
    What worked is kept for the batches that follow.

    Args:
        pl_module: the module.
        step: its ``predict_step``, as it was before anything wrapped it.
    """

    def __init__(self, pl_module: L.LightningModule, step: Step) -> None:
        self.own_step = is_overridden("predict_step", pl_module) and not _samples_already(step)
        self._module = pl_module
        self._step = step
        self._forward = is_overridden("forward", pl_module)
        self._chosen = -1
        self._gives_none = False

    def plain(self, inputs: Any, arguments: tuple[Any, ...], *, seed: int) -> Tensor | Distribution:
        """One pass over a batch, read.

        Args:
            inputs: what ``forward`` takes, ``None`` if the batch could not be split.
            arguments: what Lightning would give ``predict_step``.
            seed: for modules that draw random numbers even in eval.

        Raises:
            ModelError: no call gives a prediction that can be averaged.
        """
        if self._chosen >= 0:
            return self.chosen(inputs, arguments).plain(self._module, seed=seed)
        failures: list[tuple[str, Exception]] = []
        for number, call in enumerate(self._all(inputs, arguments)):
            try:
                output = call.plain(self._module, seed=seed)
            except torch.OutOfMemoryError:
                raise
            except (
                Exception
            ) as error:  # whatever a method raises that was written for other batches
                failures.append((call.name, error))
                continue
            self._chosen = number
            if failures:
                _say_what_is_sampled(call.name, failures)
            return output
        raise _nothing_readable(self._module, failures)

    def given(self, arguments: tuple[Any, ...], *, seed: int) -> Prediction | None:
        """The Prediction that the module's own ``predict_step`` returns, if it returns one.

        Args:
            arguments: what Lightning would give ``predict_step``.
            seed: for what it draws.
        """
        if not self.own_step or self._gives_none:
            return None
        with preserved_generators(seed):
            output = self._step(*arguments)
        self._gives_none = not isinstance(output, Prediction)
        return output if isinstance(output, Prediction) else None

    def chosen(self, inputs: Any, arguments: tuple[Any, ...]) -> Call:
        """The call that worked on the first batch, for this one."""
        return self._all(inputs, arguments)[self._chosen]

    def _all(self, inputs: Any, arguments: tuple[Any, ...]) -> list[Call]:
        name = type(self._module).__name__
        calls = []
        if self.own_step:
            calls.append(Call(f"{name}.predict_step", self._step, arguments))
            if isinstance(inputs, Tensor) and inputs is not arguments[0]:
                alone = (inputs, *arguments[1:])
                calls.append(Call(f"{name}.predict_step on the inputs alone", self._step, alone))
        if self._forward and inputs is not None:
            calls.append(Call(f"{name}.forward", None, inputs))
        return calls


def step_arguments(
    step: Step, batch: Any, batch_idx: int, dataloader_idx: int | None
) -> tuple[Any, ...]:
    """Give the arguments with which Lightning would call ``predict_step``."""
    arguments: tuple[Any, ...] = (batch,)
    if is_param_in_hook_signature(step, "batch_idx", min_args=2):
        arguments += (batch_idx,)
        if dataloader_idx is not None and is_param_in_hook_signature(step, "dataloader_idx"):
            arguments += (dataloader_idx,)
    return arguments


def refuse_unsampled(trainer: L.Trainer, step: Step) -> None:
    """Say in words what cannot be sampled.

    Raises:
        RecipeError: the strategy shards the model; a step that takes an iterator.
    """
    refuse_shards(
        trainer,
        needs="EstimateUncertainty needs the whole model",
        remedy="use strategy='ddp' or one device",
    )
    if is_param_in_hook_signature(step, "dataloader_iter", explicit=True):
        raise RecipeError(
            "EstimateUncertainty needs steps that take a batch, got one that takes "
            "dataloader_iter; write it as step(self, batch, batch_idx)."
        )


@contextmanager
def unobserved(trainer: L.Trainer, pl_module: L.LightningModule) -> Iterator[None]:
    """Inside, calls run as in a predict step, but log nothing and leave ordinary tensors behind.

    Inference mode is off (``no_grad`` is on): what a module caches on its first call, and what is
    handed to the user, must stay usable in training.
    """
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        stack.enter_context(trainer.precision_plugin.predict_step_context())
        stack.enter_context(_muted(pl_module))
        yield


@contextmanager
def _muted(pl_module: L.LightningModule) -> Iterator[None]:
    """``self.log`` would log once per sample in a test hook, and raise in a predict hook."""
    with ExitStack() as stack:
        for module in pl_module.modules():
            if isinstance(module, L.LightningModule):
                for name in ("log", "log_dict"):
                    stack.callback(replace_method(module, name, _log_nothing))
        yield


def replace_method(module: L.LightningModule, name: str, function: Step) -> Callable[[], None]:
    """Put ``function`` in the place of a method of this one module; what is returned undoes it.

    Several may replace the same method, and undo it in any order.
    """
    layers = _REPLACED.setdefault(module, {}).setdefault(name, [vars(module).get(name)])
    layer = [function]  # equal functions are still two replacements
    layers.append(layer)
    vars(module)[name] = function

    def restore() -> None:
        layers[:] = [kept for kept in layers if kept is not layer]
        if len(layers) > 1:
            vars(module)[name] = layers[-1][0]
            return
        _REPLACED[module].pop(name)
        del vars(module)[name]
        if layers[0] is not None:
            vars(module)[name] = layers[0]

    return restore


@contextmanager
def unreplaced_methods(module: L.LightningModule) -> Iterator[None]:
    """Inside, the module's methods are those that were there before anything was replaced."""
    layers = _REPLACED.get(module, {})
    present = {name: vars(module)[name] for name in layers}
    try:
        for name, (first, *_) in layers.items():
            vars(module).pop(name)
            if first is not None:
                vars(module)[name] = first
        yield
    finally:
        vars(module).update(present)


def _log_nothing(*_: Any, **__: Any) -> None:
    return None


def _samples_already(step: Step) -> bool:
    return getattr(step, "__module__", None) in _SAMPLES_ALREADY


def _readable(output: Any, name: str) -> Tensor | Distribution:
    if isinstance(output, Prediction):
        raise ModelError(
            f"{name} samples by itself (it returns a Prediction), and samples of samples are not "
            "wanted; return the plain output there, or remove EstimateUncertainty."
        )
    selected = select_output(output)
    tensor = selected.mean if isinstance(selected, Distribution) else selected
    if not tensor.is_floating_point() or tensor.ndim < 1:
        raise ModelError(
            f"{name} must return scores, probabilities or values per row, got a tensor of "
            f"{tensor.dtype} with shape {tuple(tensor.shape)}; class indices cannot be averaged."
        )
    return selected


def _say_what_is_sampled(name: str, failures: list[tuple[str, Exception]]) -> None:
    reasons = "; ".join(f"{other}: {_first_line(error)}" for other, error in failures)
    warnings.warn(
        f"EstimateUncertainty samples {name}, because what comes before it gives no prediction "
        f"that can be averaged ({reasons}).",
        StableLightningWarning,
        stacklevel=2,
    )


def _nothing_readable(
    pl_module: L.LightningModule, failures: list[tuple[str, Exception]]
) -> Exception:
    if not failures:
        return ModelError(
            f"EstimateUncertainty needs a predict_step or a forward to sample, and "
            f"{type(pl_module).__name__} has neither; define one of them."
        )
    first = failures[0][1]
    if len(failures) == 1 and isinstance(first, StableLightningError):
        return first
    reasons = "; ".join(f"{name}: {_first_line(error)}" for name, error in failures)
    error = ModelError(
        f"EstimateUncertainty needs a prediction that can be averaged, and no call gave one "
        f"({reasons}); if the inputs are wrong, override EstimateUncertainty.inputs_and_target."
    )
    error.__cause__ = first
    return error


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
