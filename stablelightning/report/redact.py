"""A record of a run holds no secrets."""

import os
import re
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

REDACTED = "[redacted]"

# One of these words anywhere in a name marks its value as a secret.
_SECRET_WORDS = frozenset(
    [
        "apikey",
        "authorization",
        "cookie",
        "credential",
        "credentials",
        "passphrase",
        "passwd",
        "password",
        "passwords",
        "pwd",
        "secret",
        "secrets",
    ]
)
# These only as the last word: ``hf_token`` is a secret, ``token_dim`` and ``num_tokens`` are not.
_SECRET_LAST_WORDS = frozenset(["token", "auth", "jwt", "pat"])
_SECRET_PAIRS = frozenset(
    [("api", "key"), ("access", "key"), ("private", "key"), ("account", "key"), ("signing", "key")]
)

_WORD_BREAK = re.compile(r"[^A-Za-z0-9]+|(?<=[a-z0-9])(?=[A-Z])")
_URL_CREDENTIALS = re.compile(r"(?<=://)[^/\s@]+(?=@)")
# A name starts where a word does and has an end; else a long text costs its length squared.
_ASSIGNMENT = re.compile(
    r"(?<![\w.\-])(?P<name>[\w.\-]{1,100})(?P<sign>=|:\s+)(?:(?:Bearer|Basic)\s+)?[^\s&;,'\"]+",
    re.IGNORECASE,
)

# Shorter values of environment variables ("1", "true", "main") would match ordinary settings.
_SHORTEST_SECRET = 6


def is_secret_name(name: str) -> bool:
    """Say whether a setting or environment variable of this name holds a secret.

    Args:
        name: in snake case, camel case, kebab case or with dots.

    Example:
        >>> [is_secret_name(name) for name in ("WANDB_API_KEY", "hfToken", "num_tokens")]
        [True, True, False]
    """
    words = [word.lower() for word in _WORD_BREAK.split(name) if word]
    if not words:
        return False
    return (
        not _SECRET_WORDS.isdisjoint(words)
        or words[-1] in _SECRET_LAST_WORDS
        or not _SECRET_PAIRS.isdisjoint(pairwise(words))
    )


def redact_secrets(config: Any) -> Any:
    """Copy a nested configuration, with ``[redacted]`` in place of whatever looks like a secret.

    Redacted are: values of settings that are named like a secret (``password``, ``api_key``,
    ``hf_token``); the values of environment variables named so, wherever they appear; the
    credentials in ``scheme://user:password@host``; and ``name=value`` inside a string. Numbers are
    redacted too (a password may be one); ``None`` and booleans are kept, for they say whether
    something was set.

    Args:
        config: dictionaries, lists and tuples of plain values; not changed.

    Returns:
        The same structure; objects that are not plain values are kept as they are.

    Example:
        >>> redact_secrets({"data": {"root": "digits", "password": "hunter2"}, "samples": 50})
        {'data': {'root': 'digits', 'password': '[redacted]'}, 'samples': 50}
    """
    known = sorted(_environment_secrets(), key=len, reverse=True)
    return _redact(config, known)


def _environment_secrets() -> set[str]:
    return {
        value
        for name, value in os.environ.items()
        if is_secret_name(name) and len(value) >= _SHORTEST_SECRET
    }


def _redact(value: Any, known: list[str]) -> Any:
    if isinstance(value, Mapping):
        return {
            key: _redact_entry(key, entry, known) if isinstance(key, str) else _redact(entry, known)
            for key, entry in value.items()
        }
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_redact(entry, known) for entry in value))
    if isinstance(value, (list, tuple)):
        return type(value)(_redact(entry, known) for entry in value)
    return _redact_text(value, known) if isinstance(value, str) else value


def _redact_entry(key: str, entry: Any, known: list[str]) -> Any:
    if not is_secret_name(key) or entry is None or isinstance(entry, bool) or entry == "":
        return _redact(entry, known)
    return REDACTED


def _redact_text(text: str, known: list[str]) -> str:
    for secret in known:
        text = text.replace(secret, REDACTED)
    text = _URL_CREDENTIALS.sub(REDACTED, text)
    return _ASSIGNMENT.sub(
        lambda found: (
            f"{found['name']}{found['sign']}{REDACTED}"
            if is_secret_name(found["name"])
            else found[0]
        ),
        text,
    )
