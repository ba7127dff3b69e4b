"""A tick on its way: planned, claimed, waiting, won or lost. Values that the parts of the scheduler pass on."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum

from conch.cron.job import Job
from conch.cron.placement import Place
from conch.cron.schedule import Schedule
from conch.cron.workers import Alarm
from conch.errors import checked
from conch.etcd.store import KeyValue

# How many expired ticks one transaction removes at most: it catches up, and stays below etcd's limit of operations.
TRIM = 16
# The pause after a try that failed, in seconds: the first, and the longest.
PAUSE_S, PAUSE_MOST_S = 0.1, 2.0

STOPPING = "conchd is stopping"
REMOVED = "the job was removed"
CHANGED = "the job was changed"
TOO_LATE = "etcd confirmed the claim too late"


@dataclass(slots=True)
class TrackedJob:
    """A job as this daemon follows it.

    `rev` and `created` are the definition's mod-revision and create-revision, `value` its bytes as last read. `run` is
    the job's run key as last seen. `expired_ticks` are beyond what history keeps and are to be removed. `newest` is the
    newest tick that was claimed under `replace`. `place` is what this daemon does about its ticks, `nowhere` why no
    live host may run them, as logged last. `next_tick` is planned under the serial number `planned`; ticks up to `past`
    were due already, or are older than the definition.
    """

    job: Job
    rev: int
    schedule: Schedule
    has_floor: bool = False
    run: KeyValue | None = None
    newest: int = 0
    created: int = 0
    expired_ticks: set[int] = field(default_factory=set)
    next_tick: int | None = None
    place: Place = Place.CLAIM
    nowhere: str = ""
    planned: int = 0
    past: int = 0
    value: bytes = b""

    def next_after(self, after: int) -> int | None:
        """The first tick later than `after` at which the job is not paused."""
        return self.job.next_tick(after, self.schedule)

    def deadline_of(self, tick: int, following: int | None) -> float:
        """Until when a tick may be claimed or started."""
        return tick + self.job.offset_s(tick, following) + self.job.late_after_s(tick, following)

    def take_expired(self) -> list[int]:
        """The oldest expired ticks, as many as one transaction removes; the others are found again."""
        expired, self.expired_ticks = sorted(self.expired_ticks)[:TRIM], set()
        return expired


class TickState(Enum):
    """Where a tick is until its claim is decided."""

    WAITING = "waiting"  # for its turn, or until a claim can be made
    CLAIMING = "claiming"  # a claim is under way
    CLOSING = "closing"  # it is too late, and whether an earlier claim was made is being found out
    SETTLED = "settled"


_NEXT: dict[TickState, frozenset[TickState]] = {
    TickState.WAITING: frozenset({TickState.CLAIMING, TickState.CLOSING, TickState.SETTLED}),
    TickState.CLAIMING: frozenset({TickState.WAITING, TickState.SETTLED}),
    TickState.CLOSING: frozenset({TickState.WAITING, TickState.SETTLED}),
    TickState.SETTLED: frozenset(),
}


@dataclass(frozen=True, slots=True)
class Wishes:
    """What a request asks of its run alone: more variables, and that its output is kept."""

    env: Mapping[str, str] = field(default_factory=dict)
    keep_output: bool = False

    def applied(self, job: Job) -> Job:
        """Return the job as it is to run for this request. A job whose output is never kept stays so."""
        keep = "always" if self.keep_output and job.keep_output != "never" else job.keep_output
        return replace(job, env={**job.env, **self.env}, keep_output=keep) if self.env or self.keep_output else job


@dataclass(slots=True, eq=False)
class PendingTick:
    """A tick that this daemon may claim, under the id `run` for its run, until `deadline` (wall-clock seconds).

    It is due `offset_s` after the tick. `host` is ours if the tick runs on every host, and is then part of its keys.

    A tick that was asked for by `cron run` has the request's create-revision, lease (as hex digits) and number;
    `request_rev` is 0 for a scheduled tick. `unclear`: a claim was sent and its outcome is not known. `void` says why
    the tick is only to be recorded as skipped. `refused`: etcd answered the newest claim with a refusal. `cancelled`:
    another host has it, or its request is gone.
    """

    job: Job
    job_rev: int
    tick: int
    deadline: float
    run: str
    request_rev: int = 0
    request: str = ""
    number: int = 0
    offset_s: float = 0.0
    wishes: Wishes = Wishes()
    host: str = ""
    unclear: bool = False
    void: str = ""
    refused: bool = False
    cancelled: bool = False
    changes: int = 0
    pause_s: float = 0.0
    state: TickState = TickState.WAITING
    alarm: Alarm = field(default_factory=Alarm)

    @property
    def id(self) -> tuple[str, int]:
        """The job's name and the tick."""
        return self.job.name, self.tick

    @property
    def path(self) -> tuple[str, int] | tuple[str, int, str]:
        """What stands in the keys of its claim and result: job and tick, and the host if it has one of its own."""
        return (*self.id, self.host) if self.host else self.id

    @property
    def due(self) -> float:
        """When it is due, in wall-clock seconds."""
        return self.tick + self.offset_s

    def enter(self, state: TickState) -> None:
        """Change the state; raises `IllegalTransition` for a change that makes no sense."""
        self.state = checked(_NEXT, self.state, state)

    def cancel(self) -> None:
        """Give up waiting for it. A claim that is under way is still followed to its outcome."""
        self.cancelled = True
        self.alarm.ring()

    def next_pause_s(self) -> float:
        """The pause before the next try, doubled each time up to 2 s."""
        self.pause_s = min(2 * self.pause_s or PAUSE_S, PAUSE_MOST_S)
        return self.pause_s


