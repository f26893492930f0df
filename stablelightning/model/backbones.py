"""Backbones by name: any model of torchvision or timm, or a file of one's own, with a new head."""

import json
import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser
from torch import nn

from stablelightning.errors import (
    CheckpointError,
    ModelError,
    RecipeError,
    StableLightningWarning,
)
from stablelightning.model.architecture import BACKBONE, PRETRAINED, described_in
from stablelightning.model.dropout import add_dropout
from stablelightning.model.head import replace_head
from stablelightning.model.libraries import LibraryModel, library_model
from stablelightning.model.loaded import mark_fresh, mark_loaded
from stablelightning.model.preprocessing import Preprocessing
from stablelightning.model.weights_file import WeightsFile, load_file, read_weights

_log = logging.getLogger(__name__)

#: What a library takes beside the architecture: where weights come from, and the head.
_NOT_SETTINGS = frozenset(
    ("num_classes", "pretrained", "pretrained_cfg", "weights", "checkpoint_path", "progress")
)

_with_weights: ContextVar[bool] = ContextVar("with_weights", default=True)


def backbone(
    name: str | nn.Module,
    *,
    weights: str | None = PRETRAINED,
    num_outputs: int | None = None,
    dropout: float = 0.0,
    keep_layers: int | None = None,
    settings: dict[str, Any] | None = None,
) -> nn.Module:
    """Make a network by name, load its weights, and give it a head of its own.

    What comes back is the library's own model, so that the keys of its state dict are the
    library's. It has an attribute ``preprocessing``
    (:class:`~stablelightning.model.preprocessing.Preprocessing`) where it is known what images the
    weights were trained on; :class:`~stablelightning.data.ImageFolderData` follows it.

    In a recipe::

        network:
          class_path: stablelightning.model.backbones.backbone
          init_args: {name: resnet18, num_outputs: 5, dropout: 0.2}

    A checkpoint of such a recipe is loaded without fetching or reading the weights again; see
    :func:`without_weights`.

    Args:
        name: of a model of torchvision, or else of timm (``"resnet18"``; ``"timm/resnet18"`` where
            both have it; ``"vit_small_patch16_224.augreg_in1k"`` with the tag of its weights); the
            path of a file that :func:`~stablelightning.model.backbone_file.save_backbone` wrote,
            which says what it is; or a network of your own, for ``weights`` from a file.
        weights: ``"pretrained"`` for those of the library or of the file, a name of other weights
            in torchvision (``"IMAGENET1K_V1"``), the path of a file
            (:func:`~stablelightning.model.weights_file.load_weights`), or ``None`` for fresh ones.
        num_outputs: outputs of a new head (:func:`~stablelightning.model.head.replace_head`);
            ``None`` keeps the head that is there.
        dropout: rate before the head, for Monte Carlo dropout at about the cost of one pass.
        keep_layers: depth groups that keep their weights; those above are drawn anew.
        settings: more arguments of the library's constructor, such as ``{"in_chans": 1}`` or
            ``{"img_size": 96}`` of timm.

    Returns:
        The network, on the CPU.

    Raises:
        RecipeError: there is no such model (the message names those most like it) or setting, or
            nobody published weights of it.
        CheckpointError: the weights cannot be fetched, or the file cannot be read or is of another
            model. Nothing is half-written.
        MissingPackageError: the library is not installed.

    Example:
        >>> net = backbone("resnet18", weights=None, num_outputs=3, dropout=0.2)
        >>> net.fc.out_features, net.preprocessing.image_size
        (3, 224)
    """
    if num_outputs is None and keep_layers is not None:
        raise RecipeError(
            "keep_layers goes with a new head, got num_outputs=null; set num_outputs."
        )
    name = os.fspath(name) if isinstance(name, os.PathLike) else name
    given = dict(settings or {})
    if not _NOT_SETTINGS.isdisjoint(given):
        raise RecipeError(
            f"settings must be arguments of the architecture, got {given}; the size of the head "
            "is num_outputs, and the weights are weights."
        )
    if isinstance(name, str) and (not _is_file(name)):
        network = _by_name(library_model(name), weights, given)
    else:
        if given:
            raise RecipeError(
                f"settings belong to a model that is made by its name, got {given}; say them where "
                "the network is made."
            )
        network = _by_file(name, weights) if isinstance(name, str) else _own(name, weights)
    if num_outputs is not None:
        _make_room_for_a_head(network, num_outputs)
        replace_head(network, num_outputs, keep_layers, dropout=dropout)
    elif dropout:
        add_dropout(network, dropout)
    return network


