"""Transactions on jobs without a daemon: each is made at once, in a request of its own."""

from collections.abc import Coroutine
from typing import Any, TypeVar

from conch.cron.shared_leases import SharedLeases
from conch.etcd.store import Range, Store, Txn, TxnResult

_T = TypeVar("_T")


class AtOnce:
    """A `Sending` that makes each transaction in its caller's thread, and waits for no other."""

    def __init__(self, store: Store, leases: SharedLeases, timeout_s: float = 5.0) -> None:
        self._store = store
        self._leases = leases
        self._timeout_s = timeout_s

    async def make(self, job: str, txn: Txn, now: float) -> TxnResult | None:
        """See `Sending`."""
        return self._leases.call(
            lambda: self._store.txn(txn.compare, txn.success, txn.failure, timeout_s=self._timeout_s),
            now,
            self._timeout_s,
        )

    async def read(self, *what: Range) -> TxnResult:
        """See `Sending`."""
        return self._store.txn([], what, timeout_s=self._timeout_s)


def result_of(coroutine: Coroutine[Any, Any, _T]) -> _T:
    """Run a coroutine that never waits to its end; in any thread, without a loop."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]
    raise AssertionError("it waits for something")
