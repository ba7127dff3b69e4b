"""Warnings for a contender that may wait for ever, or that meets keys it did not expect."""

import os

from conch.etcd.store import Range, StoreError
from conch.keeper.hold_spec import QueueSpec
from conch.keeper.queue import Place, Queue
from conch.keys import contender, slots_of
from conch.static_typing import Callable

_LEASE = "CONCH_LEASE"


class Notices:
    """Warnings for one contender; each key without a lease is named once."""

    def __init__(self, log: Callable[..., None]) -> None:
        self._log = log
        self._named: set[bytes] = set()

    def entered(self, spec: QueueSpec, place: Place) -> None:
        """Warn of contenders of the same semaphore with another number of slots: they are limited apart from us."""
        for key in place.elsewhere:
            other = slots_of(spec.sibling_prefix or "", key)
            if other is None:
                self._log("warning", "unreadable", key=key.decode("utf-8", "replace"), msg="no capacity in the key")
            else:
                self._log("warning", "other-capacity", max=spec.slots, other=str(other), msg="a semaphore of its own")

    def queued(self, queue: Queue, *, timeout_s: float) -> None:
        """Warn if all that hold are conchs that run us: they wait for us to end, and we for them.

        Asks etcd only where conch runs under conch: for the keys that the outer ones have in this queue.
        """
        outer = [contender(queue.spec.prefix, lease).encode() for lease in outer_leases()]
        try:
            found = [key for key in outer if queue.store.range(Range(key, keys_only=True), timeout_s=timeout_s).kvs]
        except StoreError:
            return  # the wait goes on, and logs what fails
        if len(found) >= queue.slots:
            keys = " ".join(key.decode() for key in found)
            self._log("warning", "waits-for-itself", key=keys, msg="held by the conch that this one runs under")

    def seen(self, place: Place) -> None:
        """Warn of keys right ahead that have no lease: they stay when the process that made them ends."""
        for key in place.unleased:
            if key not in self._named:
                self._named.add(key)
                name = key.decode("utf-8", "replace")
                self._log("warning", "no-lease", key=name, msg="it keeps its place until somebody deletes it")


def outer_leases() -> list[int]:
    """Return the leases of the holds that we run under, innermost first.

    A conch sets CONCH_LEASE for its command, so each process between us and init may name one.
    """
    leases: dict[int, None] = {}
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
            break  # ended, or another user's: what is known so far is enough for a warning
        for variable in variables:
            name, _, text = variable.partition(b"=")
            if name == _LEASE.encode():
                try:
                    leases[int(text, 16)] = None
                except ValueError:
                    continue
    return list(leases)
