"""What a scheduler is made for and with, and what its parts ask of it."""

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Protocol, TypeVar

from conch.core.containment import TREE
from conch.core.origin import Origin
from conch.cron.fleet_clock import FleetClock
from conch.cron.output_files import OutputFiles
from conch.cron.run_log import Entry, RunLog
from conch.cron.ticks import Claim, PendingTick
from conch.cron.workers import Tasks
from conch.etcd.connection import Connection
from conch.etcd.store import Store
from conch.holder import Holder
from conch.keeper.watchdog import Watchdog
from conch.keys import Keys

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class SchedulerSpec:
    """The daemon's store, supervisor and options. `origin` is the supervisor, `state_id` names the state directory.

    `leases` are those that an earlier keeper of the same supervisor had. With a `job_key`, jobs must be signed by it.
    `outputs` are the files for commands that are told of failures, `on_failure` is this host's.
    `first`: etcd must answer at the start. `contain` is the form in which runs are contained, `tags` are this host's.
    """

    store: Store
    connection: Connection
    keys: Keys
    watchdog: Watchdog
    run_log: RunLog
    identity: Holder
    origin: Origin
    leases: frozenset[int]
    state_id: str
    clock: FleetClock
    ttl_s: int
    max_runs: int
    job_key: bytes | None
    first: bool
    outputs: OutputFiles
    on_failure: str | None = None
    contain: str = TREE
    tags: tuple[str, ...] = ()

    @property
    def timeout_s(self) -> float:
        """How long a request to etcd may take."""
        return self.connection.command_timeout_s


class Phase(Enum):
    """Where the scheduler is."""

    STARTING = "starting"
    RUNNING = "running"
    DRAINING = "draining"  # nothing more is claimed
    RELEASING = "releasing"  # the supervisor has nothing left; what is not in etcd yet is recorded
    RELEASED = "released"


PHASES: dict[Phase, frozenset[Phase]] = {
    Phase.STARTING: frozenset({Phase.RUNNING, Phase.DRAINING, Phase.RELEASING}),
    Phase.RUNNING: frozenset({Phase.DRAINING, Phase.RELEASING}),
    Phase.DRAINING: frozenset({Phase.RELEASING}),
    Phase.RELEASING: frozenset({Phase.RELEASED}),
    Phase.RELEASED: frozenset(),
}


class SchedulerPort(Protocol):
    """The scheduler as its parts see it."""

    spec: SchedulerSpec
    loop: asyncio.AbstractEventLoop
    tasks: Tasks
    counts: Counter[tuple[str, str]]
    pending: dict[tuple[str, int], PendingTick]

    @property
    def is_draining(self) -> bool:
        """Whether nothing more is to be claimed or started."""
        ...

    @property
    def is_releasing(self) -> bool:
        """Whether everything is given back."""
        ...

    def log(self, level: str, event: str, **fields: str | int | float) -> None:
        """Log an event; from any thread."""
        ...

    def call(self, function: Callable[..., object], *arguments: object) -> None:
        """Call this in the scheduler's thread; from any thread."""
        ...

    def ask(self, question: Callable[[], _T], timeout_s: float | None) -> _T:
        """The answer of the scheduler's thread; from any other thread."""
        ...

    def consider(self, tick: PendingTick, on_claim: Callable[[Claim], None] = ...) -> None:
        """Begin the life of a tick."""
        ...

    def on_claim(self, tick_id: tuple[str, int], is_ours: Callable[[PendingTick], bool]) -> None:
        """A tick was claimed by some host."""
        ...

    def conclude(self, entry: Entry) -> None:
        """A run of another boot is lost."""
        ...
