"""Read the file that an offline W&B run leaves: wandb ships a writer for it, and no reader.

The file starts with a header of 7 bytes (``:W&B``, a magic number, a version). Then it is LevelDB's
log format: blocks of 32 KiB, the header's bytes counted into the first; in each block fragments of
crc (4 bytes), length (2), type (1) and payload; a record is one full fragment, or first, middle and
last ones; a block's end shorter than a fragment's header is padding. Each record is one serialized
``wandb_internal_pb2.Record``. The crc is not checked.
"""

import json
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_HEADER = 7
_BLOCK = 32 * 1024
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


@dataclass
class OfflineRun:
    """What a run's file holds: its history, its config, its final summary, its artifacts.

    An artifact is its files by their path in it, each with the place from which it will be sent.
    Tables are artifacts: beside the rows these hold the images in them.
    """

    history: list[dict[str, Any]] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    artifacts: dict[str, dict[str, Path]] = field(default_factory=dict)
    project: str = ""
    kinds: list[str] = field(default_factory=list)
    exit_code: int | None = None

    @property
    def metrics(self) -> set[str]:
        """Every key that was ever logged."""
        return {key for row in self.history for key in row if not key.startswith("_")}


def read_offline_run(path: str | Path, *, patience: float = 30.0) -> OfflineRun:
    """Read ``run-*.wandb``, or the one such file anywhere below the folder ``path``.

    wandb's service writes the end of the file a moment after the run was finished, so this waits
    until the exit record is there, for ``patience`` seconds at most.
    """
    path = Path(path)
    if path.is_dir():
        (path,) = (file for file in path.rglob("*.wandb") if not file.parent.is_symlink())
    deadline = time.monotonic() + patience
    while True:
        late = time.monotonic() > deadline
        try:
            run = _read(path.read_bytes())
        except ValueError:  # half of a record
            if late:
                raise
        else:
            if run.exit_code is not None or late:
                return run
        time.sleep(0.02)


def _read(data: bytes) -> OfflineRun:
    from wandb.proto import wandb_internal_pb2

    run = OfflineRun()
    for payload in records(data):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(payload)
        kind = record.WhichOneof("record_type")
        run.kinds.append(kind)
        if kind == "history":
            run.history.append(_items(record.history.item))
        elif kind == "run":
            run.project = record.run.project
            run.config |= _items(record.run.config.update)
        elif kind == "config":
            run.config |= _items(record.config.update)
        elif kind == "summary":
            run.summary |= _items(record.summary.update)
        elif kind == "artifact":
            entries = record.artifact.manifest.contents
            run.artifacts[record.artifact.name] = {e.path: Path(e.local_path) for e in entries}
        elif kind == "exit":
            run.exit_code = record.exit.exit_code
    return run


def records(data: bytes) -> Iterator[bytes]:
    """Every record of the file, fragments joined."""
    if data[:4] != b":W&B":
        raise ValueError(f"a W&B file starts with ':W&B', got {data[:4]!r}")
    position, parts = _HEADER, b""
    while position + 7 <= len(data):
        left_in_block = _BLOCK - position % _BLOCK
        if left_in_block < 7:
            position += left_in_block
            continue
        length, kind = struct.unpack_from("<HB", data, position + 4)
        payload = data[position + 7 : position + 7 + length]
        if kind not in (_FULL, _FIRST, _MIDDLE, _LAST) or len(payload) != length:
            raise ValueError(f"a broken fragment at byte {position}: type {kind}, length {length}")
        position += 7 + length
        parts = payload if kind in (_FULL, _FIRST) else parts + payload
        if kind in (_FULL, _LAST):
            yield parts


def _items(items: Any) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for item in items:
        key = item.key or "/".join(item.nested_key)
        values[key] = json.loads(item.value_json)
    return values
