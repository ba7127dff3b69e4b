"""What conch asks of etcd: a few calls, each with a time limit, and the errors that they raise.

Timeouts are float seconds and cover the whole call, retries on other endpoints included.
"""

from collections.abc import Callable, Iterator, Sequence

from conch.errors import ConchError
from conch.record import Record
from conch.static_typing import Protocol


class StoreError(ConchError):
    """etcd did not do what was asked.

    `unclear` says that a write may have been made all the same, or may yet be; it is false only where etcd refused
    each try before it made anything, or none was sent.
    """

    unclear = True


class Unreachable(StoreError):
    """No endpoint answered in time. A write may have been made all the same."""

    def __init__(self, text: str, accepted: Callable[[], bool] = lambda: False) -> None:
        """`accepted` finds out whether somebody serves there all the same: slow is not away."""
        super().__init__(text)
        self.accepted = accepted


class Refused(StoreError):
    """etcd does not accept our credentials, or they do not allow this."""


class Rejected(StoreError):
    """etcd answered that it will not do this; asking again changes nothing."""


class Full(Rejected):
    """etcd's quota is used up, and it takes no writes (the NOSPACE alarm).

    The one request that crosses the quota is made and refused in the same answer, so a read must tell whether ours
    was; it cannot be made later.
    """


class Unfit(StoreError):
    """What answers at an endpoint will not do, however often it is asked; another endpoint may."""


class LeaseExists(Rejected):
    """A lease of this id is there already, and no earlier try of ours made it."""

    unclear = False


class LeaseGone(StoreError):
    """The lease does not exist, or no longer."""


class Compacted(StoreError):
    """The history that a watch asked for is gone: list again and go on from there."""


class WentBack(Compacted):
    """etcd was wiped or restored: what a watch goes on from has never been. List again, and trust nothing known."""


class Header(Record):
    """What every answer says of the member that gave it: the store's revision, the member, its raft term."""

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

    Newest first (by create-revision), oldest first, or last key first; `created_by` leaves out what was created after
    that revision. `keys_only` leaves out values, and leases too: etcd 3.7 no longer tells them then, so no release does
    here.
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
    """Delete a key."""

    key: bytes


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

    head: Header
    kvs: tuple[KeyValue, ...]
    count: int


class TxnResult(Record):
    """Which branch ran; `ranges` has the answers to its `Range` operations in their order."""

    head: Header
    succeeded: bool
    ranges: tuple[RangeResult, ...]


class Lease(Record):
    """A lease's TTL in seconds as etcd has it; 0 means that the lease is gone."""

    head: Header
    ttl_s: int


class Event(Record):
    """A key was written, or deleted (its value is then empty)."""

    kv: KeyValue
    deleted: bool


class Watch(Protocol):
    """Events in order, none missed, across the loss of endpoints; ends by `cancel` from any thread."""

    def __iter__(self) -> Iterator[Sequence[Event]]:
        """Yield the events as they come. Raises `Compacted`, `WentBack` or `Refused`."""
        ...

    def add(self, what: Range, start_revision: int) -> None:
        """Watch this too, from a revision on; from any thread."""
        ...

    def cancel(self) -> None:
        """End the iteration, now and from any thread."""
        ...


class Renewal(Record):
    """`certificates` or a `password` that was read anew; or (`problem` is not empty) why the old one stays."""

    what: str
    problem: str = ""


class Store(Protocol):
    """etcd. Every call may raise `Unreachable`, `Refused` or `Rejected`, and may be made from any thread."""

    def grant(self, lease: int, ttl_s: int, *, timeout_s: float) -> Lease:
        """Create a lease with an id of our own; that makes a repeated grant recognisable."""
        ...

    def keep_alive(self, lease: int, *, timeout_s: float) -> Lease:
        """Renew a lease once. A TTL of 0 says that it is gone; etcd reports no error."""
        ...

    def revoke(self, lease: int, *, timeout_s: float) -> None:
        """End a lease and delete its keys; one that is gone already is no error."""
        ...

    def range(self, what: Range, *, timeout_s: float) -> RangeResult:
        """A linearizable read."""
        ...

    def txn(
        self,
        compare: Sequence[Compare],
        success: Sequence[Operation],
        failure: Sequence[Operation] = (),
        *,
        timeout_s: float,
    ) -> TxnResult:
        """One transaction. It may be made twice if an answer is lost, so it must be safe to repeat."""
        ...

    def watch(
        self,
        what: Sequence[tuple[Range, int]],
        *,
        deletes_only: bool = False,
        tell: Callable[[str], None] = lambda _event: None,
        blind: Callable[[], None] = lambda: None,
    ) -> Watch:
        """Watch keys or ranges, each from a revision on; `tell` hears `watch-interrupted` and `watch-resumed`.

        `blind` is called every few seconds while no endpoint lets it watch.
        """
        ...

    def each_member(self) -> "Sequence[Store]":
        """A store for each endpoint, which asks that one alone; the caller closes them. They share one login."""
        ...

    def renew(self, probe: Range, *, timeout_s: float) -> "Sequence[Renewal]":
        """Read certificates and password anew and go over to them, if etcd lets us read `probe` with them.

        What cannot be read or is refused stays as it is. What is under way goes on over the connection that it has;
        that is closed once it must be done, and watches go on over the new one. Raises nothing.
        """
        ...

    def moments(self, revision: int) -> tuple[float | None, float | None]:
        """Between which two moments (CLOCK_BOOTTIME, seconds) this revision was made; None where that is not known."""
        ...

    def close(self) -> None:
        """Close the connection."""
        ...
