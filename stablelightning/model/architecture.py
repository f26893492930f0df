"""What a backbone file says that it is, taken only where it names a network that may be made."""

import json
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import nn
from torch.utils._pytree import tree_leaves

from stablelightning.errors import CheckpointError
from stablelightning.model.weights_file import WeightsFile, read_weights

#: The word for weights that come from where the name comes from.
PRETRAINED = "pretrained"
#: Of what a file says that it is, only these are called, with layers of torch among the arguments.
BACKBONE = "stablelightning.model.backbones.backbone"
_HOME = "stablelightning.nn"
_TRUSTED = ("torch.nn.", f"{_HOME}.")
#: Arguments of a backbone that a file may say.
_PLAIN = ("name", "num_outputs", "dropout", "settings")


def without_files(description: Any) -> Any:
    """Describe a network so that it can be made again when the file that described it is gone.

    Args:
        description: ``class_path`` and ``init_args`` of a
            :func:`~stablelightning.model.backbones.backbone`; anything else comes back as it is.

    Returns:
        A description whose ``name`` is no path; ``weights`` still names the file they came from.

    Example:
        >>> without_files({"class_path": "torch.nn.Identity"})
        {'class_path': 'torch.nn.Identity'}
    """
    if not isinstance(description, Mapping) or description.get("class_path") != BACKBONE:
        return description
    arguments = dict(description.get("init_args") or {})
    path = arguments.get("name")
    if not isinstance(path, str) or not Path(path).expanduser().is_file():
        return description
    said = architecture_of(path)
    if said is None:
        return description
    weights = arguments.get("weights", PRETRAINED)
    arguments |= {"name": said, "weights": path if weights == PRETRAINED else weights}
    return {"class_path": BACKBONE, "init_args": arguments}


def architecture_of(path: str) -> dict[str, Any] | None:
    """Read from a backbone file what it says that it is; nothing is made.

    Args:
        path: of a file of :func:`~stablelightning.model.backbone_file.save_backbone`.

    Returns:
        ``class_path`` and ``init_args`` of a :func:`~stablelightning.model.backbones.backbone`
        without weights, or of a network of ``stablelightning.nn``; ``None`` where the file does not
        say.

    Raises:
        CheckpointError: the file cannot be read, or names something else: a file must not choose
            what is imported and called.

    Example:
        >>> import tempfile
        >>> from stablelightning.model.backbone_file import save_backbone
        >>> said = {"class_path": "stablelightning.nn.MLP", "init_args": {"in_features": 4}}
        >>> path = Path(tempfile.mkdtemp()) / "net.safetensors"
        >>> _ = save_backbone(nn.Linear(2, 2), path, architecture=said)
        >>> architecture_of(str(path))["class_path"]
        'stablelightning.nn.MLP'
    """
    return described_in(read_weights(path))


def described_in(file: WeightsFile) -> dict[str, Any] | None:
    """The same of a file that was read already.

    Example:
        >>> print(described_in(WeightsFile("net.pt", {})))
        None
    """
    text = file.metadata.get("architecture")
    if text is None:
        return None
    try:
        said = json.loads(text)
        path, arguments = str(said["class_path"]), dict(said.get("init_args") or {})
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(
            f"an architecture must be class_path and init_args, and {file.path} says {text[:80]!r}."
        ) from error
    library, _, name = path.rpartition(".")
    plain = {key: value for key, value in arguments.items() if key in _PLAIN}
    if (
        path == BACKBONE
        and isinstance(plain.get("name"), str)
        and not Path(plain["name"]).is_file()
    ):
        return {"class_path": BACKBONE, "init_args": {**plain, "weights": None}}
    if library.startswith("torchvision.models"):  # its weights and its head are ours to choose
        plain = {"name": f"torchvision/{name}", "weights": None}
        return {"class_path": BACKBONE, "init_args": plain}
    home = import_module(_HOME)
    kind = getattr(home, name, None) if path.startswith(f"{_HOME}.") else None
    trusted = all(map(_is_trusted, tree_leaves(arguments)))
    if trusted and isinstance(kind, type) and issubclass(kind, nn.Module):
        return {"class_path": f"{_HOME}.{name}", "init_args": arguments}
    raise CheckpointError(
        f"a file may name a network of torchvision, timm or {_HOME}, and {file.path} names "
        f"{path}, which is not called for it; make the network yourself, and pass the file as "
        "weights."
    )


def _is_trusted(value: Any) -> bool:
    """Text with a dot in it may be taken for the name of something to import."""
    return not isinstance(value, str) or "." not in value or value.startswith(_TRUSTED)
