"""The leases under claims and results, which all hosts share.

Their ids follow from the prefix and the hour or the day, so the number of leases grows neither with ticks nor with
hosts: every host computes the same id, and whoever needs it first grants it.
"""

import hashlib
from collections.abc import Callable
from functools import lru_cache
from typing import TypeVar

from conch.etcd.store import LeaseExists, LeaseGone, Store, StoreError, TxnResult, TxnResults

_Made = TypeVar("_Made", TxnResult, TxnResults)

# A claim lives 25 h at least; one lease serves the claims of an hour, one the results of a day.
_CLAIM_S, _CLAIM_EVERY_S = 26 * 3600, 3600
_RESULT_S, _RESULT_EVERY_S = 15 * 86400, 86400
# For how many of these hours and days a lease is young, which means that no key under it is about to expire.
_CLAIM_YOUNG, _RESULT_YOUNG = 6, 7


@lru_cache
def shared_lease(prefix: str, kind: str, period: int) -> int:
    """Compute the id of the lease that all hosts use for `kind` in this period."""
    digest = hashlib.sha256(f"{prefix} {kind} {period}".encode()).digest()
    return int.from_bytes(digest[:8]) >> 1 or 1


class SharedLeases:
    """Names the shared leases, and grants them when a transaction finds one missing."""

    def __init__(self, store: Store, prefix: str) -> None:
        self._store = store
        self._prefix = prefix

    def for_claims(self, now: float) -> int:
        """Return the id of the lease for claims made at `now` (Unix seconds)."""
        return shared_lease(self._prefix, "claims", int(now // _CLAIM_EVERY_S))

    def for_results(self, now: float) -> int:
        """Return the id of the lease for results written at `now` (Unix seconds)."""
        return shared_lease(self._prefix, "results", int(now // _RESULT_EVERY_S))

    def young(self, now: float) -> frozenset[int]:
        """Return the leases that last long enough, whichever host granted them, even one whose clock is a bit ahead."""
        claims = (self.for_claims(now + at * _CLAIM_EVERY_S) for at in range(-_CLAIM_YOUNG, 2))
        results = (self.for_results(now + at * _RESULT_EVERY_S) for at in range(-_RESULT_YOUNG, 2))
        return frozenset((*claims, *results))

    def call(self, transaction: Callable[[], _Made], now: float, timeout_s: float) -> _Made | None:
        """Run a transaction; if a lease is missing, grant the shared ones and run it once more.

        Returns None if it still fails for a missing lease: then the missing lease is not a shared one. A `StoreError`
        is marked unclear if either run may have changed etcd.
        """
        try:
            return transaction()
        except LeaseGone as error:
            unclear = error.unclear
        self._grant(now, timeout_s, unclear=unclear)
        try:
            return transaction()
        except LeaseGone as error:
            if unclear or error.unclear:
                error.unclear = True  # an earlier try may have been made
                raise
            return None
        except StoreError as error:
            error.unclear = error.unclear or unclear
            raise

    def _grant(self, now: float, timeout_s: float, *, unclear: bool) -> None:
        for lease, ttl_s in ((self.for_claims(now), _CLAIM_S), (self.for_results(now), _RESULT_S)):
            try:
                self._store.grant(lease, ttl_s, timeout_s=timeout_s)
            except LeaseExists:
                pass  # another host granted it first
            except StoreError as error:
                error.unclear = unclear  # a failed grant says nothing about the transaction itself
                raise
