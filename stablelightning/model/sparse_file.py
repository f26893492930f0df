"""Sparse weights on disk: only those that are not zero, and the same dense weights out of it."""

import io
import os
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from stablelightning.errors import CheckpointError
from stablelightning.files import written_whole
from stablelightning.words import reason_of

#: What a file of ours says that it is.
_FORMAT = "stablelightning.sparse.1"
#: Column numbers of a compressed row fit into half the bytes of torch's own.
_INDEX = torch.int32
_LARGEST_INDEX = torch.iinfo(_INDEX).max


def save_sparse(model: nn.Module, path: str | os.PathLike[str]) -> int:
    """Write the state dict of a model with sparse weights as compressed rows, where it is smaller.

    Each float tensor of two or more dimensions becomes a ``torch.sparse_csr`` tensor (values, and a
    column number of four bytes for each) if that takes fewer bytes than the tensor itself: beyond
    50% zeros in float32. Everything else, half-sparse weights included, is kept as it is.

    Args:
        model: on any device; not changed.
        path: of the file, which appears whole or not at all; an old one is replaced.

    Returns:
        Its size in bytes.

    Raises:
        OutputError: it cannot be written.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from stablelightning.model.prune import prune_model
        >>> net = nn.Sequential(nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 8))
        >>> _ = prune_model(net, 0.9)
        >>> path = Path(tempfile.mkdtemp()) / "net.pt"
        >>> save_sparse(net, path) < 0.3 * 4 * sum(p.numel() for p in net.parameters())
        True
    """
    content = _sparse_bytes(model)
    with written_whole(path) as temporary:
        temporary.write_bytes(content)
    return len(content)


def load_sparse(model: nn.Module, path: str | os.PathLike[str]) -> nn.Module:
    """Load what :func:`save_sparse` wrote into a model: the same dense weights, to the bit.

    Args:
        model: of the same structure; its weights are overwritten, on their devices.
        path: of the file. Nothing in it is executed.

    Returns:
        The model.

    Raises:
        CheckpointError: the file cannot be read, was not written by :func:`save_sparse`, or is of
            another model.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> net, other = nn.Linear(3, 2), nn.Linear(3, 2)
        >>> path = Path(tempfile.mkdtemp()) / "net.pt"
        >>> _ = save_sparse(net, path)
        >>> torch.equal(load_sparse(other, path).weight, net.weight)
        True
    """
    try:
        # Places that lie outside of the tensor would be written to all the same.
        with torch.sparse.check_sparse_tensor_invariants(), _quiet():
            kept = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # zip, pickle and the disk each raise their own
        raise CheckpointError(
            f"{path} must be a file that save_sparse wrote, and it cannot be read "
            f"({reason_of(error)}); write it again."
        ) from error
    if not isinstance(kept, dict) or kept.get("format") != _FORMAT:
        raise CheckpointError(
            f"{path} must be a file that save_sparse wrote, got another kind of checkpoint; load "
            "it with torch.load, or with load_from_checkpoint."
        )
    shapes = kept["shapes"]
    state = {name: _dense(value, shapes.get(name)) for name, value in kept["state"].items()}
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        lines = " ".join(line.strip() for line in str(error).splitlines()[1:2])
        raise CheckpointError(
            f"{path} must be of a {type(model).__name__} of the same structure, and it is not "
            f"({lines}); build the model as it was when it was saved."
        ) from error
    return model


def sizes_on_disk(model: nn.Module) -> dict[str, int]:
    """Measure how many bytes the weights take as a file, in each way of keeping them.

    Args:
        model: not changed.

    Returns:
        Bytes by name: ``dense`` (``torch.save`` of the state dict), ``sparse``
        (:func:`save_sparse`), and ``dense_zipped``, ``sparse_zipped`` (the same files, deflated).

    Example:
        >>> from stablelightning.model.prune import prune_model
        >>> net = nn.Linear(100, 100)
        >>> _ = prune_model(net, 0.9)
        >>> sizes = sizes_on_disk(net)
        >>> sizes["sparse"] < 0.3 * sizes["dense"], sizes["dense_zipped"] < 0.3 * sizes["dense"]
        (True, True)
    """
    dense, sparse = io.BytesIO(), _sparse_bytes(model)
    torch.save(_state(model), dense)
    return {
        "dense": len(dense.getvalue()),
        "dense_zipped": len(zlib.compress(dense.getvalue())),
        "sparse": len(sparse),
        "sparse_zipped": len(zlib.compress(sparse)),
    }


def _state(model: nn.Module) -> dict[str, Any]:
    state: dict[str, Any] = {}
    for name, value in model.state_dict().items():  # a plain dict: nothing else is to be loaded
        state[name] = value.detach().cpu() if isinstance(value, Tensor) else value
    return state


def _sparse_bytes(model: nn.Module) -> bytes:
    kept: dict[Any, Tensor] = {}  # a tensor under several names is written once
    state, shapes = {}, {}
    for name, value in model.state_dict().items():
        if isinstance(value, Tensor):
            key = (value.device, value.data_ptr(), value.shape, value.stride(), value.dtype)
            compressed = kept.get(key)
            if compressed is None:
                compressed = kept[key] = _compressed(value.detach().cpu())
            if compressed.layout is torch.sparse_csr:
                shapes[name] = list(value.shape)
            value = compressed
        state[name] = value
    buffer = io.BytesIO()
    torch.save({"format": _FORMAT, "shapes": shapes, "state": state}, buffer)
    return buffer.getvalue()


def _compressed(tensor: Tensor) -> Tensor:
    """As compressed rows, where these take fewer bytes; -0 is an entry, and not taken for zero."""
    tensor = tensor.contiguous()
    if tensor.ndim < 2 or not tensor.is_floating_point() or not tensor.numel():
        return tensor
    matrix = tensor.flatten(1)
    present = matrix.ne(0) | matrix.signbit()
    entries = int(present.sum())
    size = entries * (matrix.element_size() + _INDEX.itemsize) + (len(matrix) + 1) * _INDEX.itemsize
    too_large = max(entries, *matrix.shape) > _LARGEST_INDEX
    if too_large or size >= matrix.numel() * matrix.element_size():
        return tensor.clone()  # not a view, whose whole storage would be written
    starts = torch.zeros(len(matrix) + 1, dtype=_INDEX)
    starts[1:] = present.sum(1).cumsum(0)
    columns = present.nonzero()[:, 1].to(_INDEX)
    with _quiet():
        return torch.sparse_csr_tensor(
            starts, columns, matrix[present], matrix.shape, check_invariants=True
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Torch says once that this layout is new, and each time that it checks what it reads."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*[Ss]parse")
        yield


def _dense(value: Any, shape: list[int] | None) -> Any:
    if shape is None:
        return value
    # Tensor.to_dense adds to zeros, which makes a plain zero of -0.
    rows = torch.arange(len(value)).repeat_interleave(value.crow_indices().diff())
    dense = torch.zeros(value.shape, dtype=value.dtype)
    dense[rows, value.col_indices().long()] = value.values()
    return dense.view(shape)
