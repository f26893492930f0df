"""Every way to put the bases together wrongly is one sentence, at the line of the class."""

from typing import Any

import lightning as L
import pytest
from lightning.pytorch import LightningModule
from lightning.pytorch import LightningModule as Alias
from torch import nn

from stablelightning import StableMixin
from stablelightning.errors import ModelError


def message_of(error: pytest.ExceptionInfo[ModelError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


def test_the_mixin_second_is_named() -> None:
    with pytest.raises(ModelError, match="StableMixin must come before LightningModule") as error:

        class Net(L.LightningModule, StableMixin): ...

    assert "class Net(StableMixin, ...)" in message_of(error)


def test_the_mixin_behind_a_subclass_of_the_module_is_named() -> None:
    class Theirs(L.LightningModule): ...

    with pytest.raises(ModelError, match=r"got \(Theirs, StableMixin\)"):

        class Net(Theirs, StableMixin): ...


def test_a_mixin_of_mixins_needs_no_module() -> None:
    class Ours(StableMixin):
        def loss(self, batch: Any) -> Any:
            return 0.0

    class Net(Ours, L.LightningModule): ...

    assert Net().loss(None) == 0.0
    with pytest.raises(ModelError, match="must come before"):

        class Wrong(L.LightningModule, Ours): ...


def test_calling_the_module_by_name_is_named() -> None:
    with pytest.raises(ModelError, match=r"got LightningModule\.__init__\(\.\.\.\)") as error:

        class ByAttribute(StableMixin, L.LightningModule):
            def __init__(self, **kwargs: Any) -> None:
                L.LightningModule.__init__(self, **kwargs)

    assert "skips StableMixin" in message_of(error)
    with pytest.raises(ModelError, match=r"got LightningModule\.__init__\(\.\.\.\)"):

        class ByName(StableMixin, L.LightningModule):
            def __init__(self, **kwargs: Any) -> None:
                LightningModule.__init__(self, **kwargs)

    with pytest.raises(ModelError, match=r"got Alias\.__init__\(\.\.\.\)"):

        class ByAlias(StableMixin, L.LightningModule):
            def __init__(self, **kwargs: Any) -> None:
                Alias.__init__(self, **kwargs)

    with pytest.raises(ModelError, match=r"got Module\.__init__\(\.\.\.\)"):

        class ByFirstBase(StableMixin, L.LightningModule):
            def __init__(self, **kwargs: Any) -> None:
                nn.Module.__init__(self)


def test_speaking_of_the_module_is_no_call() -> None:
    class Net(StableMixin, L.LightningModule):
        def __init__(self, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.is_module = isinstance(self, L.LightningModule)

    assert Net().is_module


def test_missing_keywords_are_named() -> None:
    with pytest.raises(ModelError, match=r"Net\.__init__ must take \*\*kwargs") as error:

        class Net(StableMixin, L.LightningModule):
            def __init__(self, width: int = 8) -> None:
                super().__init__()

    assert "optimizer" in message_of(error)
    assert "super().__init__(**kwargs)" in message_of(error)


def test_dropped_keywords_are_named() -> None:
    with pytest.raises(ModelError, match=r"must hand \*\*options on, .* and it drops them"):

        class Net(StableMixin, L.LightningModule):
            def __init__(self, width: int = 8, **options: Any) -> None:
                super().__init__()


def test_settings_dealt_with_by_name_need_no_keywords() -> None:
    class Fixed(StableMixin, L.LightningModule):
        def __init__(self, width: int = 8) -> None:
            super().__init__(task="regression", samples=5)

    class Named(StableMixin, L.LightningModule):
        def __init__(self, task: Any) -> None:
            super().__init__(task=task)

    assert (Fixed().task, Named("multilabel").task) == ("regression", "multilabel")


def test_below_a_class_that_fixes_the_settings_there_is_nothing_to_hand_on() -> None:
    class Fixed(StableMixin, L.LightningModule):
        def __init__(self, width: int = 8) -> None:
            super().__init__(task="regression")
            self.width = width

    class Wide(Fixed):
        def __init__(self) -> None:
            super().__init__(width=80)

    assert Wide().width == 80


def test_a_foreign_mixin_before_ours_is_checked_as_well() -> None:
    class Foreign:
        def __init__(self, colour: str) -> None:
            super().__init__()

    with pytest.raises(ModelError, match=r"Foreign\.__init__ must take \*\*kwargs"):

        class Net(Foreign, StableMixin, L.LightningModule): ...


def test_the_other_lightning_is_named() -> None:
    other = type("LightningModule", (nn.Module,), {"__module__": "pytorch_lightning.core.module"})
    with pytest.raises(ModelError, match="import lightning as L instead of pytorch_lightning"):
        type("Net", (StableMixin, other), {})


def test_what_a_later_base_defines_wins_over_the_defaults() -> None:
    class Theirs(L.LightningModule):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return "their training"

        def loss(self, batch: Any) -> Any:
            return "their loss"

    class Net(StableMixin, Theirs):
        def loss(self, batch: Any) -> Any:
            return "own, over " + super().loss(batch)

    class Bare(StableMixin, Theirs): ...

    assert Net().training_step(None, 0) == Bare().training_step(None, 0) == "their training"
    assert Bare().loss(None) == "their loss"
    assert Net.validation_step is StableMixin.validation_step
