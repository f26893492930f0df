"""What a shipped recipe needs where there is no network, and nobody's photographs."""

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path

from tests.data.drawn import draw_photographs


@cache
def photographs() -> Path:
    """A folder of a few drawn ones, enough to calibrate on, for as long as this process lives."""
    folder = Path(tempfile.mkdtemp(prefix="stablelightning-photographs-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return draw_photographs(folder / "photos", count=20, size=32)


def needed(start: str) -> tuple[str, ...]:
    """Settings without which the recipe ``start`` cannot be built here: few."""
    if start != "images":
        return ()
    return (
        f"--data.root={photographs()}",
        "--data.image_size=32",
        "--data.batch_size=8",
        "--data.num_workers=0",
        "--model.network.name=timm/test_resnet",
        "--model.network.weights=null",
    )
