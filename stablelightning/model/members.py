"""What has several members, each of which can stand alone for a while."""

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from typing import Any


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
