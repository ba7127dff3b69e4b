"""The keeper's dealings with etcd: get a lease, queue, hold, give back. One thread, one inbox."""

import os
import queue
import threading
from collections.abc import Callable

from conch.core import clock
from conch.core.deadline import ANSWERS_WITHIN_S, DeadlineRule
from conch.core.messages import Acquire, Answered, Failed, Held, Message, Note, Queued, Release, Released
from conch.errors import EXIT_NOT_ACQUIRED, EXIT_UNAVAILABLE, ConchError
from conch.etcd.patience import first_answer
from conch.etcd.store import LeaseGone, Store, StoreError, Unreachable
from conch.keeper.hold_spec import Job, QueueSpec
from conch.keeper.key_watch import KeyDeleted, KeyWatch, WatchUnavailable
from conch.keeper.notices import Notices
from conch.keeper.queue import Place, PlaceLost, Queue
from conch.keeper.session import Session
from conch.keys import slots_of
from conch.record import Record
from conch.static_typing import Protocol, TypeVar

_PAUSE_S, _PAUSE_MOST_S = 0.05, 2.0
_LEAST_S = 0.2

_Answer = TypeVar("_Answer")


class _Renewed(Record):
    session: int


class _SessionLost(Record):
    session: int
    reason: str


class Holding(Protocol):
    """Who is told of the hold, and enforces it; `conch.keeper.watchdog.Warden` has what each of these means."""

    def send(self, message: Message) -> None: ...
    def acquired(
        self, number: int, rule: DeadlineRule, deadline: float, *, run: str = "", renew_now: Callable[[], None] = ...
    ) -> None: ...
    def forget(self, number: int) -> None: ...
    def renewed(self, number: int, deadline: float) -> None: ...
    def wants_renewals(self, number: int) -> bool: ...
    def lost(self, number: int, reason: str) -> None: ...


class _Stop(Message):
    """Nothing is to be served any more."""


class _Cancelled(Exception):
    """The supervisor wants the lease back."""


