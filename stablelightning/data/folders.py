"""Find image files in folders, one folder a class, and share them out to the splits."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from stablelightning.data.copies import warn_of_copies
from stablelightning.data.photographs import (
    FOREIGN_SUFFIXES,
    IMAGE_SUFFIXES,
    images_under,
    is_hidden,
)
from stablelightning.data.readable import Unreadable, readable_files
from stablelightning.data.splits import few_labels, split_rows
from stablelightning.errors import DataError, StableLightningWarning

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
        unlabelled: training images whose classes are not used.
    """

    class_names: tuple[str, ...]
    train: list[Sample]
    val: list[Sample]
    test: list[Sample]
    test_rows: Tensor
    unlabelled: list[Sample] = field(default_factory=list)


def class_names_in(root: Path) -> tuple[str, ...]:
    """Names of the class folders under ``root``, or under ``root/train`` where it has splits.

    Raises:
        DataError: ``root`` is no folder, or holds no two class folders.

    Example:
        >>> import tempfile
        >>> root = Path(tempfile.mkdtemp())
        >>> (root / "train" / "dog").mkdir(parents=True); (root / "train" / "cat").mkdir()
        >>> class_names_in(root)
        ('cat', 'dog')
    """
    place = _training_folder(root)
    names = tuple(folder.name for folder in _class_folders(place))
    if len(names) < 2:
        deeper = [folder for folder in _class_folders(place) if len(_class_folders(folder)) > 1]
        remedy = f"give {str(deeper[0])!r}" if deeper else "sort the images into folders"
        raise DataError(
            "there must be a folder for each of at least two classes, got "
            f"{', '.join(names) or 'none'} in {str(place)!r}; {remedy}."
        )
    return names


def list_images(
    root: Path,
    *,
    val_fraction: float,
    test_fraction: float,
    seed: int,
    labels_per_class: int | None = None,
    unreadable: Unreadable = "refuse",
) -> ImageFiles:
    """List the images under ``root``, either one tree of class folders or split folders.

    Args:
        root: a folder of class folders, or of ``train`` and, if wanted, ``val`` and ``test``, each
            a folder of class folders.
        val_fraction: share of the training images that validate, if there is no ``root/val``.
        test_fraction: share of the training images that test, if there is no ``root/test``.
        seed: seed of those draws; classes keep their proportions.
        labels_per_class: training images of each class that are used; ``None`` for all.
        unreadable: ``"refuse"`` or ``"skip"`` images that cannot be read.

    Raises:
        DataError: a folder is missing, holds no images, or has a class that is not under train; an
            image cannot be read; a class has too few images.
    """
    names = class_names_in(root)
    train = _training_folder(root)
    given = _split_folders(root, names) if train != root else {}
    listed = {
        name: _class_files(place, names, unreadable=unreadable)
        for name, place in {"train": train, **given}.items()
    }
    _warn_of_classes_without(given, names)
    samples = listed["train"]
    labels = torch.tensor([label for _, label in samples])
    split = split_rows(
        labels,
        val_fraction=0.0 if "val" in given else val_fraction,
        test_fraction=0.0 if "test" in given else test_fraction,
        seed=seed,
    )
    used, rest = few_labels(
        labels, split.train, per_class=labels_per_class, seed=seed, class_names=names
    )
    drawn = {
        name: [samples[row] for row in rows.tolist()] for name, rows in split._asdict().items()
    }
    parts = {name: listed[name] if name in given else drawn[name] for name in drawn}
    warn_of_copies(parts)
    return ImageFiles(
        class_names=names,
        train=_rows(samples, used),
        val=parts["val"],
        test=parts["test"],
        test_rows=torch.arange(len(parts["test"])) if "test" in given else split.test,
        unlabelled=_rows(samples, rest),
    )


def unlabelled_images(
    place: Path, *, setting: str = "predict_path", unreadable: Unreadable = "refuse"
) -> list[str]:
    """List the images under ``place`` at any depth, sorted by path, or ``place`` if it is one.

    Args:
        place: a folder or an image.
        setting: what the place is called where it was given, for the message.
        unreadable: ``"refuse"`` or ``"skip"`` images that cannot be read.

    Raises:
        DataError: ``place`` does not exist or holds no images, or one cannot be read.
    """
    if not place.exists():
        raise DataError(
            f"{setting} must exist, got {str(place)!r}, which does not (looked in {Path.cwd()}); "
            "correct the path."
        )
    if place.is_file():
        found = [str(place)] if place.suffix.lower() in IMAGE_SUFFIXES else []
    else:
        found = sorted(images_under(place), key=lambda file: Path(file).parts)
        _tell_foreign(place)
    files = readable_files(found, unreadable=unreadable)
    if not files:
        raise DataError(
            f"{setting} must hold images ({', '.join(IMAGE_SUFFIXES)}), got none in "
            f"{str(place)!r}; correct the path."
        )
    return files


