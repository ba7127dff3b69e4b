"""The scheduler: the news it goes by, its beginning and its end. Its layers below have the rest."""

import threading
from collections.abc import Iterator, Sequence
from functools import partial

from conch.core import clock
from conch.core.link import Drain, Finished, Message, Release, Released, Running
from conch.cron.actor import Base
from conch.cron.job import Job
from conch.cron.ledger import Entry, ended
from conch.cron.planning import Planning
from conch.cron.records import Result, tick_of
from conch.cron.runs import Live
from conch.etcd.store import Compacted, Event, KeyValue, Range, RangeResult, StoreError
from conch.holder import rfc3339
from conch.keys import prefix_end

_KINDS = ("job", "fire", "now", "run")
_RETRY_S = 1.0


class Scheduler(Planning):
    """Claims ticks, orders runs, records their ends. One watch tells it all news."""

    def __init__(self, base: Base) -> None:
        super().__init__(base)
        self._first = base.first
        self._watching = False
        self._released = False

    def start(self, live: Sequence[str], over: Sequence[str]) -> None:
        """List what is there and go on from it; the runs of the ledger are live, about to be reported, or lost.

        Called before `run`. Raises `StoreError` if etcd does not answer.
        """
        for entry in self._ledger.entries:
            self._live[entry.run] = Live(entry, over=entry.result is not None)
            if entry.result is None and entry.run not in (*live, *over):
                self.tell("warning", "run-lost", run=f"{entry.name} {rfc3339(entry.tick)}")
                result = Result(self._me.host, "lost", reason="conchd died while it ran")
                self._live[entry.run].entry = ended(entry, result)
                self._live[entry.run].over = True
                self._ledger.write(self._live[entry.run].entry)
                if entry.slot is not None:
                    self._revoke(entry.slot)
        timeout_s = self._connection.dial_timeout_s if self._first else self._limit_s
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
            threading.Event().wait(_RETRY_S)
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
                listed = [(one, self._store.range(one, timeout_s=self._limit_s)) for one in self._watched()]
            except StoreError as error:
                self.tell("warning", "retry", msg=str(error))
                threading.Event().wait(_RETRY_S)
                continue
            self._inbox.put(partial(self._on_list, listed))
            return [(one, found.head.revision + 1) for one, found in listed]

    def _on_list(self, listed: Sequence[tuple[Range, RangeResult]]) -> None:
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
            self._later(self._limit_s, self._release)
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
                return  # they expire by themselves

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
