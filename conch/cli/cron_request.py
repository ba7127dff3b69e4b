"""Requests a run from the live daemons, and waits for the tick that one of them claims for it.

The request is a leased key. The daemon that claims it deletes the key and names the request in its claim, so the
requester learns of the claim by reading. Once the request is gone, a claim that cannot be found was never made.
"""

import json
import os
import secrets
import socket
import time

from conch import threads
from conch.cli.cron_client import CronClient
from conch.cli.cron_where import live_hosts
from conch.core import clock
from conch.cron.job import Job, UnreadableJob, parse
from conch.cron.placement import hosts_of, named, why_not, why_nowhere
from conch.cron.seconds import REACH, free_second
from conch.cron.values import FIRST_TICK, LAST_TICK, fields_of
from conch.cron.views import everything
from conch.errors import EXIT_NO, ConchError, EndedBySignal
from conch.etcd.store import Compacted, CreateRevisionIs, KeyValue, Put, Range, StoreError, Unreachable
from conch.holder import myself
from conch.keys import prefix_end
from conch.plain_signal import signal
from conch.record import Record
from conch.static_typing import Any, Callable, Mapping

# How long a request lives, which is how long a daemon has to claim it.
LEASE_S = 120
_RETRY_S = 0.2
# A request for every host whose lease has no more than so many seconds left is done: the other hosts are full or stuck.
_REST_S = 90
# After a signal: how long to wait until the request is withdrawn.
_WITHDRAW_S = 2.0
_FULL = "every second has a tick of its own"
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


def request_run(client: CronClient, name: str, wishes: Mapping[str, Any]) -> int:
    """Have a job run now and return the tick that a daemon claimed for it.

    `wishes` are fields of the request: `env`, variables for this run, and `keep_output`.

    Raises `ConchError` with exit code 1 if no daemon can or does claim the request, and `EndedBySignal`. In no case is
    a request left behind; if etcd is away, the lease ends it.
    """
    job, _ = client.read_job(name)
    why = why_nowhere(job, live_hosts(client))
    if why:
        raise ConchError(f"cannot run {name}: {why}", code=EXIT_NO)
    if not _has_free_second(job):
        raise ConchError(f"cannot run {name}: {_FULL}", code=EXIT_NO)
    with _SignalOrOutcome() as waiter:
        return _Request(client, name, job, wishes).submit(waiter)


def _has_free_second(job: Job) -> bool:
    """Return whether some second within reach has no tick of the schedule."""
    now = min(max(int(time.time()), FIRST_TICK), LAST_TICK - REACH)
    return free_second(None if job.next_tick(now) is None else job.ticks(), now, now + REACH) is not None


class _SignalOrOutcome:
    """Waits for a signal that ends us or for the outcome, which another thread puts, whichever comes first.

    Both arrive as bytes on one descriptor. The interpreter writes a signal's byte whenever it arrives, so none is
    missed just before a wait begins. Signals that were ignored when conch started stay ignored.
    """

    def __init__(self) -> None:
        self._out, self._in = socket.socketpair()
        self._in.setblocking(False)
        self._outcome: Callable[[], int] | None = None
        before = {number: signal.getsignal(number) for number in _ENDING}
        self._handlers = {number: how for number, how in before.items() if how != signal.SIG_IGN}

    def __enter__(self) -> "_SignalOrOutcome":
        signal.set_wakeup_fd(self._in.fileno(), warn_on_full_buffer=False)
        for number in self._handlers:
            signal.signal(number, _do_nothing)
        return self

    def __exit__(self, *_: object) -> None:
        for number, how in self._handlers.items():
            signal.signal(number, how)
        signal.set_wakeup_fd(-1)

    def put(self, outcome: Callable[[], int]) -> None:
        """Pass the outcome from another thread: a call that returns the tick or raises why there is none."""
        self._outcome = outcome
        try:
            self._in.send(bytes([0]))
        except OSError:
            pass  # the buffer is full, so the wait ends anyway

    def wait(self, until: float) -> Callable[[], int] | None:
        """Return the outcome, or None if there is none by then. Raises `EndedBySignal`."""
        while True:
            self._out.settimeout(max(0.001, until - clock.now()))
            try:
                received = self._out.recv(4096)
            except TimeoutError:
                return None
            for number in received:
                if number in self._handlers:
                    raise EndedBySignal(number)
            if self._outcome is not None:
                return self._outcome


def _do_nothing(_number: int, _frame: object) -> None:
    """Handle a signal whose byte the interpreter has written already."""


