"""Transactions on jobs, gathered: what is to be made while one is under way goes into the next one, all at once.

etcd makes them as one request, but each has its own compares and fails alone. So a thousand claims of one second take
a dozen requests, while a claim that comes alone waits for nothing. (Group commit, as databases do it for their logs.)
"""

import asyncio
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from conch.cron.shared_leases import SharedLeases
from conch.cron.workers import Tasks, Workers
from conch.cron.writes import Unsent
from conch.etcd.store import (
    Full,
    LeaseGone,
    Put,
    Range,
    Refused,
    Rejected,
    Store,
    StoreError,
    TooBig,
    Txn,
    TxnResult,
    TxnResults,
)

# etcd's default limits are 128 operations and 1.5 MiB a request. Of the operations, those of the outer transaction and
# those of the largest one in it count together. The rest of the bytes is for keys and for what surrounds the values.
_OPERATIONS = 128
_VALUE_BYTES = 512 * 1024


class Sending(Protocol):
    """How one caller's transactions on jobs are made: within which time, and until when they are wanted."""

    async def make(self, job: str, txn: Txn, now: float) -> TxnResult | None:
        """Make a transaction whose keys are all of this job, but for those that it compares and nobody here writes.

        Shared leases are granted as of `now` (Unix seconds); None: another lease is missing. Raises `StoreError`, or
        `Unsent` if it was not sent because nobody wants it any more.
        """
        ...

    async def read(self, *what: Range) -> TxnResult:
        """Read at one revision, in a request of its own. Raises `StoreError`."""
        ...


@dataclass(slots=True, eq=False)
class _Item:
    """A transaction that waits to be made. `lost` is the error of an earlier request that may have been served."""

    job: str
    txn: Txn
    now: float
    timeout_s: float
    is_wanted: Callable[[], bool]
    answered: "asyncio.Future[TxnResult | None]"
    lost: StoreError | None = None

    @property
    def operations(self) -> int:
        return max(len(self.txn.compare), len(self.txn.success), len(self.txn.failure))

    @property
    def value_bytes(self) -> int:
        return sum(len(put.value) for put in self.txn.success if isinstance(put, Put))

    def answer(self, result: TxnResult | None) -> None:
        if result is None and self.lost is not None:
            self.fail(LeaseGone("cannot make a transaction: its lease is gone"))
        elif not self.answered.done():
            self.answered.set_result(result)

    def drop(self) -> None:
        """It is not sent (again), because nobody wants it any more."""
        if self.lost is not None:
            self.fail(self.lost)
        elif not self.answered.done():
            self.answered.set_exception(Unsent())

    def fail(self, error: StoreError) -> None:
        if self.answered.done():
            return
        own = copy(error)  # one request's error has as many owners as transactions, and each may mark it unclear
        own.unclear = own.unclear or self.lost is not None
        self.answered.set_exception(own)


