"""Ensembles of networks: drawn anew, predicted with, loaded from several checkpoints."""

import copy
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn

from stablelightning.checks import check_whole
from stablelightning.errors import (
    CheckpointError,
    ModelError,
    NothingRandomError,
    StableLightningWarning,
)
from stablelightning.model.collect import stack_outputs
from stablelightning.model.defaults import default_parameters
from stablelightning.model.depth import DepthGroup
from stablelightning.model.generators import preserved_generators
from stablelightning.model.loaded import is_marked_fresh, loaded_parameters
from stablelightning.model.members import Members, stand_for
from stablelightning.model.mixture import (
    Reading,
    combine_predictions,
    plain_prediction,
    run_plainly,
)
from stablelightning.model.prediction import Prediction
from stablelightning.model.redraw import redraw
from stablelightning.model.sample import Engine, mc_dropout
from stablelightning.words import reason_of, some

#: Seeds of members are taken below this.
_SEEDS = 2**62


def predict_ensemble(
    models: Sequence[nn.Module],
    inputs: Any,
    *,
    samples: int = 50,
    seed: int | None = None,
    engine: Engine = "auto",
    reading: Reading | None = None,
) -> Prediction:
    """Predict with several models, of one architecture or of many, as one mixture.

    Each member counts the same. One with dropout in it is sampled ``samples`` times, any other
    predicts once; ``epistemic`` is what members and samples disagree about.

    Args:
        models: M >= 1 modules that take the same inputs, such as those of several checkpoints; a
            stack (:class:`~stablelightning.model.stacked.StackedNetworks`) goes to
            :func:`~stablelightning.mc_dropout` by itself.
        inputs: a tensor (``model(x)``), a tuple or list (``model(*x)``) or a dict (``model(**x)``).
        samples: of each member that has something random in it, >= 1.
        seed: seeds torch's generators for this call and leaves them as they were.
        engine: how samples are computed; see :func:`~stablelightning.mc_dropout`.
        reading: task, class axis and whether samples are kept; ``None`` reads the task from the
            models.

    Raises:
        ModelError: no models, something that is no module, or models of different tasks.
        DataError: models that predict different classes.
        RecipeError: a setting is out of its range.

    Source:
        Lakshminarayanan et al. 2017, arXiv:1612.01474.

    Example:
        >>> nets = [nn.Linear(4, 3) for _ in range(5)]
        >>> prediction = predict_ensemble(nets, torch.randn(6, 4))
        >>> prediction.mean.shape, prediction.samples_used
        (torch.Size([6, 3]), 5)
        >>> bool((prediction.epistemic > 0).all())
        True
    """
    models = list(models)
    if not models or not all(isinstance(model, nn.Module) for model in models):
        raise ModelError(
            f"an ensemble needs one or more modules, got {len(models)} entries; pass a list such "
            "as [Net.load_from_checkpoint(path) for path in paths]."
        )
    check_whole("samples", samples, least=1)
    reading = reading or Reading()
    predictions = []
    with nullcontext() if seed is None else preserved_generators(seed):
        for model in models:
            try:
                prediction = mc_dropout(
                    model,
                    inputs,
                    samples=samples,
                    engine=engine,
                    task=reading.task,
                    class_dim=reading.class_dim,
                    keep_samples=reading.keep_samples,
                )
            except NothingRandomError:
                outputs = run_plainly(model, inputs)
                prediction = plain_prediction(outputs, model=model, reading=reading)
            predictions.append(prediction)
    return combine_predictions(predictions, class_dim=reading.class_dim)


def draw_networks(
    network: Callable[[], nn.Module] | nn.Module | Sequence[nn.Module], members: int
) -> list[nn.Module]:
    """M networks that differ in what was drawn, and agree in what was loaded.

    Each is made with a seed of its own, itself drawn from torch's generator: member r is the same
    whatever their number. What makes a network loads its weights every time, and draws its head
    anew. Of one that is given ready-made, or of a part that every network shares, copies are drawn
    anew by torch's own rules; what :func:`~stablelightning.model.weights_file.load_weights` or
    :func:`~stablelightning.model.backbones.backbone` loaded stays in each.

    Args:
        network: makes a network (a class, a function, a ``functools.partial``); or a ready one; or
            all of them.
        members: M >= 1.

    Raises:
        RecipeError: ``members`` below 1.
        ModelError: a sequence of another length, or what is made is no module.

    Example:
        >>> first, second = draw_networks(lambda: nn.Linear(4, 2), 2)
        >>> torch.equal(first.weight, second.weight)
        False
    """
    check_whole("members", members, least=1)
    if isinstance(network, Sequence) and not isinstance(network, nn.Module):
        networks = list(network)
        if len(networks) != members:
            raise ModelError(
                f"there must be one network for each of {members} members, got {len(networks)}; "
                "or pass a function that makes one."
            )
        return networks
    ready = network if isinstance(network, nn.Module) else None
    seeds = torch.randint(_SEEDS, (members,)).tolist()
    made: list[nn.Module] = []
    for seed in seeds:
        with preserved_generators(seed):
            fresh = ready if ready is not None else network()
            if not isinstance(fresh, nn.Module):
                raise ModelError(
                    f"network must make a module, got {type(fresh).__name__}; pass a class or a "
                    "function such as lambda: stablelightning.nn.MLP(64, 10)."
                )
            made.append(_on_its_own(fresh, made[0]) if made else fresh)
    return made


