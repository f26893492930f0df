"""The folder of a run: chosen once, checked before anything heavy, made only when all is well."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from stablelightning.errors import OutputError

#: Lightning starts the further processes of a run by the same command line; through this variable
#: they hear which folder the first one chose.
_CHOSEN = "STABLELIGHTNING_OUTPUT"


def choose_folder(wanted: str | None, recipe: str) -> Path:
    """The folder of this run, an absolute path that does not exist yet or is empty.

    Args:
        wanted: the folder that was asked for; ``None`` takes the first free ``runs/<recipe>-<n>``.
        recipe: the name of the recipe.

    Raises:
        OutputError: it cannot be written, or it already holds something.
    """
    if is_child():  # which writes nothing itself, and must not find what the first one has begun
        return Path(os.environ.get(_CHOSEN) or wanted or "runs").absolute()
    if wanted is None:
        folder = next(f for f in _numbered(Path("runs"), recipe) if not f.exists())
    else:
        folder = Path(wanted).expanduser()
        if folder.is_dir() and any(folder.iterdir()):
            raise OutputError(
                f"results need a new or empty folder, got {wanted!r} with files in it; "
                "name another one, or remove it first."
            )
    check_writable(folder)
    return folder.absolute()


def check_writable(folder: Path) -> None:
    """Find out whether ``folder`` can be made and written to, and leave nothing behind.

    Raises:
        OutputError: it cannot.
    """
    ancestor = folder.absolute()
    while not ancestor.exists() and not ancestor.is_symlink():
        ancestor = ancestor.parent
    try:
        # Permission bits say too little (root, read-only mounts, quotas): try it.
        os.rmdir(tempfile.mkdtemp(prefix=".stablelightning-", dir=ancestor))
    except OSError as error:
        raise _unwritable(folder, error) from error


def make_folder(folder: Path, *, new: bool = False) -> Path:
    """Make ``folder`` and its parents.

    Args:
        folder: an absolute path.
        new: it must not be there yet.

    Returns:
        The uppermost folder that was not there before; ``folder`` itself if all were.

    Raises:
        FileExistsError: ``new``, and it is there.
        OutputError: it cannot be made.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=not new)
    except OSError as error:
        if new and isinstance(error, FileExistsError) and folder.exists():
            raise
        raise _unwritable(folder, error) from error
    return missing[-1] if missing else folder


@contextmanager
def reserved(wanted: str | None, recipe: str) -> Iterator[Path]:
    """Choose the folder of a run, and hold it while the run lasts, as :func:`announced` does.

    A numbered folder is made at once: until settings are read and data is checked, seconds pass, in
    which a second run would take the same number. It goes again if nothing was put into it.

    Args:
        wanted: as in :func:`choose_folder`.
        recipe: the name of the recipe.

    Raises:
        OutputError: it cannot be written, or it already holds something.
    """
    made = None
    folder = choose_folder(wanted, recipe)
    while wanted is None and not is_child() and made is None:
        try:
            made = make_folder(folder, new=True)
        except FileExistsError:  # another run was faster
            folder = choose_folder(wanted, recipe)
    try:
        with announced(folder):
            yield folder
    finally:
        if made is not None:
            _remove_empty(folder, made)


@contextmanager
def announced(folder: Path) -> Iterator[None]:
    """Tell the further processes of this run, while it lasts, where its folder is."""
    before = os.environ.get(_CHOSEN)
    os.environ[_CHOSEN] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ[_CHOSEN]
        else:
            os.environ[_CHOSEN] = before


def remove_stillborn(folder: Path, made: Path) -> None:
    """Remove what a run left that ended before its first training step.

    Args:
        folder: the folder of the run.
        made: what :func:`make_folder` returned; only what was made for this run goes.
    """
    shutil.rmtree(folder, ignore_errors=True)
    _remove_empty(folder, made)


def is_child() -> bool:
    """Whether this process is one of several of a run, and not the first."""
    given = (os.environ.get(name) for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"))
    return int(next((rank for rank in given if rank is not None), "0")) > 0


def _remove_empty(folder: Path, made: Path) -> None:
    for path in (folder, *folder.parents):
        with suppress(OSError):  # something lies in it, or another run has begun there
            path.rmdir()
        if path == made:
            return


def _numbered(parent: Path, name: str) -> Iterator[Path]:
    number = 1
    while True:
        yield parent / f"{name}-{number}"
        number += 1


def _unwritable(folder: Path, error: OSError) -> OutputError:
    return OutputError(
        f"results need a folder that can be written, got {str(folder)!r} "
        f"({error.strerror or error}); name another one."
    )