@contextmanager
def without_weights() -> Iterator[None]:
    """Within it, :func:`backbone` makes networks of fresh weights: a checkpoint brings the others.

    ``load_from_checkpoint`` of :class:`~stablelightning.StableMixin` and the command line with
    ``--ckpt_path`` go through it.

    Example:
        >>> with without_weights():
        ...     net = backbone("resnet18", num_outputs=2)  # nothing is fetched
    """
    token = _with_weights.set(False)
    try:
        yield
    finally:
        _with_weights.reset(token)


# ---- by the name of a library's model ---------------------------------------------------------


def _by_name(model: LibraryModel, weights: str | None, settings: Mapping[str, Any]) -> nn.Module:
    tag = weights if weights in model.tags else None
    if not _with_weights.get() or weights is None:
        network = model.make(settings, for_weights=weights is not None)
        mark_fresh(network)
        _describe(network, model.preprocessing(network, tag))
    elif tag is not None or weights == PRETRAINED:
        network = model.make_pretrained(settings, tag)
        mark_loaded(network, dict(network.named_parameters()))
        _describe(network, model.preprocessing(network, tag))
    else:
        file = _read(weights, model.tags)
        network = model.make(settings, for_weights=True)
        _describe(network, model.preprocessing(network, tag))
        _load(network, file)
    return network


def _read(weights: str, tags: tuple[str, ...]) -> WeightsFile:
    if not isinstance(weights, str | os.PathLike) or not _is_file(weights):
        others = ", ".join(("null", "'pretrained'", *tags))
        raise CheckpointError(
            f"weights must be {others} or a file that exists, got {weights!r}; check the path."
        )
    return read_weights(weights)


def _make_room_for_a_head(network: nn.Module, num_outputs: int) -> None:
    """A model of timm that was trained without classes has nothing where its head would be."""
    reset = getattr(network, "reset_classifier", None)
    if callable(reset) and getattr(network, "num_classes", None) == 0:
        reset(num_outputs)


# ---- by a file, or of one's own ---------------------------------------------------------------


def _own(network: nn.Module, weights: str | None) -> nn.Module:
    if not isinstance(network, nn.Module):
        raise ModelError(
            f"a backbone must be a name, a path or a module, got {type(network).__name__}."
        )
    if weights not in (None, PRETRAINED) and _with_weights.get():
        assert weights is not None
        _load(network, _read(weights, ()))
    elif weights == PRETRAINED and _with_weights.get():
        raise RecipeError(
            f"weights of a {type(network).__name__} of your own must be a file or null, got "
            "'pretrained'."
        )
    return network


def _by_file(path: str, weights: str | None) -> nn.Module:
    file = read_weights(path)
    network = _described(file)
    if _with_weights.get() and weights is not None:
        _load(network, file if weights == PRETRAINED else _read(weights, ()))
    return network


def _described(file: WeightsFile) -> nn.Module:
    """Make the network that a file says it is of."""
    said = described_in(file)
    if said is None:
        raise CheckpointError(
            f"a backbone must say what it is, and {file.path} does not; name the architecture, and "
            "pass the file as weights."
        )
    if said["class_path"] == BACKBONE:
        return backbone(**said["init_args"])
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(nn.Module, "network")
    # The second name is that of jsonargparse before 4.49, which warns of it since.
    make = getattr(parser, "instantiate", None) or parser.instantiate_classes
    try:
        network: nn.Module = make(parser.parse_object({"network": said})).network
    except (ArgumentError, TypeError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1].strip()
        raise CheckpointError(
            f"a file must say how {said['class_path']} is made, and {file.path} does not "
            f"({reason}); make the network yourself, and pass the file as weights."
        ) from error
    return network


# ---- both -------------------------------------------------------------------------------------


def _load(network: nn.Module, file: WeightsFile) -> None:
    report = load_file(network, file)
    _describe(network, _preprocessing(file))
    _log.info(report.summary())
    if not report.whole:
        warnings.warn(report.summary(), StableLightningWarning, stacklevel=4)


def _preprocessing(file: WeightsFile) -> Preprocessing | None:
    text = file.metadata.get("preprocessing")
    if text is None:
        return None
    try:
        return Preprocessing(**json.loads(text))
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            f"preprocessing must be that of save_backbone, and {file.path} says {text[:80]!r}."
        ) from error


def _describe(network: nn.Module, preprocessing: Preprocessing | None) -> None:
    if preprocessing is not None:
        vars(network)["preprocessing"] = preprocessing


def _is_file(name: str) -> bool:
    return Path(name).expanduser().is_file()
