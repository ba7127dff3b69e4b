"""The calls that conch makes to etcd, each with a timeout, and the errors that they raise.

Timeouts are float seconds and cover the whole call, retries on other endpoints included.
"""

from conch.errors import ConchError
from conch.record import Record
from conch.static_typing import Callable, Iterator, Protocol, Sequence


class StoreError(ConchError):
    """etcd did not do what was asked.

    `unclear`: a write may have been made nevertheless, or may yet be. It is false only if etcd refused each try before
    it wrote anything, or none was sent.
    """

    unclear = True


class Unreachable(StoreError):
    """No endpoint answered in time. A write may have been made nevertheless."""

    def __init__(self, text: str, accepted: Callable[[], bool] = lambda: False) -> None:
        """`accepted` finds out whether an endpoint accepts connections nevertheless: it may merely be slow."""
        super().__init__(text)
        self.accepted = accepted


class Refused(StoreError):
    """etcd does not accept our credentials, or they do not allow this."""


class Rejected(StoreError):
    """etcd answered that it will not do this; asking again changes nothing."""


class TooBig(Rejected):
    """A request with too many operations or bytes for etcd's limits: a smaller one may be taken."""


class Full(Rejected):
    """etcd's quota is used up, and it takes no writes (the NOSPACE alarm).

    The one request that crosses the quota is written and refused at the same time, so a read must show whether ours was
    that one; it cannot be written later.
    """


class Unfit(StoreError):
    """An endpoint will never do, however often it is asked; another one may."""


class LeaseExists(Rejected):
    """A lease of this id is there already, and no earlier try of ours made it."""

    unclear = False


class LeaseGone(StoreError):
    """The lease does not exist, or no longer."""


class Compacted(StoreError):
    """The history that a watch asked for was compacted: list again and go on from there."""


class WentBack(Compacted):
    """etcd was wiped or restored: the last revision seen by a watch does not exist. List again; trust nothing known."""


class Header(Record):
    """The header of every answer: the store's revision, the member that answered, its raft term."""

    revision: int
    member: int
    term: int


class KeyValue(Record):
    """A key as etcd has it."""

    key: bytes
    value: bytes
    create_revision: int
    mod_revision: int
    lease: int


class Range(Record):
    """Ask for a key, or for those from `key` to before `end`.

    Newest first (by create-revision), oldest first, or last key first; `max_create_revision` leaves out keys created
    after that revision. `keys_only` leaves out values, and leases too: etcd 3.7 does not return those, so we never do.
    """

    key: bytes
    end: bytes = b""
    newest_first: bool = False
    oldest_first: bool = False
    last_first: bool = False
    limit: int = 0
    max_create_revision: int = 0
    keys_only: bool = False


class Put(Record):
    """Write a key under a lease (0: none)."""

    key: bytes
    value: bytes
    lease: int = 0


class Delete(Record):
    """Delete a key, or those from `key` to before `end`."""

    key: bytes
    end: bytes = b""


class CreateRevisionIs(Record):
    """Holds if the key's create-revision is this one; 0 means that there is no such key."""

    key: bytes
    revision: int


class ModRevisionIs(Record):
    """Holds if the key's mod-revision is this one."""

    key: bytes
    revision: int


class ValueBelow(Record):
    """Holds if the key exists and its value sorts before this one."""

    key: bytes
    value: bytes


Operation = Range | Put | Delete
Compare = CreateRevisionIs | ModRevisionIs | ValueBelow


class RangeResult(Record):
    """The keys found; `count` is the number of all keys in the range, whatever the limit and filters say."""

    header: Header
    kvs: tuple[KeyValue, ...]
    count: int


class Txn(Record):
    """A transaction: `success` if all of `compare` hold, else `failure`. It must be safe to repeat."""

    compare: tuple[Compare, ...]
    success: tuple[Operation, ...]
    failure: tuple[Operation, ...] = ()

    def written(self) -> tuple[bytes, ...]:
        """Return the keys that it may write or delete, in either branch."""
        return tuple(operation.key for operation in (*self.success, *self.failure) if not isinstance(operation, Range))


