"""Is there a key, and does the server answer? Questions with a bounded wait, put before a run."""

import netrc
import os
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from urllib.parse import urlsplit

# A gateway's 502, 503 or 504 means that nobody behind it answered.
_FIRST_SERVER_ERROR = 500


def has_netrc_entry(url: str) -> bool:
    """Say whether the user's netrc file (``NETRC``, ``~/.netrc`` or ``~/_netrc``) knows the host.

    Args:
        url: an ``http`` or ``https`` address.

    Returns:
        False also where there is no such file, or it cannot be read.

    Example:
        >>> has_netrc_entry("https://no-such-host.invalid")
        False
    """
    named = os.environ.get("NETRC")
    host = urlsplit(url).hostname or ""
    for name in [named] if named else ["~/.netrc", "~/_netrc"]:
        with suppress(OSError, netrc.NetrcParseError, UnicodeDecodeError):
            if host in netrc.netrc(str(Path(name).expanduser())).hosts:
                return True
    return False


def answers(url: str, *, timeout: float, proxies: Mapping[str, str | None] | None = None) -> bool:
    """Ask ``url`` for anything, and say whether an answer came in time.

    The question runs in a daemon thread: the timeouts of sockets do not bound the look-up of a host
    name, and a resolver without a network can hang for half a minute. No credentials are sent.

    Args:
        url: an ``http`` or ``https`` address.
        timeout: seconds to wait at most, look-up included; > 0.
        proxies: address by scheme, in place of the environment's ``http_proxy`` and so on; ``None``
            is as if left out.

    Returns:
        True for any answer of the server itself, also "not found" or "not allowed", and a
        certificate that Python does not trust (the client that follows may know it); False for
        silence, refusal or a server error.

    Example:
        >>> answers("http://127.0.0.1:9", timeout=1.0)  # nothing listens on the discard port
        False
    """
    heard = threading.Event()
    done = threading.Event()

    def ask() -> None:
        if _one_request(url, timeout, proxies):
            heard.set()
        done.set()

    threading.Thread(target=ask, daemon=True, name="stablelightning-reach").start()
    done.wait(timeout)
    return heard.is_set()


def _one_request(url: str, timeout: float, proxies: Mapping[str, str | None] | None) -> bool:
    given = {scheme: proxy for scheme, proxy in (proxies or {}).items() if proxy}
    handler = urllib.request.ProxyHandler(given or None)
    try:
        with urllib.request.build_opener(handler).open(url, timeout=timeout):
            return True
    except urllib.error.HTTPError as error:
        with error:
            return error.code < _FIRST_SERVER_ERROR
    except urllib.error.URLError as error:
        return isinstance(error.reason, ssl.SSLCertVerificationError)
    except (OSError, ValueError, HTTPException):  # silence, not an address, not HTTP
        return False
