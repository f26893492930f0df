"""Files that appear whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from stablelightning.errors import OutputError


@contextmanager
def written_whole(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path beside ``path``; on leaving, rename it to ``path`` in one step.

    A reader, or a run that is killed half way, never sees a half-written file. The temporary name
    keeps the suffix, because matplotlib and pyarrow choose the format by it. Missing parent folders
    are made.

    Args:
        path: where the file shall lie; an old file there is replaced.

    Raises:
        OutputError: the folder or the file cannot be written.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> with written_whole(folder / "note.txt") as temporary:
        ...     _ = temporary.write_text("whole")
        >>> [file.name for file in folder.iterdir()]
        ['note.txt']
    """
    target = Path(path)
    temporary = target.with_name(f".{target.stem}.{os.getpid()}{target.suffix}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, target)
    except OSError as error:
        raise OutputError(
            f"{target.name} must be written to {target.parent}, and that failed "
            f"({error.strerror or error}); choose another folder or free this one."
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
