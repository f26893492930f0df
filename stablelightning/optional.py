"""Optional packages, imported where they are used."""

from importlib import import_module
from types import ModuleType

from stablelightning.errors import MissingPackageError
from stablelightning.words import reason_of


def require(name: str, *, extra: str) -> ModuleType:
    """Import the optional package ``name``, or say which extra brings it.

    Args:
        name: dotted module name, such as ``"sklearn.datasets"``.
        extra: the extra of stablelightning that installs it, such as ``"recipes"``.

    Raises:
        MissingPackageError: the package is not installed, or it is installed and its own import
            fails (torchvision raises ``RuntimeError`` where its build does not match torch).

    Example:
        >>> require("json", extra="recipes").dumps({})
        '{}'
    """
    package = name.partition(".")[0]
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != package:
            raise _broken(package, extra, error) from error
        raise MissingPackageError(
            f"{package} must be installed for this, and it is not; "
            f"pip install 'stablelightning[{extra}]' brings it."
        ) from error
    except (ImportError, RuntimeError, OSError, AttributeError) as error:
        raise _broken(package, extra, error) from error


def _broken(package: str, extra: str, error: Exception) -> MissingPackageError:
    reason = reason_of(error)
    return MissingPackageError(
        f"{package} is installed but its import fails ({reason}); "
        f"pip install --force-reinstall 'stablelightning[{extra}]' brings a build that fits torch."
    )