class Transactions:
    """Makes transactions, one request at a time. None of them sees or writes what another in its request writes."""

    def __init__(
        self, store: Store, leases: SharedLeases, tasks: Tasks, workers: Workers, *, apart_s: float = 0.0
    ) -> None:
        """A request is sent `apart_s` seconds after the one before it at the earliest: so more share it."""
        self._apart_s = apart_s
        self._store = store
        self._leases = leases
        self._tasks = tasks
        self._workers = workers
        self._waiting: list[_Item] = []
        self._is_sending = False
        self._most = _OPERATIONS  # transactions in a request, as far as etcd takes so many

    def sending(self, *, timeout_s: float, is_wanted: Callable[[], bool] = lambda: True) -> Sending:
        """Return how to send what is to be made within so many seconds, and not to be sent once it is not wanted."""
        return _Sending(self, timeout_s, is_wanted)

    async def make(
        self, job: str, txn: Txn, now: float, *, timeout_s: float, is_wanted: Callable[[], bool]
    ) -> TxnResult | None:
        """See `Sending`."""
        item = _Item(job, txn, now, timeout_s, is_wanted, asyncio.get_running_loop().create_future())
        self._waiting.append(item)
        if not self._is_sending:
            self._is_sending = True
            self._tasks.spawn(self._send_all())
        return await item.answered

    async def read(self, what: Sequence[Range], *, timeout_s: float) -> TxnResult:
        """See `Sending`."""
        return await self._workers.etcd(lambda: self._store.txn([], what, timeout_s=timeout_s))

    async def _send_all(self) -> None:
        while self._waiting:
            await self._send(self._take())
            if self._apart_s:
                await asyncio.sleep(self._apart_s)
        self._is_sending = False

    def _take(self) -> list[_Item]:
        """Take out what goes into the next request, in order, and at most one transaction of each job."""
        taken: list[_Item] = []
        left: list[_Item] = []
        jobs: set[str] = set()
        outer = inner = value_bytes = 0
        for item in self._waiting:
            # the outer transaction names each key that is written, too: see `never_taken` in `etcd/failover.py`
            outer_then = outer + max(1, len(item.txn.written()))
            inner_then = max(inner, item.operations)
            bytes_then = value_bytes + item.value_bytes
            fits = outer_then + inner_then <= _OPERATIONS and bytes_then <= _VALUE_BYTES and len(taken) < self._most
            if item.job in jobs or (taken and not fits):
                left.append(item)
            else:
                taken.append(item)
                outer, inner, value_bytes = outer_then, inner_then, bytes_then
            jobs.add(item.job)  # what comes later for the same job does not overtake it
        self._waiting = left
        return taken

    async def _send(self, items: Sequence[_Item]) -> bool:
        """Make transactions as one request; if etcd refuses it, those of each half, so that one fails alone.

        Returns whether the request was not too large for etcd.
        """
        to_send: list[_Item] = []
        for item in items:
            if item.is_wanted():
                to_send.append(item)
            else:
                item.drop()
        if not to_send:
            return True
        try:
            answer = await self._workers.etcd(partial(self._request, to_send))
        except StoreError as error:
            is_refusal = isinstance(error, Rejected | Refused | LeaseGone) and not isinstance(error, Full)
            if len(to_send) == 1 or not is_refusal:
                for item in to_send:
                    item.fail(error)
                return not isinstance(error, TooBig)
            is_too_big = isinstance(error, TooBig)
            if error.unclear:
                for item in to_send:
                    item.lost = error
        else:
            if answer is not None:
                for item, result in zip(to_send, answer.results, strict=True):
                    item.answer(result)
                return True
            if len(to_send) == 1:
                to_send[0].answer(None)
                return True
            is_too_big = False
        middle = len(to_send) // 2
        halves_fit = [await self._send(half) for half in (to_send[:middle], to_send[middle:])]
        if is_too_big and all(halves_fit):
            self._most = min(self._most, middle)  # else one of them is too large by itself
        return not is_too_big

    def _request(self, items: Sequence[_Item]) -> TxnResults | None:
        """Make the request; None if a lease is missing that is not a shared one."""
        timeout_s = max(item.timeout_s for item in items)
        if len(items) > 1:
            parts = [item.txn for item in items]
            return self._leases.call(lambda: self._store.txns(parts, timeout_s=timeout_s), items[0].now, timeout_s)
        txn = items[0].txn
        result = self._leases.call(
            lambda: self._store.txn(txn.compare, txn.success, txn.failure, timeout_s=timeout_s),
            items[0].now,
            timeout_s,
        )
        return None if result is None else TxnResults(result.header, (result,))


@dataclass(frozen=True, slots=True)
class _Sending:
    transactions: Transactions
    timeout_s: float
    is_wanted: Callable[[], bool]

    async def make(self, job: str, txn: Txn, now: float) -> TxnResult | None:
        return await self.transactions.make(job, txn, now, timeout_s=self.timeout_s, is_wanted=self.is_wanted)

    async def read(self, *what: Range) -> TxnResult:
        return await self.transactions.read(what, timeout_s=self.timeout_s)
