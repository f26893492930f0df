"""The loss of one training step of any module, as training would compute it, without a trainer."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from stablelightning.errors import DataError, ModelError, StableLightningError
from stablelightning.model.inputs import arguments_of
from stablelightning.model.summarize import select_output
from stablelightning.model.task import TASKS
from stablelightning.nn.heads import Distribution
from stablelightning.words import reason_of

Loss = Callable[[Any, Any], Tensor]

#: Keys of a batch that hold what the output is held against.
_TARGET_KEYS = ("target", "targets", "label", "labels", "y")
#: What a LightningModule logs with; without a trainer these raise.
_LOGGING = ("log", "log_dict")
#: Where the ``training_step`` is defined that does nothing.
_EMPTY_STEPS = ("lightning.pytorch.core.", "pytorch_lightning.core.")
#: Where no target is given, the output is projected on a direction drawn from this seed.
_PROJECTION_SEED = 0


class TrainingStep:
    """One training step of a model on one batch: its loss, by whatever rule there is.

    Args:
        model: any module; a LightningModule brings its own ``training_step``.
        batch: ``(inputs, target)``, a dict with a key like ``target``, or inputs alone; for a
            module with its own step, what its dataloader gives.
        loss: ``loss(output, target)``, a scalar. ``None``: the module's own step, else cross
            entropy for whole-number targets, mean squared error for floats, else a fixed random
            projection of the output.

    Raises:
        ModelError: the model has no parameters.

    Example:
        >>> step = TrainingStep(nn.Linear(3, 2), (torch.zeros(4, 3), torch.zeros(4, 2)))
        >>> step.run().ndim, step.rule
        (0, 'mean squared error')
    """

    def __init__(self, model: nn.Module, batch: Any, loss: Loss | None = None) -> None:
        first = next(model.parameters(), None)
        if first is None:
            raise ModelError(
                f"a model must have parameters, and {type(model).__name__} has none; "
                "pass the network itself."
            )
        self.model = model
        self.batch = _moved(batch, first.device)
        self.loss = loss
        self.notes: list[str] = []
        self.own = loss is None and _has_own_step(model, self.notes)
        self.inputs, self.target = split_batch(model, self.batch)
        self.examples = _examples(self.inputs)
        if self.examples == 0:
            raise DataError("a batch must have rows, got none; pass a batch of the training data.")
        self.rule = "the module's own training_step" if self.own else "the loss that was given"
        self.output: Any = None
        self._projections: list[Tensor] = []

    def run(self) -> Tensor:
        """Run the forward and return the loss, a scalar in autograd's graph.

        Raises:
            DataError: the batch does not fit the forward, or the loss; or the module's own step
                needs a trainer, and there is no forward to take its place.
        """
        if not self.own:
            return self._plain_step()
        try:
            return self._own_step()
        except StableLightningError as error:  # of ours: it says enough
            reason = str(error).rstrip(".")
        except Exception as error:  # whatever a step does without its trainer
            reason = reason_of(error)
        # A step that talks to its trainer cannot run without one; its forward can.
        if not _has_forward(self.model):
            raise DataError(
                f"training_step of {type(self.model).__name__} must run on this batch without a "
                f"trainer, and did not ({reason}); pass loss= and give the module a forward."
            )
        self.notes.append(
            f"training_step could not run without a trainer ({reason}); the forward and a default "
            "loss were used instead"
        )
        self.own = False
        return self._plain_step()

    def forward(self) -> Any:
        """Run the forward alone."""
        args, kwargs = arguments_of(self.inputs)
        try:
            return self.model(*args, **kwargs)
        except StableLightningError:
            raise
        except Exception as error:
            raise DataError(
                f"the batch must fit the forward of {type(self.model).__name__}, which raised "
                f"{type(error).__name__}: {reason_of(error)}; pass (inputs, target) as the "
                "training loader gives them."
            ) from error

    def call(self, *_: Any, **__: Any) -> Any:
        """What a watched forward should call: the module's own step, where it has one."""
        return self.run()

    def _own_step(self) -> Tensor:
        handle = self.model.register_forward_hook(self._keep_output)
        try:
            with silenced(self.model):
                step: Any = self.model.training_step
                value = step(*_accepted(step, (self.batch, 0)))
        finally:
            handle.remove()
        found = value.get("loss") if isinstance(value, Mapping) else value
        if not isinstance(found, Tensor) or found.numel() != 1:
            raise ValueError("it returned no scalar loss for this batch")
        return found.reshape(())

    def _keep_output(self, _module: nn.Module, _args: Any, output: Any) -> None:
        self.output = output

    def _plain_step(self) -> Tensor:
        self.output = self.forward()
        try:
            found = self._loss_of_output()
        except StableLightningError:
            raise
        except Exception as error:
            raise DataError(
                "the loss must fit the output and the target of the batch, and raised "
                f"{type(error).__name__}: {reason_of(error)}; check the shape, the type and the "
                "range of the target."
            ) from error
        if not isinstance(found, Tensor) or found.numel() == 0:
            raise DataError(
                f"a loss must be a tensor, a scalar, got {type(found).__name__}; compute it from "
                "the output with torch."
            )
        found = found.mean()
        asked = any(p.requires_grad for p in self.model.parameters())
        if asked and torch.is_grad_enabled() and not found.requires_grad:
            raise DataError(
                "a loss must depend on the model's parameters, and no gradient flows from this one "
                "to them; leave out .detach(), .item() and torch.no_grad()."
            )
        return found

    def _loss_of_output(self) -> Any:
        if self.loss is not None:
            return self.loss(self.output, self.target)
        losses = _losses_among(self.output)
        if losses:
            self.rule = "the sum of the losses that the model returned"
            return torch.stack(losses).sum()
        if self.target is None:
            self.rule = "a fixed random projection of the output"
            return self._projected(self.output)
        return self._default_loss(select_output(self.output), self.target)

    def _default_loss(self, output: Tensor | Distribution, target: Any) -> Tensor:
        if not isinstance(target, Tensor):
            self.rule = "a fixed random projection of the output"
            return self._projected(output)
        if isinstance(output, Distribution) or target.is_floating_point():
            self.rule = "mean squared error"
            return TASKS["regression"].loss(output, target)
        if output.shape == target.shape or output.shape[1:] == (1,):
            self.rule = "binary cross entropy of logits"
            return TASKS["multilabel"].loss(output, target)
        if output.ndim > 2 and output.shape[:-1] == target.shape:
            output = output.movedim(-1, 1)  # tokens: the classes are last
        self.rule = "cross entropy"
        return TASKS["classification"].loss(output, target)

    def _projected(self, output: Any) -> Tensor:
        """Mean over the rows of the output's component along one fixed random direction."""
        tensors = [
            t for t in tree_leaves(output) if isinstance(t, Tensor) and t.is_floating_point()
        ]
        if not tensors:
            raise DataError(
                f"a loss needs an output of floats, got {type(output).__name__} without any; "
                "pass loss=, a function of the output and the target."
            )
        generator = torch.Generator().manual_seed(_PROJECTION_SEED)
        total = tensors[0].new_zeros(())
        for tensor in tensors:
            direction = torch.randn(tensor.shape[1:], generator=generator)
            scaled = direction / max(direction.numel(), 1) ** 0.5
            total = total + (tensor * scaled.to(tensor)).sum() / max(len(tensor[:, None]), 1)
        return total