class TxnResult(Record):
    """Which branch ran; `ranges` has the answers to its `Range` operations in their order."""

    header: Header
    succeeded: bool
    ranges: tuple[RangeResult, ...]


class TxnResults(Record):
    """What each of several transactions did that were made as one."""

    header: Header
    results: tuple[TxnResult, ...]


class Lease(Record):
    """A lease's TTL in seconds as etcd has it; 0 means that the lease is gone."""

    header: Header
    ttl_s: int


class Event(Record):
    """A key was written, or deleted (its value is then empty)."""

    kv: KeyValue
    deleted: bool


class Watch(Protocol):
    """Events in order, none missed, across the loss of endpoints; `cancel` ends it from any thread."""

    def __iter__(self) -> Iterator[Sequence[Event]]:
        """Yield the events as they arrive. Raises `Compacted`, `WentBack` or `Refused`."""
        ...

    def add(self, what: Range, start_revision: int) -> None:
        """Watch another range, from a revision on; from any thread."""
        ...

    def cancel(self) -> None:
        """End the iteration, now and from any thread."""
        ...


class Renewal(Record):
    """`certificates` or a `password` that was replaced; or (`problem` is not empty) why the old one stays."""

    what: str
    problem: str = ""


class Store(Protocol):
    """etcd. Every call may raise `Unreachable`, `Refused` or `Rejected`, and may be made from any thread."""

    def grant(self, lease: int, ttl_s: int, *, timeout_s: float) -> Lease:
        """Create a lease with an id of our own, which makes a repeated grant recognisable."""
        ...

    def keep_alive(self, lease: int, *, timeout_s: float) -> Lease:
        """Renew a lease once. A TTL of 0 says that it is gone; etcd reports no error."""
        ...

    def revoke(self, lease: int, *, timeout_s: float) -> None:
        """Revoke a lease, which deletes its keys; a lease that is gone already is no error."""
        ...

    def range(self, what: Range, *, timeout_s: float) -> RangeResult:
        """Read keys, linearizably."""
        ...

    def txn(
        self,
        compare: Sequence[Compare],
        success: Sequence[Operation],
        failure: Sequence[Operation] = (),
        *,
        timeout_s: float,
    ) -> TxnResult:
        """Make a transaction. It may be made twice if an answer is lost, so it must be safe to repeat."""
        ...

    def txns(self, parts: Sequence[Txn], *, timeout_s: float) -> TxnResults:
        """Make several transactions as one, at one revision: each has its own compares, and fails alone.

        All compares see etcd as it was before the first of them, and no key may be written by two. So none may compare
        or read what another writes.
        """
        ...

    def watch(
        self,
        what: Sequence[tuple[Range, int]],
        *,
        deletes_only: bool = False,
        log: Callable[[str], None] = lambda _event: None,
        blind: Callable[[], None] = lambda: None,
    ) -> Watch:
        """Watch keys or ranges, each from a revision on; `log` is called with `watch-interrupted` and `watch-resumed`.

        `blind` is called every few seconds while no endpoint lets it watch.
        """
        ...

    def each_member(self) -> "Sequence[Store]":
        """Return a store for each endpoint, which asks only that one; the caller closes them. They share one login."""
        ...

    def renew(self, probe: Range, *, timeout_s: float) -> "Sequence[Renewal]":
        """Read certificates and password again and use them, if etcd lets us read `probe` with them.

        If they cannot be read or are refused, the old ones stay. Calls under way go on over their connection, which is
        closed once they must be done; watches go on over the new one. Raises nothing.
        """
        ...

    def moments(self, revision: int) -> tuple[float | None, float | None]:
        """Return times (CLOCK_BOOTTIME, seconds) after and before which this revision was written; None: unknown."""
        ...

    def close(self) -> None:
        """Close the connection."""
        ...
