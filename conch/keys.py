"""The keys of conch in etcd: a versioned public API, see the contract's section on keys."""

from conch.record import Record

DEFAULT_PREFIX = "/conch/v1"
# What may stand right below a prefix; another prefix must not lie below one of these.
KINDS = frozenset({"elect", "sema", "sema-host", "cron", "node"})


class Keys(Record):
    """Every key that conch reads or writes lies under one prefix."""

    prefix: str = DEFAULT_PREFIX

    def office(self, name: str) -> str:
        """The queue of an election: one key a contender below it."""
        return f"{self.prefix}/elect/{name}/"

    def semaphore(self, name: str) -> str:
        """All queues of a semaphore: one a capacity below it."""
        return f"{self.prefix}/sema/{name}/"

    def slots(self, name: str, slots: int) -> str:
        """The queue of a semaphore with this capacity."""
        return f"{self.semaphore(name)}{slots}/"

    def host(self, name: str, slots: int, host: str) -> str:
        """The queue within one host, for `--spread`."""
        return f"{self.prefix}/sema-host/{name}/{slots}/{host}/"

    def cron(self, kind: str, *path: str | int) -> str:
        """A key of cron: `job`, `fire`, `result`, `run`, `now` or `floor`; without a path all of that kind."""
        return "/".join((self.prefix, "cron", kind, *map(str, path))) + ("" if path else "/")

    def ticks(self, kind: str, name: str) -> str:
        """All ticks of a job of one kind (`fire`, `result` or `now`)."""
        return f"{self.prefix}/cron/{kind}/{name}/"

    def node(self, host: str = "") -> str:
        """A live conchd, or all of them."""
        return f"{self.prefix}/node/{host}"


def contender(queue: str, lease: int) -> str:
    """The key of one contender, named by its lease so that a repeated create finds its own."""
    return f"{queue}{lease:x}"


def prefix_end(prefix: bytes) -> bytes:
    """The first key after all that begin with the prefix, as etcd's ranges want it."""
    trimmed = prefix.rstrip(b"\xff")
    return trimmed[:-1] + bytes([trimmed[-1] + 1]) if trimmed else b"\0"
