"""Running the command inside the test's process, where a process of its own would cost seconds."""

import logging
import sys
import warnings

import pytest

from stablelightning.cli.main import main
from tests.cli.commands import RANKS


@pytest.fixture
def in_process(tmp_path, monkeypatch):
    """Run the command in an empty working folder; what it sets for its process is undone."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for rank in RANKS:
        monkeypatch.delenv(rank, raising=False)
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    loggers = [logging.getLogger(name) for name in logging.root.manager.loggerDict]
    before = [(logger, list(logger.filters)) for logger in loggers]
    with warnings.catch_warnings():
        yield lambda *arguments: main(arguments)
    for logger, filters in before:
        logger.filters[:] = filters
