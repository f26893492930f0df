"""Read an image file of any usual kind as upright colour pixels."""

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stablelightning.errors import DataError, MissingPackageError
from stablelightning.optional import require

#: Endings of the files that count as images, whatever their case.
IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif"),
    *(".tif", ".tiff", ".ppm", ".pgm", ".pnm"),
)
#: Endings of photographs that Pillow cannot read by itself: passed over, but not in silence.
FOREIGN_SUFFIXES = (
    *(".heic", ".heif", ".avif", ".jp2", ".jxl", ".psd"),
    *(".dng", ".raw", ".arw", ".cr2", ".cr3", ".nef", ".orf", ".raf", ".rw2"),
)

_ORIENTATION = 0x0112  # the tag of EXIF in which a camera says how it was held
#: What turns the pixels of each orientation upright; the names are those of Pillow.
_TURNS = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}
#: From 16 bits to 8: 65535 becomes 255.
_DEPTH = 1 / 257
_THUMBNAIL = 64  # pixels to decode at, to see whether it goes: a JPEG is read whole all the same
_PAPER = "white"  # what shows through where an image is transparent, as in a browser


def read_photograph(path: str | os.PathLike[str], *, least_side: int | None = None) -> Any:
    """Read the first picture of an image file, upright, as 8-bit red, green and blue.

    What a camera says of how it was held (EXIF) is followed. Grey levels and palettes become
    colours, 16 bits become 8, CMYK becomes RGB, and what is transparent shows white.

    Args:
        path: the file.
        least_side: pixels that both sides must keep, >= 1; a larger JPEG may be decoded at a half,
            a quarter or an eighth, which is several times faster. ``None`` keeps all pixels.

    Returns:
        A ``PIL.Image.Image`` of mode ``"RGB"``.

    Raises:
        DataError: the file is missing, damaged or truncated, no image, or of numbers whose range is
            unknown (32 bits); the message names it and says why.
        MissingPackageError: Pillow is missing.

    Example:
        >>> import tempfile; from PIL import Image
        >>> path = Path(tempfile.mkdtemp()) / "grey.png"
        >>> Image.new("L", (4, 2), 51).save(path)
        >>> photograph = read_photograph(path)
        >>> photograph.size, photograph.getpixel((0, 0))
        ((4, 2), (51, 51, 51))
    """
    try:
        return _decode(path, least_side)
    except MissingPackageError:
        raise
    except Exception as error:  # a decoder stumbles over damaged bytes in any way it likes
        raise DataError(
            f"an image must be readable, got {os.fspath(path)!r} ({_reason(error)}); repair or "
            "remove the file, or leave such files out by unreadable=skip (--data.unreadable=skip)."
        ) from error


def trouble_with(path: str | os.PathLike[str]) -> str | None:
    """Say why an image file cannot be read; ``None`` where it can.

    Args:
        path: the file, which is decoded whole, though not at its full size.

    Example:
        >>> trouble_with("no such file.png")
        'no such file'
    """
    try:
        _decode(path, _THUMBNAIL)
    except MissingPackageError:
        raise
    except Exception as error:
        return _reason(error)
    return None


def images_under(place: Path, *, suffixes: tuple[str, ...] = IMAGE_SUFFIXES) -> Iterator[str]:
    """Walk through a folder at any depth, in the order of the names, and give its image files.

    Hidden files and folders (which start with a dot, or two underscores for a folder) are passed
    over: archives and editors leave them.

    Args:
        place: the folder; links are followed, in a circle once.
        suffixes: the endings that count, in lower case.

    Example:
        >>> list(images_under(Path("no such folder")))
        []
    """
    seen = set()
    for folder, folders, names in os.walk(place, followlinks=True):
        real = os.path.realpath(folder)
        folders[:] = [] if real in seen else sorted(n for n in folders if not is_hidden(n))
        if real in seen:
            continue
        seen.add(real)
        for name in sorted(names):
            # macOS leaves a ._photo.jpg beside each photo.jpg on other disks: no image.
            if not name.startswith(".") and name.lower().endswith(suffixes):
                yield os.path.join(folder, name)


def is_hidden(name: str) -> bool:
    """Whether a folder is one that editors and archives leave, such as ``__MACOSX``.

    Example:
        >>> is_hidden(".ipynb_checkpoints"), is_hidden("cats")
        (True, False)
    """
    return name.startswith((".", "__"))


def _decode(path: str | os.PathLike[str], least_side: int | None) -> Any:
    pillow = require("PIL.Image", extra="vision")
    with pillow.open(path) as image:
        if least_side is not None:
            image.draft(None, (least_side, least_side))
        image.load()
        return _rgb(_upright(image, pillow), pillow)


def _upright(image: Any, pillow: Any) -> Any:
    try:
        orientation = image.getexif().get(_ORIENTATION)
    except (OSError, SyntaxError, ValueError, KeyError, struct.error):
        orientation = None  # a damaged EXIF is no reason to lose good pixels
    turn = _TURNS.get(orientation)
    return image if turn is None else image.transpose(getattr(pillow.Transpose, turn))


def _rgb(image: Any, pillow: Any) -> Any:
    sixteen_bits = image.mode.startswith("I;16")
    # Older versions of Pillow read a grey PNG of 16 bits into 32.
    if sixteen_bits or (image.mode == "I" and image.format == "PNG"):
        return image.convert("I").point(lambda value: value * _DEPTH).convert("L").convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError("32-bit numbers of unknown range; save it with 8 or 16 bits")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        colours = image.convert("RGBA")
        paper = pillow.new("RGBA", colours.size, _PAPER)
        return pillow.alpha_composite(paper, colours).convert("RGB")
    return image.convert("RGB")


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if type(error).__name__ == "UnidentifiedImageError":  # its own text repeats the path
        return "not an image, or of an unknown kind"
    return " ".join(str(error).split()) or type(error).__name__
