"""Floor 3: LightningDataModules.

The names below are imported on first use; scikit-learn, pandas and torchvision when data is read.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stablelightning.data.digits import DigitsData
    from stablelightning.data.images import ImageFolderData
    from stablelightning.data.tabular import TabularData

_HOME = {
    "DigitsData": "stablelightning.data.digits",
    "ImageFolderData": "stablelightning.data.images",
    "TabularData": "stablelightning.data.tabular",
}

__all__ = ["DigitsData", "ImageFolderData", "TabularData"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'stablelightning.data' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
