"""`conch cron run`: ask the live daemons for a run, and wait for the tick that one of them gives it.

The request is a leased key. The daemon that claims it deletes it and names it in its claim, so whoever asked finds out
by reading; a claim that cannot be found once the request is gone was never made.
"""

import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Callable

from conch.cli.cron_show import Session
from conch.core import clock
from conch.cron.job import Job, UnreadableJob, parse
from conch.cron.seconds import REACH, free_second
from conch.cron.values import FIRST_TICK, LAST_TICK, fields_of
from conch.cron.views import everything, live_nodes
from conch.errors import EXIT_NO, ConchError, EndedBySignal
from conch.etcd.store import Compacted, CreateRevisionIs, KeyValue, Put, Range, StoreError, Unreachable
from conch.holder import myself

# How long a request lives, and so how long a daemon has to take it.
LEASE_S = 120
_PAUSE_S = 0.2
# How long a signal waits for what is left to be taken back.
_LEAVE_S = 2.0
_FULL = "every second has a tick of its own"
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


def run_now(session: Session, name: str) -> int:
    """Have a job run now and return the tick that a daemon claimed for it.

    Raises `ConchError` with exit code 1 if no daemon can or does take the request, and `EndedBySignal`. Whatever its
    end, no request is left behind; the lease ends it if etcd is away.
    """
    job, _ = session.read(name)
    store, keys = session.store, session.keys
    if not live_nodes(keys, store.range(everything(keys.node()), timeout_s=session.timeout_s).kvs):
        raise ConchError(f"cannot run {name}: no conchd is alive", code=EXIT_NO)
    if not _has_free_second(job):
        raise ConchError(f"cannot run {name}: {_FULL}", code=EXIT_NO)
    with _News() as news:
        return _Request(session, name).made_and_claimed(news)


def _has_free_second(job: Job) -> bool:
    """Whether some second has no tick of the schedule."""
    now = min(max(int(time.time()), FIRST_TICK), LAST_TICK - REACH)
    return free_second(None if job.paused else job.ticks(), now, now + REACH) is not None


