"""The models of torchvision and timm by name: fresh, or with the weights that these fetch."""

import inspect
import os
import re
import socket
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from difflib import SequenceMatcher
from typing import Any, Protocol
from urllib.parse import urlparse
from urllib.request import getproxies

from torch import nn

from stablelightning.errors import CheckpointError, MissingPackageError, RecipeError
from stablelightning.model.loaded import mark_loaded
from stablelightning.model.preprocessing import (
    Preprocessing,
    preprocessing_of,
    preprocessing_of_torchvision,
)
from stablelightning.model.weights_file import WeightsFile, load_file
from stablelightning.optional import require
from stablelightning.words import reason_of

#: Parts of torchvision whose models end in no classifier that could be replaced.
_OTHER_TASKS = ("detection", "optical_flow", "quantization")
#: Names that an error proposes, and how like they must be to be worth it.
_PROPOSED, _ALIKE = 5, 0.6
#: Where timm's weights lie, unless the environment says otherwise.
_HUB = "https://huggingface.co"
_HUB_FILES = ("model.safetensors", "pytorch_model.bin")


class LibraryModel(Protocol):
    """A model of a library, known by name and not made yet."""

    @property
    def name(self) -> str:
        """Library and name, such as ``"timm/resnet18"``."""

    @property
    def tags(self) -> tuple[str, ...]:
        """Names of weights beside the usual ones."""

    def make(self, settings: Mapping[str, Any], *, for_weights: bool) -> nn.Module:
        """Make it, with fresh weights.

        Args:
            settings: arguments of the library's own constructor.
            for_weights: whether weights will be loaded into it, for which a few are made otherwise.
        """

    def make_pretrained(self, settings: Mapping[str, Any], tag: str | None) -> nn.Module:
        """Make it with the library's weights, which are fetched where they are not in its cache."""

    def preprocessing(self, network: nn.Module, tag: str | None) -> Preprocessing | None:
        """What images its weights were trained on."""


def library_model(name: str) -> LibraryModel:
    """Find a model by its name, in torchvision first.

    Args:
        name: such as ``"resnet18"``, ``"vit_small_patch16_224.augreg_in1k"`` (timm, with the tag of
            its weights), or with the library before it: ``"timm/resnet18"``.

    Raises:
        RecipeError: neither library has it; the message names those most like it.
        MissingPackageError: the library is not installed.

    Example:
        >>> library_model("timm/resnet18").name
        'timm/resnet18'
    """
    library, _, bare = name.rpartition("/")
    if library not in ("", "torchvision", "timm"):
        raise RecipeError(
            f"a backbone must be a model of torchvision or timm, or a file that exists, got "
            f"{name!r}; write torchvision/NAME, timm/NAME or check the path."
        )
    missing: MissingPackageError | None = None
    for kind, find in (("torchvision", _in_torchvision), ("timm", _in_timm)):
        if library not in ("", kind):
            continue
        try:
            found = find(bare)
        except MissingPackageError as error:
            missing = error
            continue
        if found is not None:
            return found
    if missing is not None and (library or not _known_names("")):
        raise missing
    nearest = _nearest(bare, library)
    hint = f"; did you mean {', '.join(nearest)}?" if nearest else "."
    raise RecipeError(
        f"a backbone must be a model of torchvision or timm, or a file that exists, got "
        f"{name!r}{hint}"
    )


# ---- torchvision ------------------------------------------------------------------------------


class _TorchvisionModel:
    tags: tuple[str, ...]

    def __init__(self, name: str) -> None:
        self._models = require("torchvision.models", extra="vision")
        self._bare = name
        self.name = f"torchvision/{name}"
        self._weights = self._models.get_model_weights(name)
        self.tags = tuple(self._weights.__members__)

    def make(self, settings: Mapping[str, Any], *, for_weights: bool) -> nn.Module:
        builder = self._models.get_model_builder(self._bare)
        usual = self._usual(builder, for_weights=for_weights)
        with _refused(self.name, settings), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            network: nn.Module = builder(weights=None, **{**usual, **settings})
        return network

    def make_pretrained(self, settings: Mapping[str, Any], tag: str | None) -> nn.Module:
        weights = self._chosen(tag)
        if weights is None:
            raise _no_weights(self.name)
        network = self.make(settings, for_weights=True)
        with _fetching(self.name, weights.url):
            state = weights.get_state_dict(progress=False, check_hash=True)
        load_file(network, WeightsFile(weights.url, dict(state)))
        return network

    def preprocessing(self, network: nn.Module, tag: str | None) -> Preprocessing | None:
        weights = self._chosen(tag)
        if weights is None:
            return None
        return preprocessing_of_torchvision(network, weights.transforms())

    def _chosen(self, tag: str | None) -> Any:
        if tag is not None:
            return self._weights[tag]
        return getattr(self._weights, "DEFAULT", None)

    def _usual(self, builder: Any, *, for_weights: bool) -> dict[str, Any]:
        """What a few models need, to be as they were trained, or to give a plain output."""
        home = builder.__module__
        usual: dict[str, Any] = {}
        if home.endswith(("googlenet", "inception")):
            # Their weights want inputs scaled in another way. Auxiliary classifiers make the
            # output of training a tuple, which no loss of a task takes.
            usual = {"aux_logits": False, "init_weights": not for_weights}
            return {**usual, "transform_input": True} if for_weights else usual
        if ".segmentation" in home:
            usual = {"weights_backbone": None}  # not those of ImageNet, unasked
            has_auxiliary = "aux_loss" in inspect.signature(builder).parameters
            return {**usual, "aux_loss": True} if for_weights and has_auxiliary else usual
        return {}


