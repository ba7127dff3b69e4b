"""What a keeper is to hold; the one part of it that the command line needs."""

import marshal

from conch.etcd.connection import Connection
from conch.etcd.endpoints import Endpoint
from conch.record import Record, fields_of


class QueueSpec(Record):
    """A queue to get through: its prefix in etcd, and how many of its contenders hold at the same time.

    `sibling_prefix` is the prefix of the queues that differ from this one in their number of slots only.
    """

    prefix: str
    slots: int
    sibling_prefix: str | None = None


class HoldSpec(Record):
    """What to hold, and how: `what` names it for people; durations in seconds.

    The queues of the `stages` are entered one after the other under one lease. Our place in the last one is the hold,
    for run `run`. The cgroups of runs are made below the directory `cgroups`, if it is not empty.
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
    cgroups: str = ""

    def pack(self) -> bytes:
        """Encode for another process that runs this very program."""
        values = fields_of(self)
        connection = fields_of(self.connection)
        connection["endpoints"] = [tuple(fields_of(endpoint).values()) for endpoint in self.connection.endpoints]
        stages = [fields_of(stage) for stage in self.stages]
        return marshal.dumps({**values, "connection": connection, "stages": stages})

    @classmethod
    def unpack(cls, data: bytes) -> "HoldSpec":
        """Decode what `pack` encoded."""
        values = marshal.loads(data)  # noqa: S302 - from our own parent
        connection = values["connection"]
        connection["endpoints"] = tuple(Endpoint(*endpoint) for endpoint in connection["endpoints"])
        stages = tuple(QueueSpec(**stage) for stage in values["stages"])
        return cls(**{**values, "connection": Connection(**connection), "stages": stages})
