"""A backbone as one file: its weights under its own names, and what is known of it beside them."""

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from stablelightning.errors import ModelError
from stablelightning.files import written_whole
from stablelightning.model.preprocessing import preprocessing_of
from stablelightning.optional import require

#: What the metadata of a file of ours says under ``format``.
FORMAT = "stablelightning.backbone.1"
#: How such a file is called where nobody gives it another name.
FILE_NAME = "backbone.safetensors"

#: What ``torch.compile`` puts into the names of what it wraps.
_COMPILED = "_orig_mod."


def save_backbone(
    network: nn.Module,
    path: str | os.PathLike[str],
    *,
    architecture: Mapping[str, Any] | None = None,
    objective: str | None = None,
    head: str | None = None,
    state: Mapping[str, Any] | None = None,
) -> Path:
    """Write a network's parameters and buffers as safetensors, which no program can hide in.

    The names are those of ``network.state_dict()``, so that any network of the same structure takes
    them: by its own ``load_state_dict``, or by
    :func:`~stablelightning.model.weights_file.load_weights`, which reports what did not fit. A head
    that was not trained does not belong into the file: take it off first
    (:func:`~stablelightning.model.head.remove_head`).

    Metadata, all of it text: ``format`` (:data:`FORMAT`), the versions ``torch`` and
    ``stablelightning``, and where they are known ``architecture`` (JSON of ``class_path`` and
    ``init_args``), ``objective``, ``head`` and ``preprocessing`` (JSON of the fields of
    :class:`~stablelightning.model.preprocessing.Preprocessing`).

    Args:
        network: on any device; not changed.
        path: of the file, which appears whole or not at all; an old one is replaced.
        architecture: ``class_path`` and ``init_args`` that make the network, head included.
        objective: what it was trained for, in a word.
        head: dotted name of the head that was taken off and is not in the file.
        state: the weights to write in place of the network's own, such as those of an earlier
            checkpoint, under the same names.

    Returns:
        The path.

    Raises:
        ModelError: an entry is no tensor, or has no values yet; ``architecture`` is not plain.
        MissingPackageError: safetensors is not installed.
        OutputError: the file cannot be written.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> net = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
        >>> path = save_backbone(net, folder / "backbone.safetensors", objective="rotation")
        >>> from safetensors.torch import load_file
        >>> sorted(load_file(path))
        ['0.bias', '0.weight']
    """
    safetensors = require("safetensors.torch", extra="recipes")
    tensors = _plain_tensors(network.state_dict() if state is None else state)
    metadata = _metadata(network, architecture, objective, head)
    target = Path(path)
    with written_whole(target) as temporary:
        temporary.write_bytes(safetensors.save(tensors, metadata=metadata))
    return target


def _plain_tensors(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Whole tensors in memory of their own, which is what the format takes."""
    tensors: dict[str, Tensor] = {}
    owned: set[int] = set()
    for name, value in state.items():
        if not isinstance(value, Tensor) or value.layout is not torch.strided:
            kind = value.layout if isinstance(value, Tensor) else type(value).__name__
            raise ModelError(
                f"a backbone file holds plain tensors only, got {kind} for {name!r}; save this "
                "network with torch.save."
            )
        if is_lazy(value) or value.is_meta:
            raise ModelError(
                f"a backbone must have values to be saved, and {name!r} has none yet; run the "
                "network once first."
            )
        whole = value.detach().cpu().contiguous()
        if whole.untyped_storage().data_ptr() in owned:  # tied weights: each name gets its own
            whole = whole.clone()
        owned.add(whole.untyped_storage().data_ptr())
        tensors[name.replace(_COMPILED, "")] = whole
    return tensors


def _metadata(
    network: nn.Module,
    architecture: Mapping[str, Any] | None,
    objective: str | None,
    head: str | None,
) -> dict[str, str]:
    version = sys.modules["stablelightning"].__version__  # an import would point upward
    metadata = {"format": FORMAT, "stablelightning": version, "torch": str(torch.__version__)}
    preprocessing = preprocessing_of(network)
    if architecture is not None:
        metadata["architecture"] = _as_json(architecture)
    if objective is not None:
        metadata["objective"] = objective
    if head is not None:
        metadata["head"] = head
    if preprocessing is not None:
        metadata["preprocessing"] = json.dumps(asdict(preprocessing))
    return metadata


def _as_json(architecture: Mapping[str, Any]) -> str:
    try:
        return json.dumps(dict(architecture))
    except TypeError as error:
        raise ModelError(
            "an architecture must be class_path and init_args of plain types, as in a recipe, and "
            f"this one is not ({error}); leave it out."
        ) from error