def split_batch(model: nn.Module, batch: Any) -> tuple[Any, Any]:
    """The inputs and the target of a batch; the target is ``None`` where there is none.

    A method ``inputs_and_target(batch)`` of the model decides, else: of a tuple or list the last
    entry is the target; of a dict the first of ``target targets label labels y``.

    Example:
        >>> split_batch(nn.Identity(), ("images", "classes"))
        ('images', 'classes')
        >>> split_batch(nn.Identity(), {"pixels": "images", "label": "classes"})
        ('images', 'classes')
    """
    own = getattr(model, "inputs_and_target", None)
    if callable(own):
        inputs, target = own(batch)
        return inputs, target
    if isinstance(batch, tuple | list) and len(batch) >= 2:
        inputs = batch[0] if len(batch) == 2 else tuple(batch[:-1])
        return inputs, batch[-1]
    if isinstance(batch, tuple | list) and len(batch) == 1:
        return batch[0], None
    if isinstance(batch, Mapping):
        key = next((k for k in _TARGET_KEYS if k in batch), None)
        if key is None:
            return dict(batch), None
        inputs = {k: v for k, v in batch.items() if k != key}
        named = inspect.signature(model.forward).parameters
        if len(inputs) == 1 and not set(inputs) & set(named):
            return next(iter(inputs.values())), batch[key]
        return inputs, batch[key]
    return batch, None


