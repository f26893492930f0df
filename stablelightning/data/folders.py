"""Find image files in folders, one folder a class, and share them out to the splits."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from stablelightning.data.splits import split_rows
from stablelightning.errors import DataError
from stablelightning.optional import require

Sample = tuple[str, int]


@dataclass(frozen=True)
class ImageFiles:
    """The image files of every split, each with the number of its class.

    Args:
        class_names: names of the class folders, in alphabetical order.
        train: path and class of every training image; ``val`` and ``test`` likewise.
        val: may be empty.
        test: may be empty.
        test_rows: place of every test image in the list that it was drawn from, ``(N,)``.
    """

    class_names: tuple[str, ...]
    train: list[Sample]
    val: list[Sample]
    test: list[Sample]
    test_rows: Tensor


def list_images(root: Path, *, val_fraction: float, test_fraction: float, seed: int) -> ImageFiles:
    """List the images under ``root``, either one tree of class folders or split folders.

    Args:
        root: a folder of class folders, or of ``train`` and, if wanted, ``val`` and ``test``, each
            a folder of class folders.
        val_fraction: share of the training images that validate, if there is no ``root/val``.
        test_fraction: share of the training images that test, if there is no ``root/test``.
        seed: seed of those draws; classes keep their proportions.

    Raises:
        DataError: a folder is missing, holds no images, or has a class that is not under train.
    """
    if not root.is_dir():
        raise DataError(
            f"root must be a folder, got {str(root)!r}, which is not one (looked in {Path.cwd()}); "
            "correct the path."
        )
    # A tree may have a class called "train"; only a folder of class folders is a split.
    if not _class_folders(root / "train"):
        train, val, test = root, None, None
    else:
        _check_split_names(root)
        train = root / "train"
        names = tuple(folder.name for folder in _class_folders(train))
        val = _class_files(root / "val", names) if (root / "val").is_dir() else None
        test = _class_files(root / "test", names) if (root / "test").is_dir() else None
    names = tuple(folder.name for folder in _class_folders(train))
    samples = _class_files(train, names)
    labels = torch.tensor([label for _, label in samples])
    split = split_rows(
        labels,
        val_fraction=val_fraction if val is None else 0.0,
        test_fraction=test_fraction if test is None else 0.0,
        seed=seed,
    )
    return ImageFiles(
        class_names=names,
        train=[samples[row] for row in split.train.tolist()],
        val=[samples[row] for row in split.val.tolist()] if val is None else val,
        test=[samples[row] for row in split.test.tolist()] if test is None else test,
        test_rows=split.test if test is None else torch.arange(len(test)),
    )


def unlabelled_images(place: Path) -> list[str]:
    """List the images under ``place`` at any depth, sorted by path, or ``place`` if it is one.

    Raises:
        DataError: ``place`` does not exist or holds no images.
    """
    if not place.exists():
        raise DataError(
            f"predict_path must exist, got {str(place)!r}, which does not (looked in {Path.cwd()});"
            " correct the path."
        )
    found = [place] if place.is_file() else sorted(place.rglob("*"))
    files = [str(file) for file in found if file.suffix.lower() in image_suffixes()]
    if not files:
        raise DataError(
            f"predict_path must hold images ({', '.join(image_suffixes())}), got none in "
            f"{str(place)!r}; correct the path."
        )
    return files


def _check_split_names(root: Path) -> None:
    for folder in _class_folders(root):
        if folder.name.startswith(("val", "test")) and folder.name not in ("val", "test"):
            raise DataError(
                f"folders beside train must be named val and test, got {str(folder)!r}; rename it."
            )


def _class_folders(place: Path) -> list[Path]:
    if not place.is_dir():
        return []
    # Editors and archives leave folders such as .ipynb_checkpoints and __MACOSX: no classes.
    hidden = (".", "__")
    entries = sorted(place.iterdir())
    return [entry for entry in entries if entry.is_dir() and not entry.name.startswith(hidden)]


def _class_files(place: Path, class_names: tuple[str, ...]) -> list[Sample]:
    """List the images under ``place``, class by class, numbered by their place in the names."""
    if len(class_names) < 2:
        raise DataError(
            "there must be a folder for each of at least two classes, got "
            f"{', '.join(class_names) or 'none'} in {str(place)!r}; sort the images into folders."
        )
    folders = {folder.name: folder for folder in _class_folders(place)}
    if not folders:
        raise DataError(f"{str(place)!r} must hold class folders, got none; add or remove it.")
    strangers = [name for name in folders if name not in class_names]
    if strangers:
        raise DataError(
            f"a class must have a folder under train, got {str(folders[strangers[0]])!r} beside "
            f"the training classes {', '.join(class_names)}; add training images or remove it."
        )
    # Not ImageFolder itself: it numbers the classes of each folder by themselves, so that a test
    # folder without one of the classes would silently get other numbers than training.
    numbers = {name: number for number, name in enumerate(class_names) if name in folders}
    made = require("torchvision.datasets.folder", extra="vision").make_dataset(
        str(place), numbers, extensions=image_suffixes(), allow_empty=True
    )
    filled = {number for _, number in made}
    for name, number in numbers.items():
        if number not in filled:
            raise DataError(
                f"a class folder must hold images ({', '.join(image_suffixes())}), got none in "
                f"{str(folders[name])!r}; add images or remove the folder."
            )
    return [(str(path), int(number)) for path, number in made]


def image_suffixes() -> tuple[str, ...]:
    """Return the endings of the files that count as images, such as ``".png"``."""
    folder = require("torchvision.datasets.folder", extra="vision")
    suffixes: tuple[str, ...] = folder.IMG_EXTENSIONS
    return suffixes