def _training_folder(root: Path) -> Path:
    if not root.is_dir():
        raise DataError(
            f"root must be a folder, got {str(root)!r}, which is not one (looked in {Path.cwd()}); "
            "correct the path (--data.root FOLDER)."
        )
    # A tree may have a class called "train"; only a folder of class folders is a split.
    if _class_folders(root / "train"):
        return root / "train"
    for name in ("val", "test"):
        if _class_folders(root / name):
            raise DataError(
                f"a folder {name} of class folders must have a folder train beside it, got "
                f"{str(root / name)!r} and no {str(root / 'train')!r}; move the other images there."
            )
    return root


def _split_folders(root: Path, class_names: Sequence[str]) -> dict[str, Path]:
    """The folders beside train, after a look at their names and at those of their classes."""
    for folder in _class_folders(root):
        if folder.name.startswith(("val", "test")) and folder.name not in ("val", "test"):
            raise DataError(
                f"folders beside train must be named val and test, got {str(folder)!r}; rename it."
            )
    given = {name: root / name for name in ("val", "test") if (root / name).is_dir()}
    for name, place in given.items():
        found = [folder.name for folder in _class_folders(place)]
        if not found:
            raise DataError(f"{str(place)!r} must hold class folders, got none; add or remove it.")
        if strangers := [stranger for stranger in found if stranger not in class_names]:
            raise DataError(
                "train, val and test must have the same classes, got "
                f"{', '.join(strangers)} under {name} and not under train "
                f"({', '.join(class_names)}); add training images, or correct the names."
            )
    return given


def _warn_of_classes_without(given: dict[str, Path], class_names: Sequence[str]) -> None:
    for name, place in given.items():
        found = {folder.name for folder in _class_folders(place)}
        if absent := [class_name for class_name in class_names if class_name not in found]:
            rank_zero_warn(
                f"{name} has no images of {', '.join(absent)}, which are trained: its numbers do "
                f"not speak of them; add folders to {str(place)!r}.",
                category=StableLightningWarning,
            )


def _class_folders(place: Path) -> list[Path]:
    if not place.is_dir():
        return []
    entries = sorted(place.iterdir())
    return [entry for entry in entries if entry.is_dir() and not is_hidden(entry.name)]


def _class_files(
    place: Path, class_names: Sequence[str], *, unreadable: Unreadable
) -> list[Sample]:
    """List the images under ``place``, class by class, numbered by their place in the names.

    Not by torchvision's ImageFolder: it numbers the classes of each folder by themselves, so that a
    test folder without one of the classes would silently get other numbers than training.
    """
    folders = {folder.name: folder for folder in _class_folders(place)}
    numbers = {name: number for number, name in enumerate(class_names) if name in folders}
    found = [
        (file, number) for name, number in numbers.items() for file in images_under(folders[name])
    ]
    _tell_foreign(place)
    readable = set(readable_files([file for file, _ in found], unreadable=unreadable))
    samples = [sample for sample in found if sample[0] in readable]
    filled = {number for _, number in samples}
    for name, number in numbers.items():
        if number not in filled:
            raise DataError(
                f"a class folder must hold images ({', '.join(IMAGE_SUFFIXES)}), got none in "
                f"{str(folders[name])!r}; add images or remove the folder."
            )
    return samples


def _rows(samples: list[Sample], rows: Tensor) -> list[Sample]:
    return [samples[row] for row in rows.tolist()]


def _tell_foreign(place: Path) -> None:
    """Say how many photographs are of a kind that cannot be read, and so are passed over."""
    foreign = Counter(
        Path(file).suffix.lower() for file in images_under(place, suffixes=FOREIGN_SUFFIXES)
    )
    if foreign:
        told = ", ".join(f"{count} {suffix}" for suffix, count in sorted(foreign.items()))
        rank_zero_warn(
            f"Photographs of kinds that are not read here are passed over in {place}: {told}; "
            "convert them to JPEG or PNG.",
            category=StableLightningWarning,
        )