def _on_its_own(fresh: nn.Module, first: nn.Module) -> nn.Module:
    """The network itself, or where it shares weights with the first one, a copy drawn anew."""
    taken = {id(parameter) for parameter in first.parameters()}
    shared = {name for name, p in fresh.named_parameters() if id(p) in taken}
    if not shared:
        return fresh
    own = copy.deepcopy(fresh)
    loaded = loaded_parameters(own)
    chosen = shared - loaded
    unsure = [n for n, v in default_parameters(own).items() if n in chosen and not v.default]
    if unsure and not loaded and not is_marked_fresh(own):  # else it is known what was loaded
        warnings.warn(
            f"every member but the first draws {some(sorted(unsure))} anew, which do not look as "
            "torch draws them; if they were loaded, pass a function that makes the network.",
            StableLightningWarning,
            stacklevel=2,
        )
    redraw(own, [DepthGroup("members", tuple(sorted(chosen)), ())])
    return own


class LoadedMembers(Members):
    """One model that is, in turn, what each of several checkpoints holds.

    From then on :func:`~stablelightning.mc_dropout`, and with it a Trainer's prediction with
    uncertainty, speaks for all of them. Weights change hands without a copy.

    Args:
        model: whose code all of them share; it keeps its own weights outside of
            :meth:`~stablelightning.model.members.Members.as_member`.
        states: one state dict for each member, as ``model.state_dict()`` has it.

    Raises:
        CheckpointError: a state that does not fit the model; none at all.

    Example:
        >>> model = nn.Linear(4, 3)
        >>> members = LoadedMembers(model, [nn.Linear(4, 3).state_dict() for _ in range(5)])
        >>> mc_dropout(model, torch.randn(6, 4)).engine
        '5 members'
    """

    def __init__(self, model: nn.Module, states: Sequence[Mapping[str, Tensor]]) -> None:
        expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
        for number, state in enumerate(states):
            got = {name: getattr(tensor, "shape", None) for name, tensor in state.items()}
            wrong = [n for n in {**expected, **got} if expected.get(n) != got.get(n)]
            if wrong:
                raise CheckpointError(
                    f"checkpoint {number + 1} of {len(states)} must hold the weights of "
                    f"{type(model).__name__}, and differs in {some(sorted(wrong))}."
                )
        if not states:
            raise CheckpointError("an ensemble needs one or more checkpoints, got none.")
        self.members = len(states)
        self.chosen: int | None = None
        self._model = model
        self._states = [dict(state) for state in states]
        stand_for(model, self)

    @property
    def module(self) -> nn.Module:
        """The model."""
        return self._model

    @contextmanager
    def as_member(self, number: int) -> Iterator[nn.Module]:
        """Inside, the model has the weights of one checkpoint."""
        state = self._states[number]
        held = self._model.state_dict(keep_vars=True)
        own = {name: tensor.data for name, tensor in held.items()}
        for name, tensor in held.items():
            state[name] = state[name].to(tensor)  # the device, and the dtype of the precision
            tensor.data = state[name]
        self.chosen = number
        try:
            yield self._model
        finally:
            self.chosen = None
            for name, tensor in held.items():
                tensor.data = own[name]

    def member_outputs(self, *args: Any, **kwargs: Any) -> Any:
        """What each gives, one after the other."""
        outputs = []
        for number in range(self.members):
            with self.as_member(number):
                outputs.append(self._model(*args, **kwargs))
        return stack_outputs(outputs)


def read_state(path: str | os.PathLike[str], *, weights_only: bool = True) -> dict[str, Tensor]:
    """The state dict in a checkpoint of Lightning, or in a file that is one.

    Args:
        path: of the file.
        weights_only: refuse objects, which run code; ``False`` where the file is to be trusted.

    Raises:
        CheckpointError: it cannot be read, or holds no weights.
    """
    try:
        read = torch.load(path, map_location="cpu", weights_only=weights_only)
    except (OSError, RuntimeError, UnpicklingError, EOFError) as error:
        raise CheckpointError(
            f"a checkpoint must be one that torch can read, and {path} is not "
            f"({reason_of(error)}); give another file."
        ) from error
    state = read.get("state_dict", read) if isinstance(read, Mapping) else None
    if not state or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise CheckpointError(
            f"a checkpoint must hold a state dict of tensors, and {path} does not."
        )
    return dict(state)
