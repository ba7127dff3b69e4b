"""Runs the commands of `--on-failure` through the supervisor: a few at a time, in order, and none lost in silence."""

import os
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from conch.core import clock
from conch.core.messages import Finished, Recorded, Start
from conch.cron.output_files import NO_FILE, OutputFiles
from conch.cron.workers import Tasks, Workers
from conch.cron.writes import Faults
from conch.keeper.watchdog import Watchdog

HOOK = "on-failure"
OUTCOMES = ("ok", "failed", "dropped")
METRIC = "on_failure"
LIMIT_S, _KILL_AFTER_S = 30.0, 5.0
# How many commands run at a time, and how many wait for that.
AT_A_TIME, MOST_WAITING = 8, 1000


@dataclass(frozen=True, slots=True)
class Notice:
    """A command and what it is told: the job, the tick in RFC 3339, variables, and the output's tail for its file."""

    command: str
    job: str
    tick: str
    environment: Mapping[str, str]
    output: str = ""


class OnFailure:
    """Has the supervisor run commands, each under the rules of a run: a group, a cgroup and 30 s of its own.

    A command holds nothing, and no run waits for it. Beyond 1,000 that wait, further ones are dropped: they are
    counted and logged.
    """

    def __init__(
        self,
        files: OutputFiles,
        watchdog: Watchdog,
        tasks: Tasks,
        workers: Workers,
        faults: Faults,
        counts: Counter[tuple[str, str]],
        *,
        now: Callable[[], float] = clock.now,
    ) -> None:
        """What became of each is in `counts`, under `on_failure`."""
        self._files = files
        self._watchdog = watchdog
        self._tasks = tasks
        self._workers = workers
        self._faults = faults
        self._counts = counts
        self._now = now
        self._waiting: deque[Notice] = deque()
        self._under_way: set[str] = set()  # the ids of their runs

    async def run(self, notice: Notice) -> None:
        """Have the command run; return when the supervisor was asked to, or when it waits for others to end."""
        if len(self._under_way) < AT_A_TIME:
            await self._start(notice)
        elif len(self._waiting) < MOST_WAITING:
            self._waiting.append(notice)
        else:
            self._drop(f"{MOST_WAITING} commands wait already")

    async def _start(self, notice: Notice) -> None:
        run = os.urandom(8).hex()
        self._under_way.add(run)

        def write() -> str:
            try:
                return self._files.write(run, notice.output)
            except OSError:
                return NO_FILE  # without it the command is better than no command

        path = await self._workers.files(write)
        if path == NO_FILE:
            self._faults("output-not-written").failed(job=notice.job, tick=notice.tick)
        self._watchdog.send(
            Start(
                run=run,
                job=notice.job,
                tick=notice.tick,
                command=["/bin/sh", "-c", notice.command],
                environment={**notice.environment, "CONCH_OUTPUT": path},
                directory=None,
                holds=[],
                start_by=self._now() + LIMIT_S,
                first_limit_s=LIMIT_S,
                limit_s=LIMIT_S,
                kill_after_s=_KILL_AFTER_S,
                retries=0,
                retry_delay_s=0.0,
                hook=HOOK,
            )
        )

    def on_finished(self, message: Finished) -> bool:
        """Some run has ended; return whether it was a command of ours."""
        if message.run not in self._under_way:
            return False
        if message.outcome == "unstarted":  # conchd ends: there is no time for those that wait either
            for _ in range(1 + len(self._waiting)):
                self._drop(message.reason)
            self._waiting.clear()
        else:
            self._counts[METRIC, "ok" if message.state == "ok" else "failed"] += 1
        self._tasks.spawn(self._follow(message.run))
        return True

    async def _follow(self, run: str) -> None:
        """Start the next command, and only then have the supervisor forget the last: it must not end in between."""
        await self._workers.files(lambda: self._files.remove(run))
        self._under_way.discard(run)
        if self._waiting:
            await self._start(self._waiting.popleft())
        self._watchdog.send(Recorded(run))

    def close(self) -> None:
        """Remove the directory of the files; blocks."""
        self._files.close()

    def _drop(self, why: str) -> None:
        self._counts[METRIC, "dropped"] += 1
        self._faults("on-failure-dropped").failed(msg=why)
