"""Computes what the endpoints answer, from etcd and from the scheduler's thread. Changes nothing."""

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from conch.cron.job import Job
from conch.cron.job_counts import JobCounts
from conch.cron.run_log import Entry, RunLog
from conch.cron.scheduler import Scheduler
from conch.cron.status.earlier import Earlier, earlier_results
from conch.cron.status.metrics import Figures, text_of
from conch.cron.status.single_flight import SingleFlight
from conch.cron.unreadable import Unreadable
from conch.cron.views import everything, last_rows
from conch.etcd.connection import Connection
from conch.etcd.store import KeyValue, Store
from conch.holder import Holder, UnreadableHolder
from conch.keys import ContenderKey, Keys
from conch.limits import is_short
from conch.times import rfc3339

_ASK_S = 1.0
# The limits of one request to etcd, and of an answer that needs several.
_ETCD_S, _READ_S = 3.0, 4.0
_READERS = 2
_MAX_WAITING = 32
_BUSY = "the scheduler is busy"

_T = TypeVar("_T")
Log = Callable[..., None]


def _take(counts: JobCounts, found: Sequence[Earlier]) -> None:
    for name, state, at, duration_s in found:
        counts.of(name).take(state, at, duration_s)


class Busy(Exception):
    """Too many clients are waiting already."""


