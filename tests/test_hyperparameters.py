"""What a checkpoint keeps: the arguments of the class that was called, if they are plain."""

from typing import Any

import lightning as L
import torch
from torch import nn

from stablelightning.hyperparameters import keep_hyperparameters


class Base(L.LightningModule):
    def __init__(self, *, task: str = "none", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        keep_hyperparameters(self)


class Net(Base):
    def __init__(self, width: int, depth: int = 2, *, rate: float = 0.1, **kwargs: Any) -> None:
        super().__init__(task="regression", **kwargs)


def test_the_called_class_counts_and_not_its_bases() -> None:
    assert dict(Net(8).hparams) == {"width": 8, "depth": 2, "rate": 0.1}
    assert dict(Base(task="x").hparams) == {"task": "x"}


def test_a_subclass_that_fixes_arguments_does_not_keep_them() -> None:
    class Wide(Net):
        def __init__(self, depth: int = 3) -> None:
            super().__init__(width=80, depth=depth)

    assert dict(Wide().hparams) == {"depth": 3}
    assert Wide(**Wide(4).hparams).hparams == {"depth": 4}


def test_only_what_loads_as_weights_only_is_kept() -> None:
    class Many(Base):
        def __init__(
            self, sizes: Any, table: Any, module: Any, tensor: Any, kind: Any, mixed: Any
        ) -> None:
            super().__init__()

    many = Many((1, 2), {"a": [1.0, None]}, nn.Linear(1, 1), torch.ones(3), nn.ReLU, [nn.ReLU()])
    assert dict(many.hparams) == {"sizes": (1, 2), "table": {"a": [1.0, None]}}


def test_a_module_that_makes_another_does_not_lend_it_its_arguments() -> None:
    class Outer(L.LightningModule):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.inner = Net(width=width * 2)

    outer = Outer(5)
    assert outer.inner.hparams["width"] == 10
    assert dict(outer.hparams) == {}


def test_what_the_user_saves_comes_on_top_and_is_logged() -> None:
    class Saving(Net):
        def __init__(self, width: int, extra: Any = nn.ReLU) -> None:
            super().__init__(width)
            self.silent = not self._log_hyperparams
            self.save_hyperparameters()

    saving = Saving(8)
    assert saving.silent
    assert saving._log_hyperparams
    assert dict(saving.hparams) == {"width": 8, "extra": nn.ReLU}
