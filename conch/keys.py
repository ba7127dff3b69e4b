"""The keys of conch in etcd: a versioned public API, see the contract's section on keys."""

from dataclasses import dataclass

DEFAULT_PREFIX = "/conch/v1"


@dataclass(frozen=True, slots=True)
class Keys:
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


def contender(queue: str, lease: int) -> str:
    """The key of one contender, named by its lease so that a repeated create finds its own."""
    return f"{queue}{lease:x}"


def prefix_end(prefix: bytes) -> bytes:
    """The first key after all that begin with the prefix, as etcd's ranges want it."""
    trimmed = prefix.rstrip(b"\xff")
    return trimmed[:-1] + bytes([trimmed[-1] + 1]) if trimmed else b"\0"
