"""What who waits in a queue should know at once: that it may wait for ever."""

import os
from collections.abc import Callable

from conch.etcd.store import Range, StoreError
from conch.keeper.queue import Place, Queue
from conch.keys import contender

_LEASE = "CONCH_LEASE"


class Notices:
    """Warnings for one contender; each key without a lease is named once."""

    def __init__(self, tell: Callable[..., None]) -> None:
        self._tell = tell
        self._named: set[bytes] = set()

    def queued(self, queue: Queue, *, timeout_s: float) -> None:
        """Warn if nobody can leave the queue before us but conchs that run us, and so wait for our end.

        Asks etcd only where conch runs under conch: for the keys that the outer ones have in this queue.
        """
        outer = [contender(queue.stage.prefix, lease).encode() for lease in outer_leases()]
        try:
            found = [key for key in outer if queue.store.range(Range(key, keys_only=True), timeout_s=timeout_s).kvs]
        except StoreError:
            return  # the wait goes on, and says so
        if len(found) >= queue.slots:
            keys = " ".join(key.decode() for key in found)
            self._tell("warning", "waits-for-itself", key=keys, msg="held by the conch that this one runs under")

    def seen(self, place: Place) -> None:
        """Warn of keys right ahead that no end of their makers takes away."""
        for key in place.unleased:
            if key not in self._named:
                self._named.add(key)
                name = key.decode("utf-8", "replace")
                self._tell("warning", "no-lease", key=name, msg="it keeps its place until somebody deletes it")


def outer_leases() -> list[int]:
    """The leases of the holds that we run under: a conch's environment names the one around it, and so on upwards."""
    found: dict[int, None] = {}
    pid = os.getpid()
    if not os.environ.get(_LEASE):
        return []
    while pid > 1:
        try:
            with open(f"/proc/{pid}/environ", "rb") as file:
                variables = file.read().split(b"\0")
            with open(f"/proc/{pid}/stat", "rb") as file:
                pid = int(file.read().rpartition(b")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            break  # gone, or of another user: what is known is enough for a warning
        for one in variables:
            name, _, text = one.partition(b"=")
            if name == _LEASE.encode():
                try:
                    found[int(text, 16)] = None
                except ValueError:
                    continue
    return list(found)
