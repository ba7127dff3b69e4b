"""Writes to the run log: all that come while one write is under way share the next (group commit)."""

import asyncio
from functools import partial

from conch.cron.run_log import Entry, RunLog
from conch.cron.workers import Tasks, Workers


class GroupCommit:
    """Passes on to the run log which runs began and ended, and what is to be forgotten; one call at a time."""

    def __init__(self, run_log: RunLog, tasks: Tasks, workers: Workers) -> None:
        self._run_log = run_log
        self._tasks = tasks
        self._workers = workers
        self._entries: list[tuple[Entry, asyncio.Future[bool]]] = []
        self._delivered: list[str] = []
        self._is_writing = False

    async def write(self, entry: Entry) -> bool:
        """Record that a run may begin, or how it ended; whether that is on disk."""
        written: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._entries.append((entry, written))
        self._begin()
        return await written

    def forget(self, run: str) -> None:
        """The result of this run is in etcd: its entry is needed no more."""
        self._delivered.append(run)
        self._begin()

    def _begin(self) -> None:
        if not self._is_writing:
            self._is_writing = True
            self._tasks.spawn(self._write())

    async def _write(self) -> None:
        while self._entries or self._delivered:
            entries, self._entries = self._entries, []
            delivered, self._delivered = self._delivered, []
            written = await self._workers.disk(partial(self._work, [entry for entry, _ in entries], delivered))
            for _, waiter in entries:
                if not waiter.done():
                    waiter.set_result(written)
        self._is_writing = False

    def _work(self, entries: list[Entry], delivered: list[str]) -> bool:
        written = self._run_log.write(*entries)
        if delivered:
            self._run_log.delivered(*delivered)
        return written
