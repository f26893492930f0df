"""The summary of a run as a table for the terminal."""

from collections.abc import Mapping
from typing import TextIO


def format_summary(summary: Mapping[str, float | None], *, title: str | None = None) -> str:
    """The tables as plain text, without colour codes."""
    raise NotImplementedError


def print_summary(
    summary: Mapping[str, float | None], *, title: str | None = None, file: TextIO | None = None
) -> None:
    """Print the tables: rich on a terminal, plain text elsewhere."""
    raise NotImplementedError