class Status:
    """The answers, for an asyncio loop: no method ever blocks it.

    Two threads read etcd, one read at a time per endpoint; `health` and `metrics` need no etcd.
    """

    def __init__(
        self, scheduler: Scheduler, run_log: RunLog, store: Store, connection: Connection, keys: Keys, log: Log
    ) -> None:
        self._scheduler = scheduler
        self._run_log = run_log
        self._store = store
        self._timeout_s = min(_ETCD_S, connection.command_timeout_s)
        self._keys = keys
        self._unreadable = Unreadable(log)
        self._readers = ThreadPoolExecutor(_READERS, "status-read")
        self._readers.submit(int).result()  # start one thread now, while the system still has threads
        self._waiting = 0
        self._health = SingleFlight(lambda: self._ask(self._scheduler.healthy))
        self._figures = SingleFlight(self._format_figures)
        self._earlier: asyncio.Task[None] | None = None  # reads what an earlier conchd counted
        self._reads = {
            "cron": SingleFlight(self._read_cron),
            "elect": SingleFlight(lambda: self._read(self._elect)),
            "sema": SingleFlight(lambda: self._read(self._sema)),
        }

    async def health(self) -> str:
        """Return why this daemon could not claim a tick now; empty if it could."""
        try:
            return await self._health.get(_ASK_S, _BUSY)
        except TimeoutError as error:
            return str(error)

    async def metrics(self) -> bytes:
        """Return the metrics in the text format of Prometheus. Raises `TimeoutError`."""
        if self._earlier is None or (self._earlier.done() and self._earlier.exception() is not None):
            self._earlier = asyncio.create_task(self._read_earlier())
        return await self._figures.get(_ASK_S, _BUSY)

    async def _format_figures(self) -> bytes:
        return text_of(await self._ask(self._count))

    async def _read_earlier(self) -> None:
        """Read the ends of runs that an earlier conchd of this host has recorded. Raises `StoreError`."""
        parts, host = self._scheduler.parts, self._scheduler.host
        while not await self._ask(lambda: parts.inventory.is_watching):
            await asyncio.sleep(_ASK_S)  # the jobs are not known yet
        names = await self._ask(lambda: list(parts.planner.jobs))
        found = earlier_results(self._store, self._keys, names, host, timeout_s=self._timeout_s)
        while True:
            read = asyncio.get_running_loop().run_in_executor(self._readers, next, found, None)
            piece = await read
            if piece is None:
                return
            await self._ask(partial(_take, parts.job_counts, piece))

    async def data(self, name: str) -> bytes:
        """Return the JSON of `cron`, `elect` or `sema`. Raises `Busy`, `TimeoutError` or `StoreError`."""
        if self._waiting >= _MAX_WAITING:
            raise Busy("too many clients are waiting for etcd")
        self._waiting += 1
        try:
            return await self._reads[name].get(_READ_S, "etcd did not answer in time")
        finally:
            self._waiting -= 1

    async def _ask(self, question: Callable[[], _T]) -> _T:
        """Have the scheduler's thread call `question`, and return what it does."""
        answer = asyncio.wrap_future(self._scheduler.asked(question))
        try:
            return await asyncio.wait_for(answer, _ASK_S)
        except TimeoutError:
            raise TimeoutError(_BUSY) from None

    async def _read(self, work: Callable[[], object]) -> bytes:
        """Have a reader thread call `work`, and return its result as JSON."""
        done: Future[bytes] = Future()

        def read() -> None:
            try:
                done.set_result((json.dumps(work()) + "\n").encode("utf-8", "replace"))
            except Exception as error:
                done.set_exception(error)

        try:
            self._readers.submit(read)
        except RuntimeError as error:
            if not is_short(error):
                raise
            # no further thread can be started: the work is queued for the one that runs
        return await asyncio.wrap_future(done)

    def _count(self) -> Figures:
        scheduler, parts = self._scheduler, self._scheduler.parts
        live = parts.runner.live()
        if parts.inventory.is_watching:  # else jobs may not be known yet
            parts.job_counts.keep(parts.planner.jobs, [run.entry.name for run in live])
        return Figures(
            counts=dict(scheduler.counts),
            lags=dict(parts.runner.lag_counts),
            lag_sum=parts.runner.lag_sum,
            lease_left_s=scheduler.lease_left_s(),
            running=len(live),
            max_runs=scheduler.spec.max_runs,
            jobs=len(parts.planner.jobs),
            backlog=self._run_log.backlog,
            skew_s=scheduler.spec.clock.skew_s(),
            clock_off=parts.clock_check.is_off,
            registered=parts.node.registration is not None,
            watching=parts.inventory.is_watching,
            healthy=not scheduler.healthy(),
            of_jobs=list(parts.job_counts.rows()),
        )

    async def _read_cron(self) -> bytes:
        # the scheduler's thread only copies its lists; etcd is read elsewhere
        jobs, runs = await self._ask(
            lambda: (
                list(self._scheduler.parts.planner.upcoming()),
                [run.entry for run in self._scheduler.parts.runner.live()],
            )
        )
        return await self._read(lambda: self._cron(jobs, runs))

    def _cron(self, jobs: list[tuple[Job, int | None]], runs: list[Entry]) -> dict[str, Any]:
        """Return the jobs with their next and newest ticks, and the runs of this host."""
        jobs.sort(key=lambda upcoming: upcoming[0].name)
        names = [job.name for job, _ in jobs]
        last, _ = last_rows(self._store, self._keys, names, timeout_s=self._timeout_s, within_s=_READ_S)
        shown = []
        for job, planned in jobs:
            tick = job.next_tick(int(time.time())) if planned is None else planned  # or planned by other hosts
            newest = last.get(job.name, {})
            shown.append(
                {
                    "name": job.name,
                    "schedule": job.schedule,
                    "tz": job.tz,
                    "cmd": list(job.cmd),
                    "paused": job.is_paused_at(time.time()),
                    "next_tick": None if tick is None else rfc3339(tick),
                    "last_tick": newest.get("tick"),
                    **{field: newest.get(field) for field in ("node", "exit", "state", "duration_s")},
                }
            )
        running = [{"name": run.name, "tick": rfc3339(run.tick), "tick_unix": run.tick} for run in runs]
        return {"jobs": shown, "running": running}

    def _elect(self) -> list[dict[str, Any]]:
        """Return the offices with their leaders, and how many wait for each."""
        queues = self._queues(f"{self._keys.prefix}/elect/")
        return [
            {"office": key.name, **self._contender(kv), "waiting": len(queue) - 1}
            for _, queue in sorted(queues.items())
            for key, kv in queue[:1]
        ]

    def _sema(self) -> list[dict[str, Any]]:
        """Return the contenders of all semaphores, in the order of their queues."""
        return [
            {
                "name": key.name,
                "max": key.slots,
                "state": "HELD" if rank < key.slots else "WAIT",
                "rank": rank,
                **self._contender(kv),
            }
            for _, queue in sorted(self._queues(f"{self._keys.prefix}/sema/").items())
            for rank, (key, kv) in enumerate(queue)
        ]

    def _queues(self, prefix: str) -> dict[tuple[str, int], list[tuple[ContenderKey, KeyValue]]]:
        """Read all queues, the first in line first. Keys that belong to no queue are reported."""
        found = self._store.range(everything(prefix), timeout_s=self._timeout_s).kvs
        queues: dict[tuple[str, int], list[tuple[ContenderKey, KeyValue]]] = {}
        for kv in sorted(found, key=lambda kv: kv.create_revision):
            key = self._keys.parse(kv.key)
            if isinstance(key, ContenderKey):
                queues.setdefault((key.name, key.slots), []).append((key, kv))
            else:
                self._unreadable(kv.key, "no key of ours")
        return queues

    def _contender(self, kv: KeyValue) -> dict[str, Any]:
        """Return what is shown of a key in a queue. An unreadable one keeps its place and is shown by its key."""
        known: dict[str, Any] = {"host": None, "pid": None, "started": None, "cmd": None}
        unreadable: dict[str, Any] = {}
        try:
            holder = Holder.decode(kv.value)
            known = {"host": holder.host, "pid": holder.pid, "started": holder.started, "cmd": holder.cmd}
        except UnreadableHolder as error:
            unreadable = {"unreadable": kv.key.decode("utf-8", "replace")}
            self._unreadable(kv.key, str(error))
        return {**known, "rev": kv.create_revision, "lease": f"{kv.lease:x}", **unreadable}
