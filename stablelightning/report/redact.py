"""Secrets do not belong into a record of a run."""

from typing import Any


def redact_secrets(config: Any) -> Any:
    """A copy of a nested configuration in which what looks like a secret reads ``[redacted]``."""
    raise NotImplementedError
