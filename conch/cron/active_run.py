"""A run of this daemon, from its claim until its result is recorded."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from conch.cron.job import Job
from conch.cron.run_log import Entry
from conch.cron.semaphore_slot import SemaphoreSlot
from conch.cron.values import Result
from conch.errors import checked
from conch.times import rfc3339


class RunState(Enum):
    """Where a run is."""

    CLAIMED = "claimed"
    QUEUED = "queued"  # for a slot of its semaphore
    ORDERED = "ordered"
    RUNNING = "running"
    ENDED = "ended"  # its result is to be recorded
    RECORDED = "recorded"


_NEXT: dict[RunState, frozenset[RunState]] = {
    RunState.CLAIMED: frozenset({RunState.QUEUED, RunState.ORDERED, RunState.ENDED}),
    RunState.QUEUED: frozenset({RunState.ORDERED, RunState.ENDED}),
    RunState.ORDERED: frozenset({RunState.RUNNING, RunState.ENDED}),
    RunState.RUNNING: frozenset({RunState.ENDED}),
    RunState.ENDED: frozenset({RunState.RECORDED}),
    RunState.RECORDED: frozenset(),
}


@dataclass(slots=True, eq=False)
class ActiveRun:
    """A run of this daemon until its result is recorded. `node` is the number of the registration that it needs.

    `ends_by` (CLOCK_BOOTTIME) limits all of it, the wait for a slot included. `only_in_memory`: the write-ahead log did
    not take its end, so the supervisor must keep it until etcd has it.
    """

    entry: Entry
    node: int | None = None
    slot: SemaphoreSlot | None = None
    ends_by: float | None = None
    offset_s: float = 0.0  # how long after its tick it was due
    reported: bool = False  # its end was, by the supervisor
    only_in_memory: bool = False
    refused: bool = False  # by etcd, when its result was to be recorded the last time
    state: RunState = RunState.CLAIMED
    finished: "asyncio.Future[Result] | None" = None
    on_over: Callable[[], None] | None = None
    job: Job | None = None  # as it was claimed, by this keeper
    pinged: bool = False  # the job's ping was told that it began

    @property
    def about(self) -> dict[str, str]:
        """The fields of its events: its job and tick."""
        return {"job": self.entry.name, "tick": rfc3339(self.entry.tick)}

    @property
    def is_over(self) -> bool:
        """Whether it has ended."""
        return self.state in (RunState.ENDED, RunState.RECORDED)

    def enter(self, state: RunState) -> None:
        """Change the state; raises `IllegalTransition` for a change that makes no sense."""
        self.state = checked(_NEXT, self.state, state)
        if self.is_over and self.on_over is not None:
            self.on_over()

    def finish(self, result: Result) -> None:
        """The run has ended so; a later word does not count."""
        if self.finished is not None and not self.finished.done():
            self.finished.set_result(result)
