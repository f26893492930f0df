"""The plans that are compared, as callbacks; to start from scratch takes none."""

from collections.abc import Callable

import lightning as L

from stablelightning.callbacks.choose_transfer import ChooseTransfer
from stablelightning.callbacks.freeze import (
    FineTuneAll,
    ProbeThenTune,
    TrainHead,
    TrainLastGroups,
    UnfreezeGradually,
)

#: From scratch: everything trains, from its first weights.
SCRATCH = "scratch"

#: The plans that are judged by name.
HEAD, FULL, GRADUAL, AUTO = "head only", "full", "gradual", "auto"

#: Share of the training by which a gradual plan has opened everything, at most.
_OPENED = 0.5


def _gradual(steps: int, groups: int) -> L.Callback:
    return UnfreezeGradually(every_n_steps=max(1, int(_OPENED * steps / (groups - 1))))


#: Makes the plan for so many steps of training and groups of the network.
PLANS: dict[str, Callable[[int, int], L.Callback]] = {
    HEAD: lambda steps, groups: TrainHead(),
    "last two groups": lambda steps, groups: TrainLastGroups(2),
    FULL: lambda steps, groups: FineTuneAll(),
    GRADUAL: _gradual,
    "probe, then tune": lambda steps, groups: ProbeThenTune(),
    AUTO: lambda steps, groups: ChooseTransfer(),
}
