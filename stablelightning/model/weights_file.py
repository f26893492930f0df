"""Weights on disk: read without running anything, and loaded into a model whole or not at all."""

import os
import pickle
import re
import struct
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from stablelightning.errors import CheckpointError, ModelError, RecipeError
from stablelightning.model.loaded import mark_loaded
from stablelightning.model.weights_adapt import adapted
from stablelightning.model.weights_match import Match, match
from stablelightning.model.weights_report import LoadReport
from stablelightning.optional import require

#: Where checkpoints keep their weights beside other things; the first that is there is read.
_SECTIONS = ("state_dict", "model", "model_state_dict", "weights", "params")
#: How a zip archive and a pickle begin, which is what torch writes.
_TORCH_BEGINS = (b"PK", b"\x80")
#: A safetensors file begins with the length of its header, which is JSON.
_HEADER_AT = struct.calcsize("<Q")
#: The object that torch's safe unpickler met and did not make.
_OBJECT = re.compile(r"GLOBAL ([\w.]+)")
#: Where that unpickler begins to say what happened.
_SAID = "WeightsUnpickler error: "
#: What ends a sentence, and begins torch's advice about what it does not know to be cut off.
_SENTENCE = re.compile(r"\.\s")
#: The one protocol in which torch writes, by the second byte of a pickle that begins with b"\x80".
_PROTOCOL = 2


@dataclass(frozen=True)
class WeightsFile:
    """What a file holds.

    Args:
        path: where it lies.
        tensors: by the names in the file.
        metadata: text by its key, as safetensors keeps it; empty for other files.
        section: the key under which a checkpoint keeps its weights; ``""`` at the top.

    Example:
        >>> WeightsFile("net.pt", {"bias": torch.zeros(2)}).metadata
        {}
    """

    path: str
    tensors: dict[str, Tensor]
    metadata: dict[str, str] = field(default_factory=dict)
    section: str = ""


def read_weights(path: str | os.PathLike[str]) -> WeightsFile:
    """Read the tensors of a file, on the CPU. Nothing in it is executed.

    Taken are safetensors, what ``torch.save`` writes of a state dict, and checkpoints that keep one
    under ``state_dict`` (Lightning), ``model`` and the like. Which it is decides the content, not
    the suffix.

    Args:
        path: of the file.

    Returns:
        The tensors and the metadata.

    Raises:
        CheckpointError: there is no such file, it is damaged, holds code, or has no weights in it.
        MissingPackageError: safetensors is not installed.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "net.ckpt"
        >>> torch.save({"state_dict": nn.Linear(3, 2).state_dict(), "epoch": 4}, path)
        >>> file = read_weights(path)
        >>> sorted(file.tensors), file.section
        (['bias', 'weight'], 'state_dict')
    """
    path = Path(path).expanduser()
    try:
        with path.open("rb") as opened:
            begin = opened.read(_HEADER_AT + 1)
    except OSError as error:
        raise CheckpointError(
            f"weights must be a file that can be read, got {str(path)!r} "
            f"({error.strerror or error}); check the path."
        ) from error
    if begin[_HEADER_AT:] == b"{" and not begin.startswith(_TORCH_BEGINS):
        return _safetensors(path)
    if not begin:
        raise CheckpointError(
            f"a weights file must be whole, and {path.name} is empty; copy or fetch it again."
        )
    if begin[:1] == b"\x80" and len(begin) > 1 and begin[1] != _PROTOCOL:
        raise CheckpointError(
            f"weights must be safetensors or what torch.save wrote, and {path.name} is a plain "
            "pickle, which could run code and was not read; save model.state_dict() by torch.save "
            "where the file comes from."
        )
    if not begin.startswith(_TORCH_BEGINS):
        raise CheckpointError(
            f"weights must be safetensors or what torch.save wrote, and {path.name} begins like "
            f"neither ({begin!r}); fetch it again, and look whether it is a page or a pointer."
        )
    return _torch(path)


def load_weights(
    model: nn.Module, path: str | os.PathLike[str], *, least_share: float = 0.9
) -> LoadReport:
    """Load a file into a model where names and shapes agree, or refuse and write nothing.

    What wraps the names, in the file or in the model, is found: ``module.`` of DDP, ``network.`` of
    a Lightning checkpoint, ``_orig_mod.`` of a compiled module. Numbers of another precision are
    cast. A head of another size stays as it is. Where timm or torchvision know how, embedded
    positions are interpolated to the model's image size, and first kernels spread to its channels.

    Args:
        model: on any device; its own values stay where the file has none that fit.
        path: of the file; see :func:`read_weights`.
        least_share: the share of the model's values below its head that must come out of the file,
            in [0, 1], and the share of the file's values in the same parts that must be used: a
            ResNet-34 takes half of its values from a ResNet-18, and is none.

    Returns:
        What was loaded, and every key that was not.

    Raises:
        CheckpointError: the file cannot be read, too little of it fits, or it holds numbers that
            are not finite.
        ModelError: the model has no weights, or none in memory.
        RecipeError: ``least_share`` is out of range.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "net.pt"
        >>> file = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1000))
        >>> torch.save({f"module.{k}": v for k, v in file.state_dict().items()}, path)
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> report = load_weights(net, path)
        >>> report.share, report.prefix, report.loaded
        (1.0, 'module.', ('0.weight', '0.bias'))
    """
    return load_file(model, read_weights(path), least_share=least_share)