def _in_torchvision(name: str) -> LibraryModel | None:
    models = require("torchvision.models", extra="vision")
    if name not in models.list_models():
        return None
    home = models.get_model_builder(name).__module__
    if any(f".{task}" in home for task in _OTHER_TASKS):
        raise RecipeError(
            f"a backbone must end in a classifier, and {name} of torchvision is a model of "
            f"{home.split('.')[2].replace('_', ' ')}; give the backbone in it by its own name."
        )
    return _TorchvisionModel(name)


# ---- timm -------------------------------------------------------------------------------------


class _TimmModel:
    tags: tuple[str, ...] = ()

    def __init__(self, name: str) -> None:
        self._timm = require("timm", extra="vision")
        self._bare = name
        self.name = f"timm/{name}"

    def make(self, settings: Mapping[str, Any], *, for_weights: bool) -> nn.Module:
        with _refused(self.name, settings):
            network: nn.Module = self._timm.create_model(self._bare, pretrained=False, **settings)
        return network

    def make_pretrained(self, settings: Mapping[str, Any], tag: str | None) -> nn.Module:
        source = self._timm.models.get_pretrained_cfg(self._bare)
        if source is None or not source.has_weights:
            raise _no_weights(self.name)
        self.make(settings, for_weights=True)  # what is wrong with the settings is said first
        place = _address(source)
        with _fetching(self.name, place):
            _refuse_without_network(source)
            network: nn.Module = self._timm.create_model(self._bare, pretrained=True, **settings)
        mark_loaded(network, network.state_dict())
        return network

    def preprocessing(self, network: nn.Module, tag: str | None) -> Preprocessing | None:
        return preprocessing_of(network)


def _in_timm(name: str) -> LibraryModel | None:
    models = require("timm.models", extra="vision")
    architecture, _, tag = name.partition(".")
    if not models.is_model(architecture):
        return None
    if tag and name not in models.list_pretrained(f"{architecture}.*"):
        return None
    return _TimmModel(name)


def _address(source: Any) -> str:
    if source.hf_hub_id:
        return f"{os.environ.get('HF_ENDPOINT', _HUB)}/{source.hf_hub_id}"
    return str(source.url or source.file)


def _refuse_without_network(source: Any) -> None:
    """Where there is no network, the hub's client tries for most of a minute before it says so."""
    if not source.hf_hub_id or source.file or getproxies():
        return
    cached = require("huggingface_hub", extra="vision").try_to_load_from_cache
    if any(isinstance(cached(source.hf_hub_id, file), str) for file in _HUB_FILES):
        return
    socket.getaddrinfo(urlparse(_address(source)).hostname, 443)


# ---- what goes wrong --------------------------------------------------------------------------


@contextmanager
def _refused(name: str, settings: Mapping[str, Any]) -> Iterator[None]:
    try:
        yield
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        if not settings:
            raise
        reason = reason_of(error)
        raise RecipeError(
            f"settings must be arguments of {name}, got {dict(settings)} ({reason})."
        ) from error


@contextmanager
def _fetching(name: str, place: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # urllib, the hub's client and the disk each raise their own
        reason = reason_of(error)
        raise CheckpointError(
            f"the pretrained weights of {name} are fetched from {place}, and that failed "
            f"({reason}); without a network, fetch the file elsewhere and pass weights=ITS_PATH "
            "(in a recipe: --model.network.weights ITS_PATH)."
        ) from error


def _no_weights(name: str) -> RecipeError:
    return RecipeError(
        f"weights must be a file, or null for fresh ones, as nobody published any of {name}; "
        "another name may have some."
    )


# ---- names ------------------------------------------------------------------------------------


def _known_names(library: str) -> dict[str, str]:
    """Every name, by the way it is written in a recipe."""
    known: dict[str, str] = {}
    try:
        if library in ("", "torchvision"):
            models = require("torchvision.models", extra="vision")
            known.update({name: name for name in models.list_models()})
    except MissingPackageError:
        pass
    try:
        if library in ("", "timm"):
            names = require("timm.models", extra="vision").list_models()
            known.update({name if name not in known else f"timm/{name}": name for name in names})
    except MissingPackageError:
        pass
    return known


def _nearest(name: str, library: str) -> list[str]:
    wanted = _letters(name.partition(".")[0])
    scores = {
        written: SequenceMatcher(None, wanted, _letters(bare)).ratio()
        for written, bare in _known_names(library).items()
    }
    alike = [written for written, score in scores.items() if score >= _ALIKE]
    return sorted(alike, key=lambda written: (-scores[written], len(written)))[:_PROPOSED]


def _letters(name: str) -> str:
    """``ResNet-18`` and ``resnet18`` are written alike."""
    return re.sub(r"[^a-z0-9]", "", name.lower())
