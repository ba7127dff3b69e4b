"""The scheduler: which ticks this daemon claims, and what becomes of them. One thread owns all that is here.

What takes time (etcd, the disk) is done by a few workers; its outcome comes back as a call in this thread. Ticks come
out of a heap, news out of one watch; nothing is polled.
"""

import heapq
import os
import queue
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from typing import Any, TypeVar

from conch.config import Connection
from conch.core import clock, system, tree
from conch.core.crew import HOLDS
from conch.core.link import (
    Drain,
    Ended,
    Finished,
    Held,
    Kill,
    Lost,
    Message,
    Note,
    Recorded,
    Release,
    Released,
    Running,
)
from conch.core.link import Start as StartOrder
from conch.cron.claims import TRIM, Again, Busy, Claims, Delivered, Due, NodeGone, Outcome, Taken, Won
from conch.cron.clock import SKEW_S, FleetClock
from conch.cron.fleet import Registered, Registrar, order
from conch.cron.fleet import Taken as NameTaken
from conch.cron.job import Job, UnreadableJob, parse
from conch.cron.ledger import Entry, Ledger, ended
from conch.cron.records import Result, fields_of, tick_of
from conch.cron.schedule import Schedule
from conch.cron.slots import Slot
from conch.errors import BadInput
from conch.etcd.store import Compacted, Event, KeyValue, Range, Store, StoreError, Unreachable
from conch.holder import Holder, rfc3339
from conch.keeper.warden import Warden
from conch.keys import Keys, prefix_end
from conch.names import check_name

_T = TypeVar("_T")

# Each host in line for a tick gives the ones before it this much time.
_TURN_S = 0.1
_WORKERS = 8
_PAUSE_S, _PAUSE_MOST_S = 0.1, 2.0
# How often a node tells its time; and when a supervisor that does not take an order is taken for stopped.
_TELL_TIME_S = 60.0
_UNANSWERED_S = 1.0
# Ticks in a row that are looked at one by one before those that are too late are passed over at once.
_STEPS = 1000
_KINDS = ("job", "fire", "now", "run")


@dataclass(slots=True)
class Known:
    """A job as this daemon follows it. `run` is its run key as last seen, `old` are ticks to be removed."""

    job: Job
    rev: int
    schedule: Schedule
    has_floor: bool = False
    run: KeyValue | None = None
    waiting: "tuple[Due, int] | None" = None
    old: set[int] = field(default_factory=set)


@dataclass(slots=True)
class Live:
    """A run of this daemon, from its claim until its result is in etcd."""

    entry: Entry
    job: Job | None
    node: int | None = None
    slot: Slot | None = None
    ordered_at: float | None = None
    ends_by: float | None = None
    over: bool = False
    pause_s: float = _PAUSE_S


@dataclass(frozen=True, slots=True)
class Options:
    """How this daemon was told to work."""

    ttl_s: int
    max_runs: int
    key: bytes | None
    first: bool


