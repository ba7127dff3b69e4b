"""What a keeper is to do; the one part of it that the command line needs."""

import marshal

from conch.etcd.connection import Connection
from conch.etcd.endpoints import Endpoint
from conch.record import Record, fields_of


class QueueSpec(Record):
    """One queue to get through: its prefix in etcd, and how many of its contenders hold at once.

    `family` is the prefix of queues that differ from this one in their number of slots only.
    """

    prefix: str
    slots: int
    family: str | None = None


class Job(Record):
    """What to hold, and how: `what` names it for people; durations in seconds.

    The stages are queued for one after the other under one lease; the last one's place is the hold, for this run.
    """

    connection: Connection
    what: str
    stages: tuple[QueueSpec, ...]
    ttl_s: int
    kill_after_s: float
    value: bytes
    nonblock: bool = False
    wait_s: float | None = None
    run: str = ""
    verbose: bool = False

    def pack(self) -> bytes:
        """For another process of this very program."""
        values = fields_of(self)
        connection = fields_of(self.connection)
        connection["endpoints"] = [tuple(fields_of(one).values()) for one in self.connection.endpoints]
        return marshal.dumps({**values, "connection": connection, "stages": [fields_of(one) for one in self.stages]})

    @classmethod
    def unpack(cls, data: bytes) -> "Job":
        """What was packed."""
        values = marshal.loads(data)  # noqa: S302 - of our own parent
        connection = values["connection"]
        connection["endpoints"] = tuple(Endpoint(*one) for one in connection["endpoints"])
        stages = tuple(QueueSpec(**one) for one in values["stages"])
        return cls(**{**values, "connection": Connection(**connection), "stages": stages})