class _RequestState(Record):
    """What etcd says of a request at a revision: the request and the job, None if deleted, and the job's claims."""

    revision: int
    request: KeyValue | None
    job: KeyValue | None
    claims: tuple[KeyValue, ...]


class _Request:
    """A request under its own lease.

    A second key under that lease, the mark, is deleted by no daemon. It shows a repeated attempt to write the request
    that an earlier attempt succeeded, even if a daemon has claimed the request since.

    A request to run on every host is deleted by no daemon either. Its number is the tick for all of them, and it is
    withdrawn once all live hosts that may run the job have claimed theirs.
    """

    def __init__(self, client: CronClient, name: str, job: Job, wishes: Mapping[str, Any]) -> None:
        self._store = client.store
        self._keys = client.keys
        self._timeout_s = client.timeout_s
        self._log = client.log
        self._name = name
        self._each = job if job.each else None
        self._left: list[str] = []  # the hosts that are yet to claim their tick
        self._lease = int.from_bytes(os.urandom(8)) >> 1 or 1
        self._mark = self._keys.cron("asked", name, f"{self._lease:x}").encode()
        self._job = self._keys.cron("job", name).encode()
        self._request = b""
        self._wishes = wishes

    def submit(self, waiter: _SignalOrOutcome) -> int:
        """Write the request, wait until it is claimed, and return the claimed tick. Withdraw it in any case."""
        until = clock.now() + LEASE_S
        try:
            self._store.grant(self._lease, LEASE_S, timeout_s=self._timeout_s)
            self._write()
            threads.start(self._follow, waiter, until)
            tick = self._wait(waiter, until)
        except _NoClaim as reason:
            self._withdraw(self._timeout_s)
            claimed = self._claimed_tick(self._read())  # it may have been claimed just before
            if claimed is None:
                raise ConchError(f"cannot run {self._name}: {reason}", code=EXIT_NO) from None
            return claimed
        except BaseException:
            self._withdraw(min(self._timeout_s, _WITHDRAW_S))
            raise
        self._withdraw(self._timeout_s)
        return tick

    def _withdraw(self, timeout_s: float) -> None:
        """Revoke the lease, and with it the request and its mark."""
        try:
            self._store.revoke(self._lease, timeout_s=timeout_s)
        except StoreError:
            pass  # the lease expires by itself

    # -- writing it ---------------------------------------------------------------------------------------

    def _write(self) -> None:
        """Create the request under an unused number: the current second, or one above all numbers in use.

        Daemons of this release ignore the number. A daemon of the previous release claims the second of that number,
        so it must be one without a claim.
        """
        holder = fields_of(myself(["conch", "cron", "run", self._name]).encode())
        value = json.dumps({**holder, **self._wishes}).encode()
        number, spread = self._free_number(int(time.time())), 1
        until = clock.now() + self._timeout_s
        while True:
            if not FIRST_TICK <= number <= LAST_TICK:
                number = FIRST_TICK + secrets.randbelow(10**8)
            self._request, fire, ended = (
                self._keys.cron(kind, self._name, number).encode() for kind in ("now", "fire", "result")
            )
            written = self._store.txn(
                [CreateRevisionIs(key, 0) for key in (self._mark, self._request, fire, ended)],
                [Put(self._mark, self._request, self._lease), Put(self._request, value, self._lease)],
                [
                    Range(self._mark),
                    *(
                        Range(key, self._keys.cron(kind, self._name, number + REACH).encode(), last_first=True, limit=1)
                        for key, kind in ((self._request, "now"), (fire, "fire"), (ended, "result"))
                    ),
                ],
                timeout_s=self._timeout_s,
            )
            if written.succeeded:
                return
            mark, *others = (found.kvs[0] if found.kvs else None for found in written.ranges)
            if mark is not None:
                self._request = mark.value  # an earlier attempt succeeded, but its answer was lost
                return
            if clock.now() > until:
                raise Unreachable(f"cannot request a run of {self._name}: others keep requesting one")
            newest = [at.tick for kv in others if kv is not None and (at := self._keys.tick_of(kv.key)) is not None]
            number = self._free_number(max([number, *newest]) + 1 + secrets.randbelow(spread))
            spread = min(2 * spread, 64)

    def _free_number(self, number: int) -> int:
        """Return the number; or for every host the first from it on that is no tick, nor below one that was claimed."""
        if self._each is None:
            return number
        reads = [
            Range(prefix, prefix_end(prefix), last_first=True, limit=1, keys_only=True)
            for prefix in (self._keys.ticks(kind, self._name).encode() for kind in ("now", "fire", "result"))
        ]
        found = self._store.txn([], reads, timeout_s=self._timeout_s).ranges
        newest = [at.tick for read in found for kv in read.kvs if (at := self._keys.tick_of(kv.key)) is not None]
        lowest = max([number, *(tick + 1 for tick in newest if tick < number + REACH)])
        schedule = None if self._each.next_tick(lowest - 1) is None else self._each.ticks()
        return free_second(schedule, lowest, lowest + REACH) or lowest

    @property
    def _number(self) -> int:
        return int(self._request.rpartition(b"/")[2])

    # -- waiting ------------------------------------------------------------------------------------------

    def _wait(self, waiter: _SignalOrOutcome, until: float) -> int:
        """Return the tick. Raises `_NoClaim` if there will be none, `EndedBySignal`, and the errors of the store."""
        outcome = waiter.wait(until)
        if outcome is None:
            raise _NoClaim(f"no conchd took it within {LEASE_S} s")
        return outcome()

    def _follow(self, waiter: _SignalOrOutcome, until: float) -> None:
        """Put the outcome as soon as it is known; etcd may be away in between."""
        try:
            tick = self._await_claim(until)
        except Exception as error:
            raised = error
            waiter.put(lambda: _raise(raised))
        else:
            waiter.put(lambda: tick)

    def _await_claim(self, until: float) -> int:
        while True:
            try:
                state = self._read()
                tick = self._claimed_tick(state)
                if tick is not None and not self._left:
                    return tick
                if clock.now() > until - _REST_S and tick is not None:
                    hosts = named(self._left)
                    self._log("warning", "not-everywhere", job=self._name, msg=f"these hosts did not take it: {hosts}")
                    return tick
                self._check_claimable(state)
                self._await_change(state.revision)
            except (Unreachable, Compacted):
                if clock.now() > until:
                    raise
                time.sleep(_RETRY_S)

    def _read(self) -> _RequestState:
        claims = everything(self._keys.ticks("fire", self._name))
        if self._each is not None:
            tick = self._keys.cron("fire", self._name, self._number).encode()
            claims = Range(tick, tick + b"0")
        hosts = [everything(prefix) for prefix in (self._keys.node(), self._keys.cron("cordon"))]
        reads = [Range(self._request), Range(self._job), claims, *(hosts if self._each is not None else [])]
        answer = self._store.txn([], reads, timeout_s=self._timeout_s)
        request, job = (found.kvs[0] if found.kvs else None for found in answer.ranges[:2])
        if self._each is not None:
            live = hosts_of(self._keys, answer.ranges[3].kvs, answer.ranges[4].kvs)
            claimed = {at.host for kv in answer.ranges[2].kvs if (at := self._keys.tick_of(kv.key)) is not None}
            self._left = [host.name for host in live if not why_not(self._each, host) and host.name not in claimed]
        return _RequestState(answer.header.revision, request, job, answer.ranges[2].kvs)

    def _claimed_tick(self, state: _RequestState) -> int | None:
        """Return the tick of the claim that names the request, None if there is none."""
        for kv in state.claims:
            key = self._keys.tick_of(kv.key)
            if key is not None and fields_of(kv.value).get("request") == f"{self._lease:x}":
                return key.tick
        return None

    def _check_claimable(self, state: _RequestState) -> None:
        """Raise `_NoClaim` if no daemon will claim the request any more."""
        if state.request is None or state.request.lease != self._lease:
            raise _NoClaim(f"no conchd took it within {LEASE_S} s, or the request was deleted")
        if state.job is None:
            raise _NoClaim("the job was removed")
        try:
            if not _has_free_second(parse(self._name, state.job.value)):
                raise _NoClaim(_FULL)
        except UnreadableJob as error:
            raise _NoClaim(f"the job was changed and cannot be read: {error}") from None

    def _await_change(self, revision: int) -> None:
        """Block until the request or the job changes after this revision."""
        watched = [Range(key) for key in (self._request, self._job)]
        if self._each is not None:
            fire = self._keys.cron("fire", self._name, self._number).encode()
            watched += [Range(fire, fire + b"0"), everything(self._keys.node()), everything(self._keys.cron("cordon"))]
        watch = self._store.watch([(what, revision + 1) for what in watched])
        for _ in watch:
            break
        watch.cancel()


class _NoClaim(Exception):
    """No daemon will claim the request; the message says why."""


def _raise(error: Exception) -> int:
    raise error
