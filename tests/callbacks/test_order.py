"""Guard, monitor, clip: in that order, whatever the list says."""

import lightning as L
import pytest

from stablelightning.callbacks.base import StableCallback
from tests.callbacks.modules import Plain, loader, quiet_trainer


class Recording(StableCallback):
    def __init__(self, seen):
        self.seen = seen

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.seen.append(type(self).__name__)


class First(Recording):
    rank = 10


class Second(Recording):
    rank = 20


class Third(Recording):
    rank = 30


class Unranked(Recording):
    pass


class Theirs(L.Callback):
    def __init__(self, seen):
        self.seen = seen

    on_before_optimizer_step = Recording.on_before_optimizer_step


@pytest.mark.parametrize(
    ("listed", "expected"),
    [
        ([Third, Second, First], ["First", "Second", "Third"]),
        ([First, Second, Third], ["First", "Second", "Third"]),
        ([Third, Theirs, First], ["First", "Theirs", "Third"]),
        ([Unranked, Third, Theirs, First], ["Unranked", "First", "Theirs", "Third"]),
    ],
)
def test_ranked_callbacks_change_places_among_themselves(listed, expected):
    seen = []
    trainer = quiet_trainer(*(kind(seen) for kind in listed), max_steps=1)
    trainer.fit(Plain(), loader(8, batch_size=8))
    assert seen == expected


def test_every_callback_is_set_up_once():
    calls = []

    class Counting(First):
        def setup(self, trainer, pl_module, stage):
            calls.append(self)
            super().setup(trainer, pl_module, stage)

    late, early = Third([]), Counting([])
    quiet_trainer(late, early, Counting([]), max_steps=1).fit(Plain(), loader(8, batch_size=8))
    assert len(calls) == len(set(map(id, calls))) == 2


def test_equal_ranks_keep_the_order_of_the_list():
    seen = []

    class Also(First):
        pass

    trainer = quiet_trainer(Also(seen), First(seen), max_steps=1)
    trainer.fit(Plain(), loader(8, batch_size=8))
    assert seen == ["Also", "First"]
