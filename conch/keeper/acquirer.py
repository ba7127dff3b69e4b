"""The keeper's dealings with etcd: get a lease, queue, hold, release. One thread, one inbox."""

import os

from conch import threads
from conch.core import clock
from conch.core.deadline import DeadlineRule
from conch.core.messages import Acquire, Answered, Failed, Held, Message, Note, Queued, Release, Released
from conch.errors import EXIT_NOT_ACQUIRED, ConchError, checked
from conch.etcd.store import LeaseGone, Store, StoreError
from conch.keeper.calls import Calls, Cancelled, GaveUp
from conch.keeper.events import (
    Event,
    KeyDeleted,
    RenewalConfirmed,
    SessionLost,
    WatchBroken,
    WatchEvent,
    WatchUnavailable,
)
from conch.keeper.held_since import HeldSince
from conch.keeper.hold_spec import HoldSpec, QueueSpec
from conch.keeper.key_watch import KeyWatch
from conch.keeper.notices import Notices
from conch.keeper.places import Places
from conch.keeper.queue import Place, PlaceLost, Queue, is_full
from conch.keeper.session import Session
from conch.keeper.states import NEXT, State
from conch.static_typing import Callable, Protocol
from conch.threads import Empty, Lock, SimpleQueue


class Holding(Protocol):
    """Enforces the hold and sends messages; `conch.keeper.watchdog.Watchdog` says what each method means."""

    def send(self, message: Message) -> None: ...
    def acquired(
        self, number: int, rule: DeadlineRule, deadline: float, *, run: str = "", renew_now: Callable[[], None] = ...
    ) -> None: ...
    def drop_hold(self, number: int) -> None: ...
    def renewed(self, number: int, deadline: float) -> None: ...
    def wants_renewals(self, number: int) -> bool: ...
    def lost(self, number: int, reason: str) -> None: ...


class _Stop(Message):
    """Nothing is to be served any more."""


