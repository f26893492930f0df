"""What has several members, each of which can stand alone for a while."""

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn


class Members(ABC):
    """A model that is several models: of one architecture, with weights of their own.

    Called as it is, it speaks for all members. Inside :meth:`as_member` it is one of them, an
    ordinary model with ordinary parameters, so that whatever works on a model works on a member.

    Attributes:
        members: how many there are.
        chosen: the number of the member that it is at the moment, ``None`` for all of them.

    Example:
        >>> from torch import nn
        >>> from stablelightning.model.stacked import StackedNetworks
        >>> stacked = StackedNetworks([nn.Linear(4, 2) for _ in range(3)])
        >>> isinstance(stacked, Members), stacked.members
        (True, 3)
    """

    members: int
    chosen: int | None

    @abstractmethod
    def as_member(self, number: int) -> AbstractContextManager[Any]:
        """Inside, be member ``number``; what is written into its parameters stays."""

    @abstractmethod
    def member_outputs(self, *args: Any, **kwargs: Any) -> Any:
        """What every member gives for the same inputs, stacked: ``(members, ...)``."""

    @property
    def module(self) -> nn.Module:
        """What is called, and is one member inside :meth:`as_member`: usually the object itself."""
        assert isinstance(self, nn.Module)
        return self


#: Modules that stand for several members though their class knows nothing of it.
_STANDING_FOR: WeakKeyDictionary[nn.Module, Members] = WeakKeyDictionary()


def members_of(model: Any) -> Members | None:
    """What has the members of a model; ``None`` where it is one model, or one member just now.

    Args:
        model: of any kind.

    Example:
        >>> members_of(nn.Linear(4, 2)) is None
        True
    """
    if not isinstance(model, nn.Module):
        return None
    found = model if isinstance(model, Members) else _STANDING_FOR.get(model)
    return found if found is not None and found.chosen is None else None


def stand_for(model: nn.Module, members: Members) -> None:
    """Let a module speak for members from now on, wherever it is sampled.

    Args:
        model: as long as it lives.
        members: its ``module`` is the model.
    """
    _STANDING_FOR[model] = members
