"""What every test stands on: one thread, no network, no display, repeatable numbers."""

import os
import random
import shutil
import sys
import tempfile
from pathlib import Path

# Before anything imports them.
_WANDB = Path(tempfile.mkdtemp(prefix="stablelightning-wandb-"))
os.environ.update(
    {
        "MPLBACKEND": "Agg",
        "OMP_NUM_THREADS": "1",
        "WANDB_MODE": "offline",
        "WANDB_SILENT": "true",
        "WANDB_DIR": str(_WANDB),
        "WANDB_CACHE_DIR": str(_WANDB / "cache"),
        "WANDB_CONFIG_DIR": str(_WANDB / "config"),
        "WANDB_DATA_DIR": str(_WANDB / "data"),
    }
)

import pytest  # noqa: E402
import torch  # noqa: E402
from torch.utils.data import BatchSampler, DataLoader  # noqa: E402

torch.set_num_threads(1)


def pytest_unconfigure() -> None:
    shutil.rmtree(_WANDB, ignore_errors=True)


def pytest_collectstart(collector: pytest.Collector) -> None:
    """What a test module draws when it is imported is the same in every process and order."""
    if isinstance(collector, pytest.Module):
        torch.manual_seed(0)


def take_lightning_off(base: type) -> None:
    """Lightning wraps methods of loaders while a hook makes one, and forgets to where it raises."""
    for kind in (base, *base.__subclasses__()):
        for name in ("__init__", "__setattr__", "__delattr__"):
            if f"__old{name}" in vars(kind):
                setattr(kind, name, vars(kind)[f"__old{name}"])
                delattr(kind, f"__old{name}")
        if kind is not base:
            take_lightning_off(kind)


def pytest_runtest_setup(item: pytest.Item) -> None:
    # What torch.compile builds is linked with fast mathematics, which on loading makes the thread
    # flush denormal numbers, and hypothesis refuses to work there.
    torch.set_flush_denormal(False)
    # Lightning keeps its seed in the environment, where the next test's processes find it.
    os.environ.pop("PL_GLOBAL_SEED", None)
    os.environ.pop("PL_SEED_WORKERS", None)
    take_lightning_off(DataLoader)
    take_lightning_off(BatchSampler)
    if item.get_closest_marker("gpu") is not None and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device, and there is none here; run pytest -m gpu where one is")


@pytest.fixture(autouse=True)
def seed() -> int:
    """Every test starts from the same state of every generator."""
    random.seed(0)
    torch.manual_seed(0)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(0)
    return 0
