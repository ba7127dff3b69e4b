"""What can become of a claim of a tick."""

from dataclasses import dataclass

from conch.etcd.store import KeyValue


@dataclass(frozen=True, slots=True)
class Won:
    """The tick is ours: the claim's create-revision and lease, and the run key's revision if we have that too.

    `old` are ticks beyond the limit of history, oldest first; None: that was not read.
    """

    rev: int
    lease: int
    run_rev: int | None
    old: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class Taken:
    """Nobody can claim the tick any more, or not in this way: `why` says what stands against it.

    `odd` is the key whose unreadable value stands against it, if that is the reason.
    """

    why: str
    odd: bytes = b""


@dataclass(frozen=True, slots=True)
class Busy:
    """A run of the job is alive: its run key; None: it has ended meanwhile."""

    run: KeyValue | None


@dataclass(frozen=True, slots=True)
class Cordoned:
    """Our host is cordoned: it claims nothing to run. Nobody has the tick."""


@dataclass(frozen=True, slots=True)
class NodeGone:
    """We are not registered any more."""


@dataclass(frozen=True, slots=True)
class Changed:
    """The job has changed since the tick was planned, and nobody has the tick: the job's key now; None: removed."""

    job: KeyValue | None


@dataclass(frozen=True, slots=True)
class Again:
    """The assumption whether the job has a floor was wrong: try again with this one."""

    has_floor: bool


Outcome = Won | Taken | Changed | Busy | Cordoned | NodeGone | Again
