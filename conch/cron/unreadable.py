"""Keys that nobody can make sense of: each is reported once, whatever is written to them."""

import hashlib
import threading
from collections.abc import Callable

Log = Callable[..., None]

_MOST = 1000
_SHOWN = 500


class Unreadable:
    """Reports a key once, from any thread. It remembers 1,000 of them, and names no more than that."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._lock = threading.Lock()
        self._known: set[bytes] = set()

    def __call__(self, key: bytes, why: str) -> None:
        """Log `unreadable` with the key, unless that was done before."""
        mark = hashlib.blake2b(key, digest_size=16).digest()
        with self._lock:
            if mark in self._known or len(self._known) > _MOST:
                return
            self._known.add(mark)
            full = len(self._known) > _MOST
        if full:
            why = f"{why}; more than {_MOST} keys are unreadable: no others are named"
        self._log("warning", "unreadable", key=key.decode("utf-8", "replace")[:_SHOWN], msg=why)
