"""What a keeper is to do; the one part of it that the command line needs."""

from dataclasses import dataclass

from conch.config import Connection


@dataclass(frozen=True, slots=True)
class Job:
    """What to hold, and how: `what` names it for people, `prefix` is the queue's in etcd; durations in seconds."""

    connection: Connection
    what: str
    prefix: str
    slots: int
    ttl_s: int
    kill_after_s: float
    value: bytes
    nonblock: bool = False
    wait_s: float | None = None