@dataclass(frozen=True, slots=True)
class Registration:
    """Our daemon's registration: the number of its hold, its lease, the create-revision of its key."""

    number: int
    lease: int
    rev: int


class RecentClaims:
    """The newest 10,000 to 20,000 ticks that any host has claimed: what is claimed is not tried again."""

    def __init__(self, most: int = 20_000) -> None:
        self._most = most
        self._claimed: dict[tuple[str, int], None] = {}

    def __len__(self) -> int:
        return len(self._claimed)

    def __contains__(self, tick_id: tuple[str, int]) -> bool:
        return tick_id in self._claimed

    def add(self, tick_id: tuple[str, int]) -> None:
        """Remember a claim, and forget the older half when there are too many."""
        self._claimed[tick_id] = None
        if len(self._claimed) > self._most:
            for earlier in list(self._claimed)[: self._most // 2]:
                del self._claimed[earlier]


# -- what becomes of a pending tick ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TickWon:
    """The tick is ours to run: revisions of claim and run key, the lease and number of what it is held by."""

    rev: int
    run_rev: int | None
    lease: int
    number: int


@dataclass(frozen=True, slots=True)
class TickWaits:
    """The tick is ours once the run before it has ended; `rev` is the claim's revision."""

    rev: int


@dataclass(frozen=True, slots=True)
class TickOver:
    """The tick is ours and does not run: a result with this reason is to be recorded."""

    rev: int
    run_rev: int | None
    reason: str


@dataclass(frozen=True, slots=True)
class TickSkipped:
    """The tick was claimed and recorded as skipped in one transaction."""

    reason: str


@dataclass(frozen=True, slots=True)
class TickLost:
    """Another host has the tick, or nobody can claim it."""


@dataclass(frozen=True, slots=True)
class TickGivenUp:
    """Nobody here claims the tick any more, for this reason; None: it is too late."""

    reason: str | None


@dataclass(frozen=True, slots=True)
class TickReopened:
    """An unclear claim turned out not to be made, and the job has changed since: the tick is claimed anew."""


Claim = TickWon | TickWaits | TickOver | TickSkipped | TickLost | TickGivenUp
