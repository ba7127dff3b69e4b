"""What a keeper is to do; the one part of it that the command line needs."""

from dataclasses import dataclass

from conch.config import Connection


@dataclass(frozen=True, slots=True)
class Stage:
    """One queue to get through: its prefix in etcd, and how many of its contenders hold at once.

    `family` is the prefix of queues that differ from this one in their number of slots only.
    """

    prefix: str
    slots: int
    family: str | None = None


@dataclass(frozen=True, slots=True)
class Job:
    """What to hold, and how: `what` names it for people; durations in seconds.

    The stages are queued for one after the other under one lease; the last one's place is the hold, for this run.
    """

    connection: Connection
    what: str
    stages: tuple[Stage, ...]
    ttl_s: int
    kill_after_s: float
    value: bytes
    nonblock: bool = False
    wait_s: float | None = None
    run: str = ""