class _GiveUp(Exception):
    """The acquisition failed for good."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


class Acquirer:
    """Serves `Acquire` and `Release`, one after the other, in a thread of its own.

    `released` is set while every release asked for was served.
    """

    def __init__(self, job: Job, store: Store, watchdog: Holding) -> None:
        self._job = job
        self._store = store
        self._watchdog = watchdog
        self._inbox: queue.SimpleQueue[Message | KeyDeleted | WatchUnavailable | _SessionLost | _Renewed] = (
            queue.SimpleQueue()
        )
        self._lock = threading.Lock()
        self._releases = 0  # asked for and not served yet
        self._cancelled = threading.Event()
        self.released = threading.Event()
        self._answered = False
        self._number = 0
        self._give_up_at: float | None = None
        self._lease: int | None = None
        self._session: Session | None = None
        self._sessions = 0
        self._places: list[tuple[Queue, Place]] = []
        self._lookout = KeyWatch(store, self._inbox.put, self._tell)
        self._short_of_time = False
        self._notices = Notices(self._tell)

    def deliver(self, message: Message) -> None:
        """A command from the supervisor; called from the warden's thread."""
        if isinstance(message, Release):
            with self._lock:
                self._releases += 1
                self._cancelled.set()
                self.released.clear()
        self._inbox.put(message)

    def _release_served(self) -> None:
        with self._lock:
            self._releases -= 1
            if not self._releases:
                self._cancelled.clear()
                self.released.set()

    def stop(self) -> None:
        """End `run` when all that was delivered is served."""
        self._inbox.put(_Stop())

    def run(self) -> None:
        """Serve until told to stop."""
        while True:
            match self._inbox.get():
                case _Stop():
                    return
                case Acquire() as wanted:
                    self._serve(wanted)
                case Release(lease):
                    self._watchdog.send(Released(self._give_back(lease)))
                    self._release_served()
                case _SessionLost(session, reason) if session == self._sessions:
                    self._watchdog.lost(self._number, reason)
                case KeyDeleted(watch, key) if watch == self._lookout.number and self._session is not None:
                    self._check_hold(key)
                case _:
                    pass  # of a watch or a session that is over

    def _check_hold(self, key: bytes | None) -> None:
        """A key was deleted while we hold, or the watch has to begin anew."""
        try:
            if key in self._own_keys():
                raise PlaceLost
            if key is None:
                self._lookout.end()
                self._watch_keys(self._look())
        except PlaceLost:
            self._watchdog.lost(self._number, "our key is gone: deleted, or its lease revoked or run out")
        except StoreError as error:
            # the renewals go on to confirm the hold; only a loss by hand is noticed later than at once
            self._tell("warning", "watch-failed", msg=str(error))
            self._lookout.retry_later()
        except _Cancelled:
            pass  # the release that follows in the inbox gives everything back

    # -- acquiring ----------------------------------------------------------------------------------------

    def _serve(self, wanted: Acquire) -> None:
        self._number = wanted.number
        self._give_up_at = wanted.give_up_at
        if self._give_up_at is not None and not self._answered:
            # the time that we took to get here must not leave etcd none
            self._give_up_at = max(self._give_up_at, clock.now() + _LEAST_S)
        try:
            if wanted.abandon is not None:
                self._revoke(wanted.abandon)
            while not self._try_to_hold():
                had_place = bool(self._places)
                self._give_back(None)
                if had_place:
                    self._tell("warning", "place-lost", msg="our key or lease is gone: queueing again, at the end")
                self._check_time()
        except _GiveUp as failure:
            self._give_back(None)
            self._watchdog.send(Failed(failure.code, str(failure)))
        except ConchError as error:
            self._give_back(None)
            self._watchdog.send(Failed(error.code, str(error)))
        except _Cancelled:
            pass  # the release that follows in the inbox gives everything back

    def _try_to_hold(self) -> bool:
        """Get a lease, queue in one stage after the other, and return True when we hold; False: the place was lost."""
        if self._job.nonblock:
            self._check_free()
        session = self._new_session()
        self._places = []
        for stage in self._job.stages:
            queue = Queue(self._store, stage, session.lease)
            place = self._enter(session, queue)
            if place is None:
                return False
            self._places.append((queue, place))
            session.follow(queue.key, place.rev)
            self._warn_of_other_capacities(stage, place)
            if not place.held:
                if self._job.nonblock:
                    raise _GiveUp(EXIT_NOT_ACQUIRED, f"{self._job.what} is taken")
                self._watchdog.send(Queued(place.rev))
                self._notices.queued(queue, timeout_s=self._left_s(self._job.connection.command_timeout_s))
                try:
                    self._wait_in_line(place)
                except PlaceLost:
                    return False
        try:
            self._wait_for_time(session)
        except PlaceLost:
            return False
        queue, place = self._places[-1]
        self._give_up_at = None  # it was for the queueing
        rule = DeadlineRule(session.ttl_s, self._job.kill_after_s)
        self._watchdog.acquired(self._number, rule, session.deadline, run=self._job.run, renew_now=session.renew_now)
        self._watchdog.send(Held(self._number, place.rev, session.lease, queue.key, session.ttl_s, session.deadline))
        self._watch_keys(place)
        return True

    def _check_free(self) -> None:
        """Under `--nonblock` nothing is written where nothing is free: another's look must not find us in its way."""
        for stage in self._job.stages:
            queue = Queue(self._store, stage, 0)
            if self._until_answered(lambda limit_s, queue=queue: queue.full(timeout_s=limit_s)):  # type: ignore[misc]
                raise _GiveUp(EXIT_NOT_ACQUIRED, f"{self._job.what} is taken")

    def _new_session(self) -> Session:
        number = self._number
        lease, granted_at, ttl_s = self._until_answered(self._grant)
        self._lease = lease
        self._watchdog.send(Answered(lease))
        self._sessions += 1
        serial = self._sessions
        self._session = Session(
            self._store,
            lease,
            ttl_s,
            granted_at,
            wanted=lambda: self._watchdog.wants_renewals(number),
            renewed=lambda deadline: self._renewed(number, serial, deadline),
            lost=lambda reason: self._inbox.put(_SessionLost(serial, reason)),
            tell=self._tell,
        )
        return self._session

    def _grant(self, limit_s: float) -> tuple[int, float, int]:
        lease = int.from_bytes(os.urandom(8)) >> 1 or 1
        granted_at = clock.now()
        return lease, granted_at, self._store.grant(lease, self._job.ttl_s, timeout_s=limit_s).ttl_s

    def _until_answered(self, ask: Callable[[float], _Answer]) -> _Answer:
        """Call `ask(limit_s)` until etcd answers. Raises `Unreachable` if the first answer of all takes too long.

        Under `--nonblock` that is the time of one request.
        """
        connection, pause_s = self._job.connection, _PAUSE_S

        def once(limit_s: float) -> _Answer:
            self._check_time()
            return ask(self._left_s(limit_s))

        def again(error: Unreachable) -> None:
            nonlocal pause_s
            pause_s = self._retry(error, pause_s)

        while self._answered:
            try:
                return once(connection.command_timeout_s)
            except Unreachable as error:
                again(error)
        within_s = max(ANSWERS_WITHIN_S, connection.dial_timeout_s)
        if self._job.nonblock:
            within_s = connection.command_timeout_s
        elif self._give_up_at is not None:
            within_s = self._give_up_at - clock.now()
        try:
            answer = first_answer(once, connection, within_s=within_s, again=again)
        except Unreachable as error:
            self._check_time(error)
            raise
        self._answered = True
        return answer

    def _enter(self, session: Session, queue: Queue) -> Place | None:
        """Our place in the queue, or None if the lease ran out first."""
        pause_s = _PAUSE_S
        while clock.now() < session.deadline:
            self._check_time()
            try:
                return queue.enter(self._job.value, timeout_s=self._left_s(self._job.connection.command_timeout_s))
            except Unreachable as error:
                pause_s = self._retry(error, pause_s)
            except (LeaseGone, PlaceLost):
                break
        return None

    def _wait_in_line(self, place: Place) -> None:
        """Return once we hold in the last queue that was entered. Raises `PlaceLost`."""
        self._watch_keys(place)
        while not place.held:
            self._notices.seen(place)
            match self._next_event():
                case KeyDeleted(watch, key) if watch == self._lookout.number:
                    if key in self._own_keys():
                        raise PlaceLost
                    if key is None:
                        self._lookout.end()
                    place = self._look()
                    if not place.held:
                        self._watch_keys(place)
                case WatchUnavailable(watch) if watch == self._lookout.number:
                    place = self._look()  # what is between us and etcd may let requests through and no watches
                case _SessionLost(session) if session == self._sessions:
                    raise PlaceLost
                case _:
                    pass  # of a watch or a session that is over

    def _wait_for_time(self, session: Session) -> None:
        """Return once there is time enough to start something: the last renewal may be old. Raises `PlaceLost`."""
        rule = DeadlineRule(session.ttl_s, self._job.kill_after_s)
        self._short_of_time = True
        try:
            while clock.now() >= rule.ready_by(session.deadline):
                session.renew_now()
                match self._next_event():
                    case _SessionLost(serial) if serial == self._sessions:
                        raise PlaceLost
                    case KeyDeleted(watch, key) if watch == self._lookout.number:
                        if key in self._own_keys():
                            raise PlaceLost
                        if key is None:
                            self._lookout.end()
                            self._look()
                    case _:
                        pass  # renewed, or of a watch or a session that is over
        finally:
            self._short_of_time = False

    def _renewed(self, number: int, session: int, deadline: float) -> None:
        self._watchdog.renewed(number, deadline)
        if self._job.verbose and self._session is not None:
            self._tell("debug", "confirmed", lease=f"{self._session.lease:x}", left_s=deadline - clock.now())
        if self._short_of_time:
            self._inbox.put(_Renewed(session))

    def _look(self) -> Place:
        """Our place in the last queue as it is now, however long etcd takes to answer. Raises `PlaceLost`.

        Our places in the queues before it are looked at too: a watch of them goes on from there.
        """
        pause_s = _PAUSE_S
        at = 0
        while at < len(self._places):
            queue, place = self._places[at]
            try:
                now = queue.look(place.rev, timeout_s=self._left_s(self._job.connection.command_timeout_s))
            except Unreachable as error:
                pause_s = self._retry(error, pause_s)
                continue
            self._places[at] = (queue, now)
            at += 1
        return self._places[-1][1]

    def _own_keys(self) -> tuple[bytes, ...]:
        return tuple(queue.key.encode() for queue, _ in self._places)

    def _warn_of_other_capacities(self, stage: QueueSpec, place: Place) -> None:
        for key in place.elsewhere:
            other = slots_of(stage.family or "", key)
            if other is None:
                self._tell("warning", "unreadable", key=key.decode("utf-8", "replace"), msg="no capacity in the key")
            else:
                self._tell("warning", "other-capacity", max=stage.slots, other=str(other), msg="a semaphore of its own")

    def _next_event(self) -> "Message | KeyDeleted | WatchUnavailable | _SessionLost | _Renewed":
        self._check_time()
        timeout_s = None if self._give_up_at is None else max(0.0, self._give_up_at - clock.now())
        try:
            event = self._inbox.get(timeout=timeout_s)
        except queue.Empty:
            self._check_time()
            return KeyDeleted(0, None)  # woken a moment early: nothing happened
        if isinstance(event, Release):
            self._inbox.put(event)
            raise _Cancelled
        return event

    # -- time ---------------------------------------------------------------------------------------------

    def _check_time(self, error: Unreachable | None = None) -> None:
        """Raise if the supervisor wants to stop, or `--wait` has run out."""
        if self._cancelled.is_set():
            raise _Cancelled
        if self._give_up_at is not None and clock.now() >= self._give_up_at:
            from conch.times import format_duration  # late: only this needs it

            wait = format_duration(self._job.wait_s or 0.0)
            if not self._answered:
                raise _GiveUp(EXIT_UNAVAILABLE, str(error or f"etcd did not answer within {wait}"))
            raise _GiveUp(EXIT_NOT_ACQUIRED, f"gave up waiting for {self._job.what} after {wait}")

    def _left_s(self, limit_s: float) -> float:
        if self._give_up_at is None:
            return limit_s
        return max(0.001, min(limit_s, self._give_up_at - clock.now()))

    def _retry(self, error: Unreachable, pause_s: float) -> float:
        """Wait a little before the next try; return the pause after that one."""
        if self._job.nonblock and self._answered:
            raise error
        self._tell("warning", "retry", msg=str(error))
        self._cancelled.wait(self._left_s(pause_s))
        self._check_time(error)
        return min(2 * pause_s, _PAUSE_MOST_S)

    # -- watching and giving back -------------------------------------------------------------------------

    def _watch_keys(self, place: Place) -> None:
        """Hear of the deletion of our keys and of those right ahead, from where each was seen last."""
        wanted = dict.fromkeys(place.ahead, place.seen_at)
        wanted.update((queue.key.encode(), own.seen_at) for queue, own in self._places)
        self._lookout.watch(wanted)

    def _give_back(self, lease: int | None) -> str:
        """Revoke what we have (or `lease`, a crashed keeper's); return why that is not certain, or nothing."""
        session, self._session = self._session, None
        if session is not None:
            session.stop_quietly()
        self._watchdog.forget(self._number)
        mine, self._lease = self._lease or lease, None
        reason = "" if mine is None else self._revoke(mine)
        # others may wait for the lease, and nobody for these threads to end
        if session is not None:
            session.stop()
        self._lookout.end()
        return reason

    def _revoke(self, lease: int) -> str:
        try:
            self._store.revoke(lease, timeout_s=self._job.connection.command_timeout_s)
        except StoreError as error:
            return f"{error}; it expires by itself"
        return ""

    def _tell(self, level: str, event: str, **text: str | int | float) -> None:
        self._watchdog.send(Note(level, event, text))