class Acquirer:
    """Serves `Acquire` and `Release`, one after the other, in a thread of its own.

    `released` is set while no `Release` waits to be served.
    """

    def __init__(self, spec: HoldSpec, store: Store, watchdog: Holding) -> None:
        self._spec = spec
        self._store = store
        self._watchdog = watchdog
        self._inbox: SimpleQueue[Message | Event] = SimpleQueue()
        self._lock = Lock()
        self._releases = 0  # delivered and not served yet
        self.released = threads.Event()
        self._calls = Calls(spec, self._log)
        self._key_watch = KeyWatch(store, self._inbox.put, self._log)
        self._notices = Notices(self._log)
        self._since = HeldSince(spec, self._log)
        self._state = State.IDLE  # written by the thread of `run` alone
        self._number = 0  # of the `Acquire` that is served
        self._session: Session | None = None
        self._sessions = 0  # begun; the number of the current one
        self._places = Places()
        self._waited = False  # we hold later than the value of our key says

    # -- called from any thread ---------------------------------------------------------------------------

    def deliver(self, message: Message) -> None:
        """Take a message from the supervisor. A `Release` interrupts an `Acquire` that is being served.

        Those for the watchdog alone stop here: this thread would wake for them while a hold is handed over.
        """
        if isinstance(message, Release):
            with self._lock:
                self._releases += 1
                self._calls.cancelled.set()
                self.released.clear()
        if isinstance(message, (Acquire, Release)):
            self._inbox.put(message)

    def stop(self) -> None:
        """Let `run` return once it has served all messages delivered so far."""
        self._inbox.put(_Stop())

    # -- the thread ---------------------------------------------------------------------------------------

    def run(self) -> None:
        """Serve messages until `stop`."""
        while True:
            match self._since.next_of(self._inbox):
                case _Stop():
                    return
                case Acquire() as order:
                    self._acquire(order)
                case Release(lease):
                    self._watchdog.send(Released(self._release(lease)))
                    self._release_served()
                case event if self._state is State.HOLDING:
                    self._check_hold(event)
                case _:
                    pass  # from an acquisition that is over

    def _release_served(self) -> None:
        with self._lock:
            self._releases -= 1
            if not self._releases:
                self._calls.cancelled.clear()
                self.released.set()

    def _enter(self, state: State) -> None:
        self._state = checked(NEXT, self._state, state)

    # -- one acquisition, from top to bottom --------------------------------------------------------------

    def _acquire(self, order: Acquire) -> None:
        """Try until we hold, from the end of the queue again whenever our place is lost; or report why not."""
        self._number = order.number
        self._calls.begin(order.give_up_at)
        try:
            if order.abandon is not None:
                self._revoke(order.abandon)
            while not self._try_to_hold():
                self._calls.check()
        except Cancelled:
            pass  # the `Release` that waits in the inbox releases everything
        except ConchError as error:
            self._release()
            self._watchdog.send(Failed(error.code, str(error)))

    def _try_to_hold(self) -> bool:
        """Get a lease, enter one queue after the other, wait, hold. Return False if our place was lost meanwhile."""
        self._enter(State.STARTING)
        if self._spec.nonblock:
            self._check_free()
        session = self._start_session()
        try:
            self._enter(State.QUEUING)
            for spec in self._spec.stages:
                self._pass_queue(spec, session)
            self._enter(State.CONFIRMING)
            self._wait_for_time(session)
        except PlaceLost:
            queued = bool(self._places)
            self._release()
            if queued:
                self._log("warning", "place-lost", msg="our key or lease is gone: queueing again, at the end")
            return False
        self._calls.lift_limit()
        self._hold(session)
        return True

    def _check_free(self) -> None:
        """Under `--nonblock` write nothing where all is taken: another contender must not find us in its way."""
        for spec in self._spec.stages:
            if is_full(self._store, spec, self._calls.until_answered):
                raise self._taken()

    def _taken(self) -> GaveUp:
        return GaveUp(f"{self._spec.what} is taken", code=EXIT_NOT_ACQUIRED)

    def _start_session(self) -> Session:
        number, self._waited = self._number, self._sessions > 0
        lease, granted_at, ttl_s = self._calls.until_answered(self._grant)
        self._watchdog.send(Answered(lease))
        self._sessions = serial = self._sessions + 1
        self._session = Session(
            self._store,
            lease,
            ttl_s,
            granted_at,
            should_renew=lambda: self._watchdog.wants_renewals(number),
            renewed=lambda deadline: self._on_renewed(number, lease, deadline),
            lost=lambda reason: self._inbox.put(SessionLost(serial, reason)),
            log=self._log,
        )
        return self._session

    def _grant(self, limit_s: float) -> tuple[int, float, int]:
        """Return a new lease, the time before it was asked for, and its TTL. Each try asks for another id."""
        lease = int.from_bytes(os.urandom(8)) >> 1 or 1
        granted_at = clock.now()
        return lease, granted_at, self._store.grant(lease, self._spec.ttl_s, timeout_s=limit_s).ttl_s

    def _pass_queue(self, spec: QueueSpec, session: Session) -> None:
        """Enter a queue and return once we hold in it. Raises `PlaceLost`."""
        queue = Queue(self._store, spec, session.lease)
        place = self._enter_queue(queue, session)
        self._places.add(queue, place)
        session.follow(queue.key, place.rev)
        self._notices.entered(spec, place)
        if place.held:
            return
        if self._spec.nonblock:
            raise self._taken()
        self._watchdog.send(Queued(place.rev))
        self._waited = True
        self._notices.queued(queue, timeout_s=self._calls.timeout_s)
        self._wait_in_line(place)

    def _enter_queue(self, queue: Queue, session: Session) -> Place:
        """Create our key in a queue. Raises `PlaceLost` if the lease runs out first."""

        def enter_with(limit_s: float) -> Place:
            if clock.now() >= session.deadline:
                raise PlaceLost
            return queue.enter(self._spec.value, timeout_s=limit_s)

        try:
            return self._calls.until_answered(enter_with)
        except LeaseGone:
            raise PlaceLost from None

    def _wait_in_line(self, place: Place) -> None:
        """Return once we hold in the queue entered last. Raises `PlaceLost`."""
        while not place.held:
            self._watch_keys()
            self._notices.seen(place)
            match self._next_event():
                case KeyDeleted():
                    place = self._read_places()
                case WatchBroken():
                    self._key_watch.end()
                    place = self._read_places()
                case WatchUnavailable():
                    place = self._read_places()  # a proxy before etcd may let requests through, but no watches
                case None:
                    pass

    def _wait_for_time(self, session: Session) -> None:
        """Return once the deadline leaves time to start something: the last renewal may be old. Raises `PlaceLost`."""
        rule = DeadlineRule(session.ttl_s, self._spec.kill_after_s)
        while clock.now() >= rule.ready_by(session.deadline):
            session.renew_now()
            if isinstance(self._next_event(), WatchBroken):
                self._key_watch.end()
                self._read_places()

    def _hold(self, session: Session) -> None:
        queue, place = self._places.last
        rule = DeadlineRule(session.ttl_s, self._spec.kill_after_s)
        self._enter(State.HOLDING)
        self._watchdog.acquired(self._number, rule, session.deadline, run=self._spec.run, renew_now=session.renew_now)
        self._watchdog.send(Held(self._number, place.rev, session.lease, queue.key, session.ttl_s, session.deadline))
        self._watch_keys()
        if self._waited:
            self._since.begin(queue, place.rev)

    def _check_hold(self, event: object) -> None:
        """Handle an event while we hold: the session is lost, a key was deleted, or the watch has to begin anew."""
        try:
            match event:
                case SessionLost(session, reason) if session == self._sessions:
                    self._lose(reason)
                case KeyDeleted(watch, key) if watch == self._key_watch.number:
                    self._places.check_deleted(key)
                case WatchBroken(watch) if watch == self._key_watch.number:
                    self._key_watch.end()
                    self._read_places()
                    self._watch_keys()
        except PlaceLost:
            self._lose("our key is gone: deleted, or its lease revoked or run out")
        except StoreError as error:
            # renewals go on to confirm the hold; only a key that somebody deletes is noticed later than with the watch
            self._log("warning", "watch-failed", msg=str(error))
            self._key_watch.retry_later()
        except Cancelled:
            pass  # the `Release` that waits in the inbox releases everything

    def _lose(self, reason: str) -> None:
        self._enter(State.LOST)
        self._watchdog.lost(self._number, reason)

    def _release(self, lease: int | None = None) -> str:
        """Revoke our lease (or `lease`, a crashed keeper's); return why that is not certain, or nothing."""
        self._enter(State.RELEASING)
        self._since.cancel()
        session, self._session = self._session, None
        if session is not None:
            session.stop_quietly()
            lease = session.lease
        self._watchdog.drop_hold(self._number)
        reason = "" if lease is None else self._revoke(lease)
        # others may wait for the lease, but nobody waits for these threads to end
        if session is not None:
            session.stop()
        self._key_watch.end()
        self._places = Places()
        self._enter(State.IDLE)
        return reason

    def _revoke(self, lease: int) -> str:
        try:
            self._store.revoke(lease, timeout_s=self._spec.connection.command_timeout_s)
        except StoreError as error:
            return f"{error}; it expires by itself"
        return ""

    # -- events -------------------------------------------------------------------------------------------

    def _next_event(self) -> WatchEvent | None:
        """Wait for an event of the watch while we acquire; None: there is none of the current watch.

        Raises `PlaceLost` when our key or lease is gone, `Cancelled` or `GaveUp` when the acquisition is to end.
        """
        self._calls.check()
        try:
            event = self._inbox.get(timeout=self._calls.left_s())
        except Empty:
            self._calls.check()
            return None  # woken a little early
        match event:
            case Release():
                self._inbox.put(event)
                raise Cancelled
            case SessionLost(session) if session == self._sessions:
                raise PlaceLost
            case KeyDeleted(watch, key) if watch == self._key_watch.number:
                self._places.check_deleted(key)
                return event
            case WatchBroken(watch) | WatchUnavailable(watch) if watch == self._key_watch.number:
                return event
        return None  # a renewal, or an event of a watch or session that is over

    def _on_renewed(self, number: int, lease: int, deadline: float) -> None:
        """Pass a renewal on; called from the session's thread."""
        self._watchdog.renewed(number, deadline)
        if self._spec.verbose:
            self._log("debug", "confirmed", lease=f"{lease:x}", left_s=deadline - clock.now())
        if self._state is State.CONFIRMING:
            self._inbox.put(RenewalConfirmed())

    def _read_places(self) -> Place:
        """Read our place in the queue entered last, however long etcd takes to answer. Raises `PlaceLost`."""
        return self._places.read(self._calls.until_answered)

    def _watch_keys(self) -> None:
        """Watch for the deletion of our keys and of those right ahead, from where each was seen last."""
        self._key_watch.watch(self._places.watched_keys())

    def _log(self, level: str, event: str, **text: str | int | float) -> None:
        self._watchdog.send(Note(level, event, text))