def load_file(model: nn.Module, file: WeightsFile, *, least_share: float = 0.9) -> LoadReport:
    """Load what was read already; otherwise as :func:`load_weights`.

    Args:
        model: changed where the file fits.
        file: of :func:`read_weights`.
        least_share: see :func:`load_weights`.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> load_file(net, WeightsFile("net.pt", dict(net.state_dict()))).missing
        ()
    """
    if not isinstance(least_share, int | float) or not 0 <= least_share <= 1:
        raise RecipeError(f"least_share must be a share in [0, 1], got {least_share!r}.")
    found = _matched(model, file)
    report = found.report(file.path, section=file.section)
    if min(report.share, found.share_of_file) < least_share or not report.loaded:
        error = CheckpointError(
            f"a weights file must fit {least_share:.0%} of the model below its head, and "
            f"{report.summary()}; give a file of this architecture, or a smaller least_share."
        )
        error.add_note(str(report))
        raise error
    _check_numbers(found, file)
    state = OrderedDict((found.own_names[name], value) for name, value in found.values.items())
    # The version of each module, by which some translate older files: these are the model's own.
    vars(state)["_metadata"] = getattr(model.state_dict(), "_metadata", {})
    # Every name and shape was compared before: nothing can fail half way.
    with torch.inference_mode(False), torch.no_grad():
        model.load_state_dict(state, strict=False)
    mark_loaded(model, report.loaded)
    return report


# ---- reading ----------------------------------------------------------------------------------


def _safetensors(path: Path) -> WeightsFile:
    library = require("safetensors", extra="recipes")
    require("safetensors.torch", extra="recipes")
    try:
        with library.safe_open(str(path), framework="pt", device="cpu") as opened:
            metadata = dict(opened.metadata() or {})
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (library.SafetensorError, OSError, ValueError) as error:
        raise _damaged(path, error) from error
    return WeightsFile(str(path), _checked(tensors, path), metadata)


def _torch(path: Path) -> WeightsFile:
    try:
        # Opened here: by a path, torch goes by the suffix. It warns of what it refuses below.
        with path.open("rb") as opened, warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            kept = torch.load(opened, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = _OBJECT.search(str(error))
        if named is None:
            raise _damaged(path, error) from error
        raise CheckpointError(
            f"weights must be tensors and plain values, and {path.name} holds {named.group(1)}, "
            "which could run code and was not made; save model.state_dict() alone where the file "
            "comes from."
        ) from error
    except Exception as error:  # zip, pickle and the disk each raise their own
        raise _damaged(path, error) from error
    section = ""
    while isinstance(kept, Mapping):
        if any(isinstance(value, Tensor) for value in kept.values()):
            tensors = {str(k): v for k, v in kept.items() if isinstance(v, Tensor)}
            return WeightsFile(str(path), _checked(tensors, path), section=section)
        inner = next((k for k in _SECTIONS if isinstance(kept.get(k), Mapping)), None)
        if inner is None:
            break
        section = f"{section}.{inner}" if section else inner
        kept = kept[inner]
    keys = ", ".join(map(str, list(kept)[:5])) if isinstance(kept, Mapping) else type(kept).__name__
    raise CheckpointError(
        f"a weights file must hold named tensors, and {path.name} holds none (it has {keys}); save "
        "model.state_dict() into it."
    )


def _checked(tensors: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    if not tensors:
        raise CheckpointError(
            f"a weights file must hold named tensors, and {path.name} holds none; save "
            "model.state_dict() into it."
        )
    for name, value in tensors.items():
        if value.layout is not torch.strided or value.is_quantized:
            raise CheckpointError(
                f"weights must be dense and not quantized, and {name!r} of {path.name} is not; "
                "what save_sparse wrote is read by load_sparse."
            )
    return tensors


def _damaged(path: Path, error: Exception) -> CheckpointError:
    said = str(error).rpartition(_SAID)[2].strip() or type(error).__name__
    reason = _SENTENCE.split(said.splitlines()[0])[0][:200].rstrip(".")
    return CheckpointError(
        f"a weights file must be whole, and {path.name} cannot be read ({reason}); it may be cut "
        "off: copy or fetch it again."
    )


# ---- loading ----------------------------------------------------------------------------------


def _matched(model: nn.Module, file: WeightsFile) -> Match:
    """The best agreement, after the library's own changes where these let more values in."""
    head = file.metadata.get("head")
    plain = match(model, file.tensors, head=head)
    if not plain.own_names:
        raise ModelError(
            f"weights go into a model that has some, and {type(model).__name__} has none."
        )
    if not plain.lacking:
        return plain
    change: Callable[[dict[str, Tensor]], dict[str, Tensor]] | None = adapted(plain.network)
    if change is None:
        return plain
    try:
        tensors = change(plain.stripped)
    except Exception:  # the library knows its own files; this is another one
        return plain
    other = match(model, tensors, head=head, wrapped=plain)
    return other if other.loaded_values > plain.loaded_values else plain


def _check_numbers(found: Match, file: WeightsFile) -> None:
    for name, value in found.values.items():
        target = found.targets[name]
        if target.is_meta and not is_lazy(target):
            raise ModelError(
                f"weights go into tensors in memory, and {name} is on the meta device; "
                "call model.to_empty(device='cpu') first."
            )
        # Buffers may hold masks of minus infinity.
        parameter = isinstance(target, nn.Parameter) and value.is_floating_point()
        if parameter and not bool(value.to(target.dtype).isfinite().all()):
            whole = bool(value.isfinite().all())
            why = f"too large for {_name(target)}" if whole else "not finite"
            raise CheckpointError(
                f"weights must be finite numbers, and {name} in {Path(file.path).name} holds some "
                f"that are {why}; give a file from before the training diverged."
            )


def _name(value: Any) -> str:
    return str(value.dtype).removeprefix("torch.")
