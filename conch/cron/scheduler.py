"""The scheduler: the news it goes by, its beginning and its end. Its layers below have the rest."""

import dataclasses
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial

from conch.core import clock
from conch.core.deadline import ANSWERS_WITHIN_S
from conch.core.messages import Drain, Finished, Message, Release, Released, Reload, Running
from conch.core.origin import Origin, origin_of
from conch.cron.actor import PAUSE_MOST_S, SLICE_S, Base
from conch.cron.closing import merged
from conch.cron.faults import Lasting
from conch.cron.job import Job
from conch.cron.run_log import Entry, ended
from conch.cron.runs import ActiveRun
from conch.cron.sweeping import Sweeping
from conch.cron.values import Result
from conch.errors import shortage
from conch.etcd.patience import first_answer
from conch.etcd.store import Compacted, Event, KeyValue, Range, RangeResult, StoreError, Watch
from conch.keys import JobKey, NodeKey, TickKey, prefix_end
from conch.limits import is_short
from conch.record import replace

_KINDS = ("job", "fire", "now", "run")
_RETRY_S = 1.0
# After an interruption of the watch.
_DEAF_S = 5.0


class Scheduler(Sweeping):
    """Claims ticks, orders runs, records their ends. One watch tells it all news."""

    def __init__(self, base: Base) -> None:
        super().__init__(base)
        self._first = base.first
        self._watching = self._interrupted = False
        self._news: Watch | None = None
        self._outdated = threading.Event()  # what is listed, or being listed, is to be listed again
        self._relisting = self._was_registered = False
        self._unproved: list[Entry] = []
        self._listed = False  # who lives is known
        self._released = False
        self._arrived: dict[str, KeyValue] = {}  # jobs that are still to be read, as etcd has them
        self._arrives_until = 0.0

    def adopt(self, live: Sequence[str], over: Sequence[str], dead: Collection[str] = ()) -> None:
        """The runs of the ledger are live, about to be reported, delivered at last, or lost, as those of the dead.

        The others are of another boot: lost once the registration that they ran under is gone.
        """
        for entry in self._ledger.entries:
            if entry.result is None and entry.run not in (*live, *over, *dead):
                self._unproved.append(entry)
                continue
            one = self._live[entry.run] = ActiveRun(entry, over=entry.result is not None)
            if entry.run in dead:
                self.tell("warning", "run-lost", run=one.label)
                one.over = True
                one.entry = ended(entry, Result(self._me.host, "lost", reason="conchd died while it ran"))
                self._ledger.write(one.entry)
                if entry.slot is not None:
                    self._revoke(entry.slot)

    def start(self) -> None:
        """List what is there and go on from it; called before `run`.

        Raises `StoreError` if etcd must answer at the start and does not; else it is asked until it does.
        """
        watched = None
        if self._first:
            keys = self._with_run_keys()
            within_s = max(ANSWERS_WITHIN_S, self._connection.dial_timeout_s)
            watched = first_answer(lambda limit_s: self._list(limit_s, keys), self._connection, within_s=within_s)
        threading.Thread(target=self._watch, args=(watched,), name="watch", daemon=True).start()
        threading.Thread(target=self._watch_clock, name="clock", daemon=True).start()
        for one in list(self._live.values()):
            if one.over:
                self._deliver(one)
        self._register()
        self._sweep_later()

    def _watched(self) -> list[Range]:
        prefixes = [self._keys.cron(kind).encode() for kind in _KINDS] + [self._keys.node().encode()]
        return [Range(prefix, prefix_end(prefix)) for prefix in prefixes]

    def _with_run_keys(self) -> set[str]:
        return {one.entry.run for one in self._runs() if one.entry.run_rev is not None}

    def _list(self, timeout_s: float, running: set[str]) -> list[tuple[Range, int]]:
        """Have all that is there taken in; what to watch, and from which revisions on.

        `running` are the runs that have run keys by now.
        """
        listed = []
        for what in self._watched():
            # claims are of interest only as they are made
            limit = 1 if what.key == self._keys.cron("fire").encode() else 0
            listed.append((what, self._store.range(replace(what, limit=limit), timeout_s=timeout_s)))
        self._inbox.put(partial(self._on_list, listed, running))
        return [(what, found.head.revision + 1) for what, found in listed]

    def _watch(self, watched: list[tuple[Range, int]] | None) -> None:
        fault = Lasting("watch-failed", self.tell)
        while True:
            try:
                if watched is None:
                    self._outdated.clear()
                    watched = self._list(self._limit_s, self.ask(self._with_run_keys, None))
                fault.over()
                self._inbox.put(lambda: self._on_watching(on=True))
                self._news = self._store.watch(watched, tell=self._on_watch_news)
                if self._outdated.is_set():
                    self._news.cancel()
                for events in self._news:
                    self._inbox.put(partial(self._on_events, events))
            except Compacted:
                pass  # what went meanwhile is noticed by its absence
            except StoreError as error:
                fault.failed(msg=str(error))
                self._inbox.put(lambda: self._on_watching(on=False))
            threading.Event().wait(_RETRY_S)
            watched = None

    def _list_again(self) -> None:
        """Have everything listed and watched anew."""
        self._relisting = False
        self._outdated.set()
        if self._news is not None:
            self._news.cancel()

    def _on_registration(self) -> None:
        super()._on_registration()
        if self._was_registered:
            self._list_again()  # it may be another etcd by now, and have grown past what the watch goes on from
        self._was_registered = True
        self._conclude_unproved()

    def _conclude_unproved(self) -> None:
        """Runs of an earlier boot are lost, unless it lives, as where this host is a copy: then it is registered.

        Nothing that they hold is given back: it goes with the lease that it is held by.
        """
        if self._node is None or self._releasing or not self._listed:
            return
        gone = [entry for entry in self._unproved if entry.origin not in self._living()]
        if gone:
            # it may only be about to register anew
            self._later(2 * self._ttl_s, partial(self._conclude, gone))

    def _living(self) -> list[Origin]:
        return [made_by for fields in self._nodes.values() if (made_by := origin_of(fields.get("origin")))]

    def _conclude(self, entries: Sequence[Entry]) -> None:
        if self._node is None or self._releasing:
            return
        living = self._living()
        for entry in entries:
            if entry in self._unproved and entry.origin not in living:
                self._unproved.remove(entry)
                one = self._live[entry.run] = ActiveRun(dataclasses.replace(entry, run_rev=None, slot=None))
                self._over(one, Result(self._me.host, "lost", reason="conchd died while it ran"))

    def _forget_node(self, host: str) -> None:
        super()._forget_node(host)
        self._conclude_unproved()

    def _on_watch_news(self, event: str) -> None:
        self.tell("warning", event)
        self._inbox.put(lambda: self._on_watching(on=event == "watch-resumed"))

    def _on_watching(self, *, on: bool) -> None:
        if self._interrupted:
            self._deaf_until = clock.now() + _DEAF_S  # events that were held up say the wrong time
        self._watching = on
        self._interrupted = not on

    def _on_list(self, listed: Sequence[tuple[Range, RangeResult]], running: set[str]) -> None:
        self._arrives_until = clock.now() + SLICE_S
        there = {kv.key: kv for _, found in listed for kv in found.kvs}
        revision = min(found.head.revision for _, found in listed)
        for name in [*self.jobs, *self._arrived]:
            if self._keys.cron("job", name).encode() not in there:
                self._forget_job(name)
        runs: dict[str, list[ActiveRun]] = {name: [] for name in self.jobs}
        for one in self._runs():
            runs.setdefault(one.entry.name, []).append(one)
        for name, of_job in runs.items():
            run, known = there.get(self._keys.cron("run", name).encode()), self.jobs.get(name)
            if run is None and known is not None and known.run is not None:
                known.run = None
                self._take_run(name)
            for one in of_job:
                held = one.entry.run_rev
                # its key was made before the listing; a revision tells that, unless etcd's went back
                before = held is not None and (held <= revision or one.entry.run in running)
                if before and (run is None or run.create_revision != held):
                    self._end_without_key(one)
        for host in list(self._nodes):
            if self._keys.node(host).encode() not in there:
                self._forget_node(host)
        self._keep_requests(there)
        for what, found in listed:
            if what.key != self._keys.cron("fire").encode():
                for kv in found.kvs:
                    self._on_key(kv, live=False)
        if not self._listed:
            self._listed = True
            self._meet_others()
        self._conclude_unproved()

    def _on_events(self, events: Sequence[Event]) -> None:
        self._arrives_until = clock.now() + SLICE_S
        for event in events:
            if event.deleted:
                self._on_gone(event.kv.key, event.kv.mod_revision)
            else:
                self._on_key(event.kv, live=True)

    def _on_key(self, kv: KeyValue, *, live: bool) -> None:
        """A key was written. Anyone may write anything: what cannot be made sense of is reported, and that is all."""
        self._unless_odd(kv, lambda: self._take_in(kv, live=live))

    def _unless_odd(self, kv: KeyValue, take: Callable[[], None]) -> None:
        try:
            take()
        except (ValueError, TypeError, ArithmeticError, RecursionError) as error:
            self._report_unreadable(kv.key, str(error))
        except (OSError, MemoryError) as error:
            if not is_short(error):
                raise
            # as when a job's zone cannot be opened just now
            self.tell("warning", "postponed", key=kv.key.decode("utf-8", "replace"), msg=shortage(error))
            if not self._relisting:
                self._relisting = True
                self._later(PAUSE_MOST_S, self._list_again)

    def _take_in(self, kv: KeyValue, *, live: bool) -> None:
        match self._keys.parse(kv.key):
            case JobKey(kind="job", name=name):
                self._arrive(name, kv)
            case TickKey(kind="fire") if kv.mod_revision != kv.create_revision:
                pass  # an old one, kept for longer
            case TickKey(kind="fire", name=name, tick=tick):
                self._on_claim(name, tick, kv)
            case TickKey(kind="now", name=name, tick=number):
                self._on_request(name, number, kv)
            case JobKey(kind="run", name=name):
                if not kv.lease:
                    self._report_unreadable(kv.key, "a run key without a lease keeps its job from running")
                known = self.jobs.get(name)
                if known is not None:  # else a claim finds it: the job is gone, or we hear of it next
                    known.run = kv
            case NodeKey(host=host):
                self._on_node(host, kv, live=live)
            case _:
                self._report_unreadable(kv.key, "no key of ours")

    def _arrive(self, name: str, kv: KeyValue) -> None:
        """A job was written. It is read now, unless there are so many that ticks would have to wait for it."""
        if not self._chores and clock.now() < self._arrives_until:
            self._on_job(name, kv)
            return
        if name not in self._arrived:
            self._chores.append(partial(self._read_arrived, name))
        self._arrived[name] = kv

    def _read_arrived(self, name: str) -> None:
        kv = self._arrived.pop(name, None)
        if kv is not None:
            self._unless_odd(kv, lambda: self._on_job(name, kv))

    def _hear_of_job(self, name: str, kv: KeyValue) -> None:
        self._unless_odd(kv, lambda: self._on_job(name, kv))

    def _forget_job(self, name: str) -> None:
        self._arrived.pop(name, None)
        super()._forget_job(name)

    def _on_gone(self, key: bytes, revision: int) -> None:
        match self._keys.parse(key):
            case JobKey(kind="job", name=name):
                if name in self.jobs:
                    self.tell("info", "job-removed", job=name)
                self._forget_job(name)
            case TickKey(kind="fire", name=name, tick=tick) if name in self.jobs:
                self.jobs[name].old.discard(tick)
            case TickKey(kind="now", name=name, tick=number):
                self._forget_request(name, number)
            case JobKey(kind="run", name=name):
                self._on_run_key_gone(name, revision)
            case NodeKey(host=host):
                self._forget_node(host)
            case _:
                pass

    def _handle(self, message: Message) -> None:
        match message:
            case Running(run=run):
                self._on_running(run)
            case Finished():
                self._on_finished(message)
            case Drain():
                self._on_drain()
            case Release():
                self._on_release()
            case Reload():
                self._on_reload()
            case _:
                pass  # the warden's affair

    def _on_drain(self) -> None:
        self._draining = True
        for due in [*self._dues.values()]:
            if not due.trying:
                self._settle(due, "conchd is stopping")
        for known in self.jobs.values():
            if known.waiting is not None and not known.waiting[0].taking:
                self._stop_waiting(known, "conchd is stopping")
        for one in self._runs():
            if one.slot is not None and one.ordered_at is None:
                self._over(one, Result(self._me.host, "skipped", reason="conchd is stopping"))
        self._tell_time()

    def _on_release(self) -> None:
        """The supervisor has nothing left: end when all results are in etcd, as far as it answers."""
        if not self._releasing:
            self._releasing = True
            self._draining = True
            self._later(self._limit_s, self._release)
            self._end_if_released()

    def _end_if_released(self) -> None:
        if self._releasing and not self._live and not self._busy_claiming and not self._unclear:
            self._release()

    def _release(self) -> None:
        if self._released:
            return
        self._released = True
        self._tell_unasked()
        self._fault("missed", merge=merged).over()
        left = len(self._live)
        reason = f"{left} results are kept on disk until etcd takes them" if left else ""
        node, self._node = self._node, None
        going = self._slots_going

        def work() -> None:
            until = clock.now() + min(1.0, self._limit_s)
            for slot in going:
                slot.released.wait(max(0.0, until - clock.now()))
            if node is not None:
                node.session.stop()
                self._store.revoke(node.node.lease, timeout_s=min(1.0, self._limit_s))

        def end(_: object) -> None:
            self._watchdog.send(Released(reason))
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
                    self._store.revoke(lease, timeout_s=self._limit_s)
            except StoreError:
                continue  # it expires by itself

    def healthy(self) -> str:
        """Why a tick could not be claimed now; empty if it could."""
        if self._draining:
            return "draining"
        if self._clock.off:
            return self._why_clock_off()
        if self._node is None:
            return (
                f"not registered in etcd: {self._writes.reason}" if self._writes.is_open else "not registered in etcd"
            )
        session = self._node.session
        if self._node.failing or clock.now() >= session.deadline:
            return "etcd does not confirm our lease"
        refused = self._writes.reason or self._why_refused()
        if refused:
            return f"etcd takes no writes: {refused}"
        if not self._watching:
            return "etcd's news do not arrive"
        if not self._is_answered():
            return "the supervisor is stopped"
        return ""

    def lease_left_s(self) -> float:
        """How long our registration lasts without a renewal; 0 without one."""
        return max(0.0, self._node.session.deadline - clock.now()) if self._node is not None else 0.0

    def upcoming(self) -> Iterator[tuple[Job, int | None]]:
        """The jobs, and the next tick of each, as it is planned; None: none is."""
        for known in self.jobs.values():
            yield known.job, known.next_tick

    def running(self) -> list[ActiveRun]:
        """The runs of this daemon."""
        return self._runs()