@contextmanager
def silenced(model: nn.Module) -> Iterator[None]:
    """Let ``self.log`` and ``self.log_dict`` of every module inside do nothing for a while."""
    modules = [m for m in model.modules() if callable(getattr(m, "training_step", None))]
    own = [{n: vars(m)[n] for n in _LOGGING if n in vars(m)} for m in modules]
    try:
        for module in modules:
            vars(module).update(dict.fromkeys(_LOGGING, _quiet))
        yield
    finally:
        for module, before in zip(modules, own, strict=True):
            for name in _LOGGING:
                vars(module).pop(name, None)
            vars(module).update(before)


def _quiet(*_: Any, **__: Any) -> None:
    """Take the place of ``self.log``."""


def _has_own_step(model: nn.Module, notes: list[str]) -> bool:
    """Whether the module brings a step of its own (a LightningModule does) that can be run."""
    step = getattr(type(model), "training_step", None)
    if step is None or getattr(step, "__module__", "").startswith(_EMPTY_STEPS):
        return False
    if not getattr(model, "automatic_optimization", True):
        notes.append(
            "training_step optimizes by itself and was not run; the forward and a default loss "
            "were used instead"
        )
        return False
    return True


def _accepted(function: Callable[..., Any], values: tuple[Any, ...]) -> tuple[Any, ...]:
    kinds = [p.kind for p in inspect.signature(function).parameters.values()]
    if any(kind is inspect.Parameter.VAR_POSITIONAL for kind in kinds):
        return values
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return values[: sum(kind in positional for kind in kinds)]


def _has_forward(model: nn.Module) -> bool:
    """Whether the class defines a forward; nn.Module's and Lightning's only say that it should."""
    home = getattr(type(model).forward, "__module__", "")
    return not home.startswith(("lightning.", "pytorch_lightning.", "torch.nn.modules.module"))


def _examples(inputs: Any) -> int:
    sizes = [len(t) for t in tree_leaves(inputs) if isinstance(t, Tensor) and t.ndim > 0]
    return sizes[0] if sizes else 1


def _losses_among(output: Any) -> list[Tensor]:
    """Losses that a model computes by itself, as torchvision's detection models do in training."""
    if not isinstance(output, Mapping) or not output:
        return []
    values = list(output.values())
    scalars = [v for v in values if isinstance(v, Tensor) and v.ndim == 0 and v.requires_grad]
    return scalars if len(scalars) == len(values) else []


def _moved(batch: Any, device: torch.device) -> Any:
    if device.type == "meta":
        raise ModelError(
            "a model on the meta device has no numbers to diagnose; move it to a real device with "
            ".to_empty(device=...) and initialize it first."
        )
    if any(isinstance(leaf, Tensor) and leaf.is_meta for leaf in tree_leaves(batch)):
        raise DataError("a batch must hold numbers, got tensors on the meta device.")

    def move(leaf: Any) -> Any:
        # Tensors made in inference mode cannot take part in a backward pass.
        return leaf.to(device, copy=leaf.is_inference()) if isinstance(leaf, Tensor) else leaf

    return tree_map(move, dict(batch) if isinstance(batch, Mapping) else batch)
