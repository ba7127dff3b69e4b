"""The scheduler: the news it goes by, its beginning and its end. Its layers below have the rest."""

import threading
from collections.abc import Iterator, Sequence
from functools import partial

from conch.core import clock
from conch.core.clock import ANSWERS_WITHIN_S
from conch.core.link import Drain, Finished, Message, Release, Released, Running
from conch.cron.actor import PAUSE_MOST_S, Base
from conch.cron.job import Job
from conch.cron.ledger import ended
from conch.cron.records import Result, tick_of
from conch.cron.runs import Live
from conch.cron.sweeping import Sweeping
from conch.errors import shortage
from conch.etcd.patience import first_answer
from conch.etcd.store import Compacted, Event, KeyValue, Range, RangeResult, StoreError, Watch
from conch.keys import prefix_end
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
        self._released = False

    def adopt(self, live: Sequence[str], over: Sequence[str]) -> None:
        """The runs of the ledger are live, about to be reported, delivered at last, or lost."""
        for entry in self._ledger.entries:
            one = self._live[entry.run] = Live(entry, over=entry.result is not None)
            if entry.result is None and entry.run not in (*live, *over):
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
        while True:
            try:
                if watched is None:
                    self._outdated.clear()
                    watched = self._list(self._limit_s, self.ask(self._with_run_keys, None))
                self._inbox.put(lambda: self._on_watching(on=True))
                self._news = self._store.watch(watched, tell=self._on_watch_news)
                if self._outdated.is_set():
                    self._news.cancel()
                for events in self._news:
                    self._inbox.put(partial(self._on_events, events))
            except Compacted:
                pass  # what went meanwhile is noticed by its absence
            except StoreError as error:
                self.tell("warning", "watch-failed", msg=str(error))
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

    def _on_watch_news(self, event: str) -> None:
        self.tell("warning", event)
        self._inbox.put(lambda: self._on_watching(on=event == "watch-resumed"))

    def _on_watching(self, *, on: bool) -> None:
        if self._interrupted:
            self._deaf_until = clock.now() + _DEAF_S  # events that were held up say the wrong time
        self._watching = on
        self._interrupted = not on

    def _on_list(self, listed: Sequence[tuple[Range, RangeResult]], running: set[str]) -> None:
        there = {kv.key: kv for _, found in listed for kv in found.kvs}
        revision = min(found.head.revision for _, found in listed)
        for name in list(self.jobs):
            if self._keys.cron("job", name).encode() not in there:
                self._forget_job(name)
        for name in {one.entry.name for one in self._runs()} | self.jobs.keys():
            run, known = there.get(self._keys.cron("run", name).encode()), self.jobs.get(name)
            if run is None and known is not None and known.run is not None:
                known.run = None
                self._take_run(name)
            for one in self._runs():
                held = one.entry.run_rev
                # its key was made before the listing; a revision tells that, unless etcd's went back
                before = held is not None and (held <= revision or one.entry.run in running)
                if one.entry.name == name and before and (run is None or run.create_revision != held):
                    self._end_without_key(one)
        for host in list(self._nodes):
            if self._keys.node(host).encode() not in there:
                self._forget_node(host)
        self._keep_requests(there)
        for what, found in listed:
            if what.key != self._keys.cron("fire").encode():
                for kv in found.kvs:
                    self._on_key(kv, live=False)

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
        """A key was written. Anyone may write anything: what cannot be made sense of is reported, and that is all."""
        try:
            self._take_in(kv, live=live)
        except (ValueError, TypeError, ArithmeticError, RecursionError) as error:
            self.tell("warning", "unreadable", key=kv.key.decode("utf-8", "replace"), msg=str(error))
        except (OSError, MemoryError) as error:
            if not is_short(error):
                raise
            # as when a job's zone cannot be opened just now
            self.tell("warning", "postponed", key=kv.key.decode("utf-8", "replace"), msg=shortage(error))
            if not self._relisting:
                self._relisting = True
                self._later(PAUSE_MOST_S, self._list_again)

    def _take_in(self, kv: KeyValue, *, live: bool) -> None:
        kind, path = self._split(kv.key)
        at = tick_of(kv.key)
        if at is not None and path != f"{at[0]}/{at[1]}":
            at = None  # deeper than any key of ours
        match kind:
            case "job":
                self._on_job(path, kv)
            case "fire" if at is not None and kv.mod_revision != kv.create_revision:
                pass  # an old one, kept for longer
            case "fire" if at is not None:
                self._on_claim(at[0], at[1], kv)
            case "now" if at is not None:
                self._on_request(at[0], at[1], kv)
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
            if path in self.jobs:
                self.tell("info", "job-removed", job=path)
                self._forget_job(path)
        elif kind == "fire" and at is not None:
            known = self.jobs.get(at[0])
            if known is not None:
                known.old.discard(at[1])
        elif kind == "now" and at is not None:
            self._forget_request(*at)
        elif kind == "run":
            self._on_run_key_gone(path, revision)
        elif kind == "node":
            self._forget_node(path)

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
        if self._releasing and not self._live and not self._busy_claiming:
            self._release()

    def _release(self) -> None:
        if self._released:
            return
        self._released = True
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
                    self._store.revoke(lease, timeout_s=self._limit_s)
            except StoreError:
                continue  # it expires by itself

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