class Scheduler:
    """Claims ticks, orders runs, records their ends. `ask` and `tell` are for other threads, `run` is the thread."""

    def __init__(
        self,
        store: Store,
        connection: Connection,
        keys: Keys,
        warden: Warden,
        ledger: Ledger,
        me: Holder,
        state: str,
        options: Options,
        fleet_clock: FleetClock,
        inbox: "queue.SimpleQueue[Message | Callable[[], None]]",
    ) -> None:
        """`inbox` is where messages of the supervisor arrive."""
        self._store = store
        self._connection = connection
        self._keys = keys
        self._warden = warden
        self._ledger = ledger
        self._me = me
        self._options = options
        self._clock = fleet_clock
        self._claims = Claims(store, keys, me.host)
        self._registrar = Registrar(store, keys, warden, me, state, options.ttl_s, self.tell)
        self._workers = ThreadPoolExecutor(_WORKERS, "work")
        self._inbox = inbox
        self._serial = count()
        self._numbers = count(1)
        self._ticks: list[tuple[int, int, str, int, int]] = []
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self.jobs: dict[str, Known] = {}
        self._unreadable: dict[str, int] = {}
        self._dues: dict[tuple[str, int], Due] = {}
        self._held_back: dict[tuple[str, int], Due] = {}
        self._claimed: dict[tuple[str, int], None] = {}
        self._claiming = 0
        self._live: dict[str, Live] = {}
        self._nodes: dict[str, dict[str, Any]] = {}
        self._node: Registered | None = None
        self._old_leases: dict[int, int] = {}
        self._watching = False
        self._draining = False
        self._releasing = False
        self._released = False
        self._warned_skew = False
        self._since = self._clock.now()
        self.counts: Counter[tuple[str, str]] = Counter()
        self.lag_counts: Counter[float] = Counter()
        self.lag_sum = 0.0
        self.ended = threading.Event()

    # -- for other threads --------------------------------------------------------------------------------

    def ask(self, question: Callable[[], _T], timeout_s: float) -> _T:
        """The answer of the scheduler's thread. Raises `TimeoutError`."""
        answer: queue.SimpleQueue[_T] = queue.SimpleQueue()
        self._inbox.put(lambda: answer.put(question()))
        try:
            return answer.get(timeout=timeout_s)
        except queue.Empty:
            raise TimeoutError("the scheduler is busy") from None

    def tell(self, level: str, event: str, **text: str | int | float) -> None:
        """A line for the log."""
        self._warden.send(Note(level, event, text))

    # -- the thread ---------------------------------------------------------------------------------------

    def run(self) -> None:
        """Work until everything was given back."""
        while not self.ended.is_set():
            try:
                self._handle(self._inbox.get(timeout=self._wait_s()))
                while True:
                    self._handle(self._inbox.get_nowait())
            except queue.Empty:
                pass
            self._run_timers()
            self._run_ticks()

    def _wait_s(self) -> float | None:
        moments = []
        if self._timers:
            moments.append(self._timers[0][0] - clock.now())
        if self._ticks:
            moments.append(self._ticks[0][0] - self._clock.now())
        return max(0.0, min(moments)) if moments else None

    def _handle(self, message: Message | Callable[[], None]) -> None:
        match message:
            case Running(run=run):
                self._on_running(run)
            case Finished():
                self._on_finished(message)
            case Drain():
                self._on_drain()
            case Release():
                self._on_release()
            case Ended():
                pass
            case Message():
                pass
            case _:
                message()

    def _later(self, after_s: float, what: Callable[[], None]) -> None:
        heapq.heappush(self._timers, (clock.now() + after_s, next(self._serial), what))

    def _run_timers(self) -> None:
        while self._timers and self._timers[0][0] <= clock.now():
            heapq.heappop(self._timers)[2]()

    def _work(self, work: Callable[[], _T], then: Callable[[_T], None], failed: Callable[[StoreError], None]) -> None:
        """Have a worker do it; its outcome comes back here."""

        def do() -> None:
            try:
                result = work()
            except StoreError as error:
                self.counts["etcd_errors", type(error).__name__] += 1
                problem = error
                self._inbox.put(lambda: failed(problem))
            except Exception as error:
                defect = error
                self._inbox.put(lambda: _raise(defect))
            else:
                self._inbox.put(lambda: then(result))

        self._workers.submit(do)

    # -- the beginning ------------------------------------------------------------------------------------

    def start(self, live: Sequence[str], over: Sequence[str]) -> None:
        """List what is there and go on from it; the runs of the ledger are live, about to be reported, or lost.

        Called before `run`. Raises `StoreError` if etcd does not answer.
        """
        for entry in self._ledger.entries:
            self._live[entry.run] = Live(entry, None, over=entry.result is not None)
            if entry.result is None and entry.run not in (*live, *over):
                self.tell("warning", "run-lost", run=f"{entry.name} {rfc3339(entry.tick)}")
                result = Result(self._me.host, "lost", reason="conchd died while it ran")
                self._live[entry.run].entry = ended(entry, result)
                self._live[entry.run].over = True
                self._ledger.write(self._live[entry.run].entry)
                if entry.slot is not None:
                    self._revoke(entry.slot)
        timeout_s = self._connection.dial_timeout_s if self._options.first else self._connection.command_timeout_s
        watched = [(one, self._list(one, timeout_s) + 1) for one in self._watched()]
        threading.Thread(target=self._watch, args=(watched,), name="watch", daemon=True).start()
        threading.Thread(target=self._watch_clock, name="clock", daemon=True).start()
        for one in self._live.values():
            if one.over:
                self._deliver(one)
        self._register()

    def _watched(self) -> list[Range]:
        prefixes = [self._keys.cron(kind).encode() for kind in _KINDS] + [self._keys.node().encode()]
        return [Range(prefix, prefix_end(prefix)) for prefix in prefixes]

    def _list(self, what: Range, timeout_s: float) -> int:
        """Take in what is there; return the revision at which it is. Claims are only of interest as they are made."""
        of_claims = what.key == self._keys.cron("fire").encode()
        found = self._store.range(Range(what.key, what.end, limit=1 if of_claims else 0), timeout_s=timeout_s)
        if not of_claims:
            for kv in found.kvs:
                self._on_key(kv, live=False)
        return found.head.revision

    def _watch(self, watched: list[tuple[Range, int]]) -> None:
        while True:
            try:
                self._inbox.put(lambda: self._on_watching(on=True))
                for events in self._store.watch(watched, tell=self._on_watch_news):
                    self._inbox.put(partial(self._on_events, events))
            except Compacted:
                pass
            except StoreError as error:
                self.tell("warning", "watch-failed", msg=str(error))
                self._inbox.put(lambda: self._on_watching(on=False))
            threading.Event().wait(1.0)
            watched = self._list_again()

    def _on_watch_news(self, event: str) -> None:
        self.tell("warning", event)
        self._inbox.put(lambda: self._on_watching(on=event == "watch-resumed"))

    def _on_watching(self, *, on: bool) -> None:
        self._watching = on

    def _list_again(self) -> list[tuple[Range, int]]:
        """After a gap in the history: what went meanwhile is noticed by its absence."""
        while True:
            try:
                listed = [
                    (one, self._store.range(one, timeout_s=self._connection.command_timeout_s))
                    for one in self._watched()
                ]
            except StoreError as error:
                self.tell("warning", "retry", msg=str(error))
                threading.Event().wait(1.0)
                continue
            self._inbox.put(partial(self._on_list, listed))
            return [(one, found.head.revision + 1) for one, found in listed]

    def _on_list(self, listed: Sequence[tuple[Range, Any]]) -> None:
        keys = {kv.key for _, found in listed for kv in found.kvs}
        revision = min(found.head.revision for _, found in listed)
        for name in list(self.jobs):
            if self._keys.cron("job", name).encode() not in keys:
                del self.jobs[name]
            elif (run := self.jobs[name].run) is not None and run.key not in keys:
                self._on_run_key_gone(name, revision)
        for host in list(self._nodes):
            if self._keys.node(host).encode() not in keys:
                self._forget_node(host)
        for one, found in listed:
            if one.key != self._keys.cron("fire").encode():
                for kv in found.kvs:
                    self._on_key(kv, live=False)

    def _watch_clock(self) -> None:
        steps = system.StepTimer()
        while True:
            steps.wait()
            self._inbox.put(self._on_clock_step)

    def _on_clock_step(self) -> None:
        self.tell("warning", "clock-set", msg="the wall clock was set, or the machine was asleep")
        self._check_skew()
        self._tell_time()

    # -- registration -------------------------------------------------------------------------------------

    def _register(self) -> None:
        number = self._new_number()

        def lost(reason: str) -> None:
            self._warden.lost(number, reason)
            self._inbox.put(lambda: self._on_node_lost(number, reason))

        def work() -> Registered | NameTaken:
            return self._registrar.register(
                number, self._clock.own(), lost, draining=self._draining, timeout_s=self._connection.command_timeout_s
            )

        self._work(work, self._on_registered, self._on_not_registered)

    def _new_number(self) -> int:
        """A number for a hold; its place on the board must not be that of our registration."""
        number = next(self._numbers)
        if self._node is not None and number % HOLDS == self._node.node.number % HOLDS:
            number = next(self._numbers)
        return number

    def _on_registered(self, outcome: Registered | NameTaken) -> None:
        if isinstance(outcome, NameTaken):
            self.tell(
                "error",
                "name-taken",
                host=self._me.host,
                msg="another conchd has this name: set CONCH_HOST; claiming nothing",
            )
            self._later(self._options.ttl_s / 2, self._register)
            return
        self._node = outcome
        self.tell("info", "registered", host=self._me.host, lease=f"{outcome.node.lease:x}", rev=outcome.node.rev)
        self._later(_TELL_TIME_S, lambda: self._tell_time_again(outcome.node.number))
        self._try_held_back()

    def _on_not_registered(self, error: StoreError) -> None:
        self.tell("warning", "not-registered", msg=str(error))
        self._later(_PAUSE_MOST_S, self._register)

    def _on_node_lost(self, number: int, reason: str) -> None:
        if self._node is None or self._node.node.number != number:
            return
        self.tell("error", "registration-lost", reason=reason)
        self._old_leases[number] = self._node.node.lease
        self._node.session.stop()
        self._node = None
        self._give_old_leases_back()
        if not self._releasing:
            self._register()

    def _give_old_leases_back(self) -> None:
        """A lost registration may still have its lease; nothing that ran under it may run any more when it goes."""
        needed = {one.node for one in self._live.values() if not one.over}
        for number in [number for number in self._old_leases if number not in needed]:
            lease = self._old_leases.pop(number)
            self._warden.forget(number)
            self._revoke(lease)

    def _revoke(self, lease: int) -> None:
        limit_s = self._connection.command_timeout_s
        self._work(lambda: self._store.revoke(lease, timeout_s=limit_s), lambda _: None, lambda _: None)

    def _tell_time_again(self, number: int) -> None:
        if self._node is not None and self._node.node.number == number:
            self._tell_time()
            self._later(_TELL_TIME_S, lambda: self._tell_time_again(number))

    def _tell_time(self) -> None:
        node = self._node
        if node is None:
            return
        limit_s = self._connection.command_timeout_s
        draining = self._draining
        self._work(
            lambda: self._registrar.refresh(node.node, self._clock.own(), draining=draining, timeout_s=limit_s),
            lambda _: None,
            lambda _: None,
        )

    # -- news ---------------------------------------------------------------------------------------------

    def _on_events(self, events: Sequence[Event]) -> None:
        for event in events:
            if event.deleted:
                self._on_gone(event.kv.key, event.kv.mod_revision)
            else:
                self._on_key(event.kv, live=True)

    def _split(self, key: bytes) -> tuple[str, str]:
        """The kind of a key, and what comes after it."""
        text = key.decode("utf-8", "replace").removeprefix(self._keys.prefix + "/")
        if text.startswith("node/"):
            return "node", text[len("node/") :]
        _, _, rest = text.partition("/")
        kind, _, path = rest.partition("/")
        return kind, path

    def _on_key(self, kv: KeyValue, *, live: bool) -> None:
        kind, path = self._split(kv.key)
        match kind:
            case "job":
                self._on_job(path, kv)
            case "fire" if (at := tick_of(kv.key)) is not None:
                self._on_claim(at[0], at[1], kv)
            case "now" if (at := tick_of(kv.key)) is not None:
                self._on_request(at[0], at[1], kv, live=live)
            case "run" if (known := self.jobs.get(path)) is not None:
                known.run = kv
            case "run":
                pass  # of a job that is gone, or that we hear of next: a claim then finds it
            case "node":
                self._on_node(path, kv, live=live)
            case _:
                self.tell("warning", "unreadable", key=kv.key.decode("utf-8", "replace"), msg="no tick in the key")

    def _on_gone(self, key: bytes, revision: int) -> None:
        kind, path = self._split(key)
        at = tick_of(key)
        if kind == "job":
            if self.jobs.pop(path, None) is not None:
                self.tell("info", "job-removed", job=path)
        elif kind == "fire" and at is not None:
            known = self.jobs.get(at[0])
            if known is not None:
                known.old.discard(at[1])
        elif kind == "run":
            self._on_run_key_gone(path, revision)
        elif kind == "node":
            self._forget_node(path)

    def _on_node(self, host: str, kv: KeyValue, *, live: bool) -> None:
        fields = dict(fields_of(kv.value))
        new = host not in self._nodes
        self._nodes[host] = fields
        if host == self._me.host:
            return
        at = fields.get("at")
        if live and isinstance(at, int | float):
            self._clock.heard(host, float(at))
            self._check_skew()
        if new and live:
            self._tell_time()  # so that it learns ours

    def _forget_node(self, host: str) -> None:
        self._nodes.pop(host, None)
        self._clock.forget(host)

    def _check_skew(self) -> None:
        skew_s = self._clock.skew_s()
        if abs(skew_s) > SKEW_S and not self._warned_skew:
            way = "ahead of" if skew_s > 0 else "behind"
            self.tell("warning", "clock-skew", skew_s=skew_s, msg=f"this host's clock is {way} the others'")
        self._warned_skew = abs(skew_s) > SKEW_S

    # -- jobs ---------------------------------------------------------------------------------------------

    def _on_job(self, name: str, kv: KeyValue) -> None:
        known = self.jobs.get(name)
        if known is not None and known.rev == kv.mod_revision:
            return
        try:
            check_name(name)
            job = parse(name, kv.value)
        except (UnreadableJob, BadInput) as error:
            self.jobs.pop(name, None)
            if self._unreadable.get(name) != kv.mod_revision:
                self._unreadable[name] = kv.mod_revision
                self.tell("warning", "unreadable", key=kv.key.decode("utf-8", "replace"), msg=str(error))
            return
        self._unreadable.pop(name, None)
        new = Known(job, kv.mod_revision, job.ticks())
        if known is not None:
            new.has_floor, new.run, new.waiting, new.old = known.has_floor, known.run, known.waiting, known.old
        self.jobs[name] = new
        if not job.paused:
            self._plan(name, new, int(self._clock.now()))

    def _plan(self, name: str, known: Known, after: int) -> None:
        following = known.schedule.next_after(after)
        if following is not None:
            heapq.heappush(self._ticks, (following, next(self._serial), name, known.rev, 0))

    def _on_request(self, name: str, tick: int, kv: KeyValue, *, live: bool) -> None:
        known = self.jobs.get(name)
        if known is None or (not live and tick <= self._since):
            return
        heapq.heappush(self._ticks, (tick, next(self._serial), name, known.rev, kv.create_revision))

    def _run_ticks(self) -> None:
        """Take up what is due now."""
        while self._ticks and self._ticks[0][0] <= self._clock.now():
            tick, _, name, rev, now_rev = heapq.heappop(self._ticks)
            known = self.jobs.get(name)
            if known is None or (known.rev != rev and not now_rev):
                continue  # removed, or changed: planned anew by that
            following = known.schedule.next_after(tick)
            late_at = tick + known.job.late_after_s(tick, None if now_rev else following)
            if not now_rev:
                if late_at < self._clock.now():
                    self._pass_over(name, known, tick)
                    continue
                if following is not None:
                    heapq.heappush(self._ticks, (following, next(self._serial), name, known.rev, 0))
            self._consider(Due(known.job, known.rev, tick, late_at, os.urandom(8).hex(), now_rev))

    def _pass_over(self, name: str, known: Known, first: int) -> None:
        """Go on after ticks that are too late already: the machine was asleep, say."""
        now = self._clock.now()
        last, following, steps = first, known.schedule.next_after(first), 1
        while following is not None and steps < _STEPS:
            after = known.schedule.next_after(following)
            if following + known.job.late_after_s(following, after) >= now:
                break
            last, following, steps = following, after, steps + 1
        else:
            following = known.schedule.next_after(max(last, int(now)))
        if following is not None:
            heapq.heappush(self._ticks, (following, next(self._serial), name, known.rev, 0))
        self._missed(name, first, last, steps)

    def _missed(self, name: str, first: int, last: int, ticks: int) -> None:
        """Count and say once what nobody has claimed in time."""
        limit_s = self._connection.command_timeout_s

        def then(claimed: int) -> None:
            missed = ticks - claimed
            if missed > 0:
                self.counts["missed", ""] += missed
                self.tell("warning", "missed", job=name, tick=rfc3339(first), until=rfc3339(last), ticks=missed)

        def failed(_: StoreError) -> None:
            self._later(_PAUSE_MOST_S, lambda: self._missed(name, first, last, ticks))

        self._work(lambda: self._claims.claimed_between(name, first, last, timeout_s=limit_s), then, failed)

    # -- claiming -----------------------------------------------------------------------------------------

    def _consider(self, due: Due) -> None:
        """A tick is due: wait for our turn at it."""
        if self._draining or due.id in self._claimed:
            return
        self._dues[due.id] = due
        hosts = {host for host, fields in self._nodes.items() if fields.get("draining") is not True} | {self._me.host}
        turn = order(hosts, *due.id).index(self._me.host)
        if abs(self._clock.skew_s()) > SKEW_S:
            turn = max(turn, 1)
        if turn:
            self._later(turn * _TURN_S, lambda: self._attempt(due))
        else:
            self._attempt(due)

    def _on_claim(self, name: str, tick: int, kv: KeyValue) -> None:
        """Somebody claimed a tick, we perhaps."""
        id_ = (name, tick)
        self._claimed[id_] = None
        if len(self._claimed) > 20000:
            for old in list(self._claimed)[:10000]:
                del self._claimed[old]
        due = self._dues.get(id_)
        if due is not None and not self._claims.is_ours(kv, due):
            self._drop(due)
        known = self.jobs.get(name)
        if known is not None and known.job.overlap == "replace":
            self._replace(known, tick)

    def _replace(self, known: Known, tick: int) -> None:
        """A newer tick of the job is claimed: what runs or waits here gives way."""
        name = known.job.name
        reason = f"replaced by the tick of {rfc3339(tick)}"
        for one in self._live.values():
            entry = one.entry
            if entry.name == name and entry.run_rev is not None and not one.over and entry.tick < tick:
                self._end_run(one, reason)
        if known.waiting is not None and known.waiting[0].tick < tick:
            due, rev = known.waiting
            known.waiting = None
            self._record(Entry(due.run, name, due.tick, rev), "skipped", reason)

    def _end_run(self, one: Live, reason: str) -> None:
        """Have a run ended that perhaps only queues for its slot yet."""
        if one.slot is not None and one.ordered_at is None:
            self._over(one, Result(self._me.host, "skipped", reason=reason))
        else:
            self._warden.send(Kill(one.entry.run, reason))

    def _drop(self, due: Due) -> None:
        self._dues.pop(due.id, None)
        self._held_back.pop(due.id, None)

    def _ready(self) -> bool:
        """Whether a run could be started now: registered, with room, and the supervisor awake."""
        room = len(self._runs()) + self._claiming < self._options.max_runs
        return self._node is not None and room and self._is_answered()

    def _runs(self) -> list[Live]:
        return [one for one in self._live.values() if not one.over]

    def _is_answered(self) -> bool:
        unanswered = [one.ordered_at for one in self._runs() if one.ordered_at]
        if unanswered and clock.now() - min(unanswered) > _UNANSWERED_S:
            return False
        supervisor = tree.stat(os.getppid())
        return supervisor is not None and supervisor.state not in "Tt"

    def _attempt(self, due: Due) -> None:
        """Claim a tick, unless another has, or hold it back until we can."""
        known = self.jobs.get(due.job.name)
        if self._dues.get(due.id) is not due:
            return
        if self._draining or known is None or (known.rev != due.job_rev and not due.now_rev):
            self._drop(due)
            return
        if self._clock.now() > due.late_at:
            self._too_late(due)
            return
        if not self._ready() or self._node is None:
            if not self._held_back:
                self._later(0.2, self._try_held_back)
            self._held_back[due.id] = due
            return
        if due.now_rev:
            due.job, due.job_rev = known.job, known.rev
        node, key = self._node.node, self._options.key
        now = self._clock.own()
        busy = known.run if due.job.exclusive else None
        limit_s = max(0.2, min(self._connection.command_timeout_s, due.late_at - self._clock.now()))
        has_floor = known.has_floor
        running = None if busy is None else fields_of(busy.value).get("tick")
        newer = isinstance(running, int) and running > due.tick
        if key is not None and not due.job.is_signed_by(key):
            why = "the job is not signed" if not due.job.is_signed else "the job's signature is not by our key"
            self._claim(due, "skip", None, why, node, now, has_floor, limit_s)
        elif busy is None:
            self._claim(due, "run", None, "", node, now, has_floor, limit_s)
        elif due.job.overlap == "replace" and not newer:
            self._claim(due, "wait", busy, "", node, now, has_floor, limit_s)
        else:
            host = fields_of(busy.value).get("host")
            why = f"the run of {rfc3339(running)} on {host} is alive" if isinstance(running, int) else "a run is alive"
            self._claim(due, "skip", busy, why, node, now, has_floor, limit_s)

    def _claim(
        self,
        due: Due,
        how: str,
        busy: KeyValue | None,
        why: str,
        node: Any,
        now: float,
        has_floor: bool,
        limit_s: float,
    ) -> None:
        def work() -> Outcome:
            claims, me = self._claims, self._me
            if how == "skip":
                return claims.claim_to_skip(due, node, me, now, busy, why, has_floor=has_floor, timeout_s=limit_s)
            if busy is not None:
                return claims.claim_to_wait(due, node, me, now, busy, has_floor=has_floor, timeout_s=limit_s)
            outcome = claims.claim(due, node, me, now, has_floor=has_floor, timeout_s=limit_s)
            if isinstance(outcome, Won):
                # safe before it can start
                self._ledger.write(Entry(due.run, due.job.name, due.tick, outcome.rev, outcome.run_rev))
            return outcome

        self._claiming += 1
        self._work(
            work, lambda o: self._on_outcome(due, how, why, node.number, o), lambda e: self._on_claim_failed(due, e)
        )

    def _on_outcome(self, due: Due, how: str, why: str, number: int, outcome: Outcome) -> None:
        self._claiming -= 1
        known = self.jobs.get(due.job.name)
        label = {"job": due.job.name, "tick": rfc3339(due.tick)}
        match outcome:
            case Won(rev, lease, run_rev):
                self._drop(due)
                self.counts["claims", "won"] += 1
                if how == "skip":
                    self.counts["runs", "skipped"] += 1
                    self.tell("info", "skipped", **label, reason=why)
                elif how == "wait":
                    self.tell("info", "waiting", **label, msg="the run before it is being ended")
                    self._wait_for_run(due, rev)
                elif due.job.exclusive and run_rev is None:
                    self._record(Entry(due.run, due.job.name, due.tick, rev), "skipped", "its run key is gone")
                else:
                    self._launch(due, Entry(due.run, due.job.name, due.tick, rev, run_rev), lease, number)
            case Taken():
                self._drop(due)
                self.counts["claims", "lost"] += 1
            case Busy(run):
                if known is not None:
                    known.run = run
                self._attempt(due)
            case Again(has_floor):
                if known is not None:
                    known.has_floor = has_floor
                self._attempt(due)
            case NodeGone():
                self._held_back[due.id] = due  # the session or the watch tells that we are not registered any more

    def _on_claim_failed(self, due: Due, error: StoreError) -> None:
        self._claiming -= 1
        due.unclear = due.unclear or isinstance(error, Unreachable)
        due.pause_s = min(2 * due.pause_s or _PAUSE_S, _PAUSE_MOST_S)
        if not isinstance(error, Unreachable):
            self.tell("warning", "claim-failed", job=due.job.name, tick=rfc3339(due.tick), msg=str(error))
        self._later(due.pause_s, lambda: self._attempt(due))

    def _too_late(self, due: Due) -> None:
        """Its time has passed without an answer: if a claim was made all the same, it is recorded as skipped."""
        self._drop(due)
        if not due.unclear:
            self._missed(due.job.name, due.tick, due.tick, 1)
            return

        def then(claim: KeyValue | None) -> None:
            if claim is not None and self._claims.is_ours(claim, due):
                entry = Entry(due.run, due.job.name, due.tick, claim.create_revision)
                self._record(entry, "skipped", "etcd confirmed the claim too late")
            elif claim is None:
                self._missed(due.job.name, due.tick, due.tick, 1)

        limit_s = self._connection.command_timeout_s
        self._work(
            lambda: self._claims.whose(due, timeout_s=limit_s),
            then,
            lambda _: self._later(_PAUSE_MOST_S, lambda: self._too_late(due)),
        )

    def _try_held_back(self) -> None:
        """What could not be claimed a moment ago."""
        held, self._held_back = self._held_back, {}
        for due in held.values():
            self._attempt(due)

    # -- waiting for the run before (replace) -------------------------------------------------------------

    def _wait_for_run(self, due: Due, rev: int) -> None:
        known = self.jobs.get(due.job.name)
        if known is None:
            self._record(Entry(due.run, due.job.name, due.tick, rev), "skipped", "the job was removed")
            return
        if known.waiting is not None:
            older, older_rev = sorted((known.waiting, (due, rev)), key=lambda one: one[0].tick)[0]
            self._record(Entry(older.run, older.job.name, older.tick, older_rev), "skipped", "a newer tick waits")
            if older is due:
                return
        known.waiting = (due, rev)
        self._replace(known, due.tick)
        self._later(max(0.0, due.late_at - self._clock.now()), lambda: self._waited_too_long(due))
        if known.run is None:
            self._take_run(known)

    def _waited_too_long(self, due: Due) -> None:
        for known in self.jobs.values():
            if known.waiting is not None and known.waiting[0] is due:
                rev = known.waiting[1]
                known.waiting = None
                self._record(
                    Entry(due.run, due.job.name, due.tick, rev), "skipped", "the run before it did not end in time"
                )

    def _take_run(self, known: Known) -> None:
        if known.waiting is None or self._node is None:
            return
        due, rev = known.waiting
        node, limit_s = self._node.node, self._connection.command_timeout_s

        def work() -> Outcome:
            outcome = self._claims.take_run(due, rev, node, self._me, timeout_s=limit_s)
            if isinstance(outcome, Won):
                self._ledger.write(Entry(due.run, due.job.name, due.tick, rev, outcome.run_rev))
            return outcome

        def then(outcome: Outcome) -> None:
            waits = known.waiting is not None and known.waiting[0] is due
            match outcome:
                case Won(_, lease, run_rev):
                    known.waiting = None if waits else known.waiting
                    entry = Entry(due.run, due.job.name, due.tick, rev, run_rev)
                    if waits:
                        self._launch(due, entry, lease, node.number)
                    else:
                        self._record(entry, "skipped", "a newer tick waits")
                case Busy(run) if waits:
                    known.run = run
                    if run is None:
                        self._take_run(known)
                case Taken(why) if waits:
                    known.waiting = None
                    self._record(Entry(due.run, due.job.name, due.tick, rev), "skipped", why)
                case _:
                    self._later(_PAUSE_S, lambda: self._take_run(known))

        self._work(work, then, lambda _: self._later(_PAUSE_S, lambda: self._take_run(known)))

    def _on_run_key_gone(self, name: str, revision: int) -> None:
        """The run key was deleted at this revision: the next may have it; a run of ours had it no longer by then."""
        for one in self._runs():
            if one.entry.name == name and one.entry.run_rev is not None and one.entry.run_rev < revision:
                self._warden.end(one.entry.run, "its run key is gone: deleted by hand")
        known = self.jobs.get(name)
        if known is not None and known.run is not None and known.run.create_revision < revision:
            known.run = None
        if known is not None and known.waiting is not None:
            self._take_run(known)

    # -- runs ---------------------------------------------------------------------------------------------

    def _launch(self, due: Due, entry: Entry, lease: int, number: int) -> None:
        """The tick is ours: get its slot if it needs one, then have it started."""
        job = due.job
        one = self._live[entry.run] = Live(entry, job, number if job.exclusive else None)
        hold = {
            "CONCH_REV": str(entry.run_rev or entry.rev),
            "CONCH_LEASE": f"{lease:x}",
            "CONCH_HOLD_KEY": self._keys.cron("fire", job.name, entry.tick),
        }
        if job.exclusive and self._node is not None:
            hold["CONCH_LEASE"] = f"{self._node.node.lease:x}"
            hold["CONCH_HOLD_KEY"] = self._keys.cron("run", job.name)
        holds = [] if one.node is None else [one.node]
        if job.semaphore is None:
            self._order(one, due, holds, hold)
            return
        slot_number = self._new_number()
        until = clock.now() + job.run_ttl_s
        one.ends_by = until

        def held(message: Held) -> None:
            in_slot = {
                "CONCH_REV": str(message.rev),
                "CONCH_LEASE": f"{message.lease:x}",
                "CONCH_HOLD_KEY": message.key,
            }
            self._ledger.write(replace(entry, slot=message.lease))
            entered = replace(entry, slot=message.lease)
            self._inbox.put(
                lambda: self._on_slot(one, due, entered, [*holds, slot_number], hold if job.exclusive else in_slot)
            )

        one.slot = Slot(
            self._store,
            self._connection,
            self._keys,
            self._warden,
            job.semaphore,
            number=slot_number,
            run=entry.run,
            ttl_s=self._options.ttl_s,
            kill_after_s=job.kill_after_s,
            wait_s=job.run_ttl_s,
            value=Holder(self._me.host, self._me.pid, rfc3339(self._clock.own()), " ".join(job.cmd)[:256]).encode(),
            held=held,
            failed=lambda why: self._inbox.put(lambda: self._on_no_slot(one, why)),
            tell=self.tell,
        )

    def _on_slot(self, one: Live, due: Due, entry: Entry, holds: list[int], hold: dict[str, str]) -> None:
        if not one.over:
            one.entry = entry
            self._order(one, due, holds, hold)

    def _on_no_slot(self, one: Live, why: str) -> None:
        if not one.over:
            one.slot = None
            self._over(one, Result(self._me.host, "timeout", reason=why))

    def _order(self, one: Live, due: Due, holds: list[int], hold: dict[str, str]) -> None:
        job, entry = due.job, one.entry
        now = clock.now()
        first_limit_s = job.run_ttl_s if one.ends_by is None else max(0.001, one.ends_by - now)
        start_by = now + due.late_at - self._clock.now() if one.ends_by is None else one.ends_by
        one.ordered_at = now
        self._warden.send(
            StartOrder(
                run=entry.run,
                label=f"{job.name} {rfc3339(entry.tick)}",
                command=list(job.cmd),
                environment={**job.env, **hold, "CONCH_NAME": job.name, "CONCH_TICK": str(entry.tick)},
                directory=job.cwd,
                holds=holds,
                start_by=start_by,
                first_limit_s=first_limit_s,
                limit_s=job.run_ttl_s,
                kill_after_s=job.kill_after_s,
                retries=job.retries,
                retry_delay_s=job.retry_delay_s,
            )
        )

    def _on_running(self, run: str) -> None:
        one = self._live.get(run)
        if one is None or one.ordered_at is None or one.ordered_at == 0.0:
            return
        one.ordered_at = 0.0  # answered
        lag_s = self._clock.own() - one.entry.tick
        self.lag_sum += lag_s
        for bound in LAGS_S:
            if lag_s <= bound:
                self.lag_counts[bound] += 1
        self.counts["lags", ""] += 1

    def _on_finished(self, message: Finished) -> None:
        one = self._live.get(message.run)
        if one is None or one.over:
            self._warden.send(Recorded(message.run))  # its end is in etcd, or soon will be
            return
        state = {"ended": "ok" if message.code == 0 else "failed", "unstarted": "skipped"}.get(
            message.outcome, message.outcome
        )
        started = message.started or None
        result = Result(
            self._me.host, state, message.code, started, message.duration_s, message.attempt, message.reason
        )
        self._over(one, result, report=True)

    def _record(self, entry: Entry, state: str, reason: str) -> None:
        """A claimed tick is over that never ran here."""
        one = self._live[entry.run] = Live(entry, None)
        self._over(one, Result(self._me.host, state, reason=reason))

    def _over(self, one: Live, result: Result, *, report: bool = False) -> None:
        """Write the end down, then deliver it; give back what only this run held."""
        one.over = True
        one.entry = ended(one.entry, result)
        self.counts["runs", result.state] += 1
        run = one.entry.run
        if not report:
            self.tell(
                "info",
                "run-end",
                run=f"{one.entry.name} {rfc3339(one.entry.tick)}",
                state=result.state,
                reason=result.reason,
            )
        if one.slot is not None:
            one.slot.release()
            self._warden.send(Lost(one.slot.number, "given back"))
        self._give_old_leases_back()

        def safe() -> None:
            self._ledger.write(one.entry)
            if report:
                self._warden.send(Recorded(run))

        self._deliver(one, safe)
        self._try_held_back()

    # -- results ------------------------------------------------------------------------------------------

    def _deliver(self, one: Live, before: Callable[[], None] = lambda: None) -> None:
        entry, result = one.entry, one.entry.result
        assert result is not None  # noqa: S101 - only what is over is delivered
        known = self.jobs.get(entry.name)
        old: list[int] = []
        if known is not None:
            old, known.old = sorted(known.old)[:TRIM], set()
        has_floor = known is not None and known.has_floor
        now, limit_s = self._clock.own(), self._connection.command_timeout_s

        def work() -> Delivered:
            before()
            return self._claims.deliver(
                entry.name, entry.tick, result, entry.run_rev, old, now, has_floor=has_floor, timeout_s=limit_s
            )

        self._work(work, lambda d: self._on_delivered(one, d), lambda e: self._on_not_delivered(one, e))

    def _on_delivered(self, one: Live, delivered: Delivered) -> None:
        entry = one.entry
        self._ledger.delivered(entry.run)
        self._live.pop(entry.run, None)
        known = self.jobs.get(entry.name)
        if known is not None:
            known.old |= set(delivered.old)
            known.has_floor = delivered.has_floor
            if known.run is not None and known.run.create_revision == entry.run_rev:
                known.run = None
                if known.waiting is not None:
                    self._take_run(known)
        self._end_if_released()

    def _on_not_delivered(self, one: Live, error: StoreError) -> None:
        self.tell("warning", "not-delivered", run=f"{one.entry.name} {rfc3339(one.entry.tick)}", msg=str(error))
        one.pause_s = min(2 * one.pause_s, 10.0)
        self._later(one.pause_s, lambda: self._deliver(one))

    # -- the end ------------------------------------------------------------------------------------------

    def _on_drain(self) -> None:
        self._draining = True
        self._dues.clear()
        self._held_back.clear()
        for known in self.jobs.values():
            if known.waiting is not None:
                due, rev = known.waiting
                known.waiting = None
                self._record(Entry(due.run, due.job.name, due.tick, rev), "skipped", "conchd is stopping")
        for one in self._runs():
            if one.slot is not None and one.ordered_at is None:
                self._over(one, Result(self._me.host, "skipped", reason="conchd is stopping"))
        self._tell_time()

    def _on_release(self) -> None:
        """The supervisor has nothing left: end when all results are in etcd, as far as it answers."""
        if not self._releasing:
            self._releasing = True
            self._draining = True
            self._later(self._connection.command_timeout_s, self._release)
            self._end_if_released()

    def _end_if_released(self) -> None:
        if self._releasing and not self._live:
            self._release()

    def _release(self) -> None:
        if self._released:
            return
        self._released = True
        left = len(self._live)
        reason = f"{left} results are kept on disk until etcd takes them" if left else ""
        node, self._node = self._node, None

        def work() -> None:
            if node is not None:
                node.session.stop()
                self._store.revoke(node.node.lease, timeout_s=min(1.0, self._connection.command_timeout_s))

        def end(_: object) -> None:
            self._warden.send(Released(reason))
            self.ended.set()

        self._work(work, end, end)

    def abandon(self) -> None:
        """The supervisor is dead and all that it ran is gone: give back what is held; from the main thread."""
        leases = [one.slot.lease for one in list(self._live.values()) if one.slot is not None] + [
            *self._old_leases.values()
        ]
        if self._node is not None:
            self._node.session.stop()
            leases.append(self._node.node.lease)
        for lease in leases:
            try:
                if lease is not None:
                    self._store.revoke(lease, timeout_s=self._connection.command_timeout_s)
            except StoreError:
                return  # they expire by themselves

    # -- what it looks like -------------------------------------------------------------------------------

    def healthy(self) -> str:
        """Why a tick could not be claimed now; empty if it could."""
        if self._draining:
            return "draining"
        if self._node is None:
            return "not registered in etcd"
        session = self._node.session
        if self._node.failing or clock.now() >= session.deadline:
            return "etcd does not confirm our lease"
        if not self._watching:
            return "etcd's news do not arrive"
        if not self._is_answered():
            return "the supervisor is stopped"
        return ""

    def lease_left_s(self) -> float:
        """How long our registration lasts without a renewal; 0 without one."""
        return max(0.0, self._node.session.deadline - clock.now()) if self._node is not None else 0.0

    def upcoming(self) -> Iterator[tuple[Job, int | None]]:
        """The jobs, and the next tick of each."""
        now = int(self._clock.now())
        for known in self.jobs.values():
            yield known.job, None if known.job.paused else known.schedule.next_after(now)

    def running(self) -> list[Live]:
        """The runs of this daemon."""
        return self._runs()


# Upper bounds of the lag histogram, in seconds.
LAGS_S = (0.005, 0.01, 0.02, 0.05, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


def _raise(defect: Exception) -> None:
    raise defect


__all__ = ["LAGS_S", "Lost", "Options", "Scheduler"]