class _News:
    """What ends the wait: a signal that is to end us, or the outcome, which another thread has found.

    Both are bytes on one descriptor. A signal writes its own wherever it arrives, so none is overlooked just before a
    wait begins. Signals that were ignored when conch started stay ignored.
    """

    def __init__(self) -> None:
        self._out, self._in = socket.socketpair()
        self._in.setblocking(False)
        self._outcome: Callable[[], int] | None = None
        before = {number: signal.getsignal(number) for number in _ENDING}
        self._before = {number: how for number, how in before.items() if how != signal.SIG_IGN}

    def __enter__(self) -> "_News":
        signal.set_wakeup_fd(self._in.fileno(), warn_on_full_buffer=False)
        for number in self._before:
            signal.signal(number, _note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, how in self._before.items():
            signal.signal(number, how)
        signal.set_wakeup_fd(-1)

    def put(self, outcome: Callable[[], int]) -> None:
        """Take the outcome from another thread: a call that returns the tick or raises why there is none."""
        self._outcome = outcome
        try:
            self._in.send(bytes([0]))
        except OSError:
            pass  # full: the wait has enough to end

    def wait(self, until: float) -> Callable[[], int] | None:
        """Return the outcome, None if there is none by that moment. Raises `EndedBySignal`."""
        while True:
            self._out.settimeout(max(0.001, until - clock.now()))
            try:
                heard = self._out.recv(4096)
            except TimeoutError:
                return None
            for number in heard:
                if number in self._before:
                    raise EndedBySignal(number)
            if self._outcome is not None:
                return self._outcome


def _note(_number: int, _frame: object) -> None:
    """Nothing more: the signal's byte is written already."""


class _Request:
    """A request under a lease of its own.

    Beside the request lies a mark under the same lease, which no daemon deletes. It tells a repeated try to write the
    request that the first try was made, even if a daemon has taken the request since.
    """

    def __init__(self, session: Session, name: str) -> None:
        self._store = session.store
        self._keys = session.keys
        self._limit_s = session.timeout_s
        self._name = name
        self._lease = int.from_bytes(os.urandom(8)) >> 1 or 1
        self._mark = self._keys.cron("asked", name, f"{self._lease:x}").encode()
        self._job = self._keys.cron("job", name).encode()
        self._request = b""

    def made_and_claimed(self, news: _News) -> int:
        """Make the request, wait for its claim, and take back what is left of it."""
        until = clock.now() + LEASE_S
        try:
            self._store.grant(self._lease, LEASE_S, timeout_s=self._limit_s)
            self._write()
            threading.Thread(target=self._follow, args=(news, until), name="claim", daemon=True).start()
            tick = self._wait(news, until)
        except _Over as over:
            self._end(self._limit_s)
            claimed = self._claimed(self._look())  # just before that
            if claimed is None:
                raise ConchError(f"cannot run {self._name}: {over}", code=EXIT_NO) from None
            return claimed
        except BaseException:
            self._end(min(self._limit_s, _LEAVE_S))
            raise
        self._end(self._limit_s)
        return tick

    def _end(self, timeout_s: float) -> None:
        try:
            self._store.revoke(self._lease, timeout_s=timeout_s)
        except StoreError:
            pass  # it expires by itself

    # -- making it ----------------------------------------------------------------------------------------

    def _write(self) -> None:
        """Create the request under a number that nobody has: the second on our clock, or one after all others.

        For daemons of this release the number says nothing. One of the release before claims that very second, so it
        is one that has no claim yet.
        """
        value = myself(["conch", "cron", "run", self._name]).encode()
        number, spread = int(time.time()), 1
        until = clock.now() + self._limit_s
        while True:
            if not FIRST_TICK <= number <= LAST_TICK:
                number = FIRST_TICK + secrets.randbelow(10**8)
            self._request, fire, ended = (
                self._keys.cron(kind, self._name, number).encode() for kind in ("now", "fire", "result")
            )
            made = self._store.txn(
                [CreateRevisionIs(key, 0) for key in (self._mark, self._request, fire, ended)],
                [Put(self._mark, self._request, self._lease), Put(self._request, value, self._lease)],
                [
                    Range(self._mark),
                    *(
                        Range(key, self._keys.cron(kind, self._name, number + REACH).encode(), last_first=True, limit=1)
                        for key, kind in ((self._request, "now"), (fire, "fire"), (ended, "result"))
                    ),
                ],
                timeout_s=self._limit_s,
            )
            if made.succeeded:
                return
            mark, *others = (found.kvs[0] if found.kvs else None for found in made.ranges)
            if mark is not None:
                self._request = mark.value  # an earlier try was made, its answer lost
                return
            if clock.now() > until:
                raise Unreachable(f"cannot ask for a run of {self._name}: others ask all the time")
            newest = [at.tick for kv in others if kv is not None and (at := self._keys.tick_of(kv.key)) is not None]
            number = max([number, *newest]) + 1 + secrets.randbelow(spread)
            spread = min(2 * spread, 64)

    # -- waiting ------------------------------------------------------------------------------------------

    def _wait(self, news: _News, until: float) -> int:
        """Return the tick. Raises `_Over` if there will be none, `EndedBySignal`, and what etcd refuses."""
        outcome = news.wait(until)
        if outcome is None:
            raise _Over(f"no conchd took it within {LEASE_S} s")
        return outcome()

    def _follow(self, news: _News, until: float) -> None:
        """Find the outcome; etcd may be away meanwhile."""
        try:
            tick = self._await_claim(until)
        except Exception as error:
            raised = error
            news.put(lambda: _raise(raised))
        else:
            news.put(lambda: tick)

    def _await_claim(self, until: float) -> int:
        while True:
            try:
                found = self._look()
                tick = self._claimed(found)
                if tick is not None:
                    return tick
                self._check(found)
                self._await_change(found[0])
            except (Unreachable, Compacted):
                if clock.now() > until:
                    raise
                time.sleep(_PAUSE_S)

    def _look(self) -> tuple[int, KeyValue | None, KeyValue | None, tuple[KeyValue, ...]]:
        """The revision, the request and the job at it, and the job's claims."""
        fires = everything(self._keys.ticks("fire", self._name))
        asked = [Range(self._request), Range(self._job), fires]
        answer = self._store.txn([], asked, timeout_s=self._limit_s)
        request, job = (found.kvs[0] if found.kvs else None for found in answer.ranges[:2])
        return answer.header.revision, request, job, answer.ranges[2].kvs

    def _claimed(self, found: tuple[int, KeyValue | None, KeyValue | None, tuple[KeyValue, ...]]) -> int | None:
        for kv in found[3]:
            at = self._keys.tick_of(kv.key)
            if at is not None and fields_of(kv.value).get("request") == f"{self._lease:x}":
                return at.tick
        return None

    def _check(self, found: tuple[int, KeyValue | None, KeyValue | None, tuple[KeyValue, ...]]) -> None:
        """Raise `_Over` if nobody will claim the request any more."""
        _, request, job, _ = found
        if request is None or request.lease != self._lease:
            raise _Over(f"no conchd took it within {LEASE_S} s, or the request was deleted")
        if job is None:
            raise _Over("the job was removed")
        try:
            if not _has_free_second(parse(self._name, job.value)):
                raise _Over(_FULL)
        except UnreadableJob as error:
            raise _Over(f"the job was changed and cannot be read: {error}") from None

    def _await_change(self, revision: int) -> None:
        """Return when the request or the job changes after this revision."""
        watch = self._store.watch([(Range(key), revision + 1) for key in (self._request, self._job)])
        for _ in watch:
            break
        watch.cancel()


class _Over(Exception):
    """Why nobody will claim the request."""


def _raise(error: Exception) -> int:
    raise error
