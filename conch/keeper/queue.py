"""The queue recipe: first come, first served by create-revision; the first N hold.

Each contender has one leased key below the queue's. To be promoted, at most N-1 of those ahead may remain, so of any
N of them one must leave first: whoever watches the N keys right ahead, and looks again when one goes, misses nothing
and is woken by nothing else. An election is this queue with N = 1. (The recipe of etcd's own lock, from N = 1 to N.)
"""

from conch.etcd.store import CreateRevisionIs, Put, Range, RangeResult, Store
from conch.keeper.hold_spec import QueueSpec
from conch.keys import contender, prefix_end
from conch.record import Record, replace


class PlaceLost(Exception):
    """Our key is not there, or not the one that we created."""


class Place(Record):
    """A place in the queue, as true at revision `seen_at`.

    `rev` is our key's create-revision, the fencing token. `ahead` are the up to N keys right ahead of us;
    it is empty when we hold. Those of them without a lease are `unleased`. `elsewhere` are keys seen in queues of other
    capacities, at the entry only.
    """

    rev: int
    ahead: tuple[bytes, ...]
    seen_at: int
    elsewhere: tuple[bytes, ...] = ()
    unleased: tuple[bytes, ...] = ()

    @property
    def held(self) -> bool:
        """Whether we are among the first N."""
        return not self.ahead


class Queue(Record):
    """One queue with its number of slots, as one contender with one lease sees it."""

    store: Store
    stage: QueueSpec
    lease: int

    @property
    def slots(self) -> int:
        """How many hold at once."""
        return self.stage.slots

    @property
    def key(self) -> str:
        """Our own key."""
        return contender(self.stage.prefix, self.lease)

    @property
    def _everyone(self) -> tuple[bytes, bytes]:
        prefix = self.stage.prefix.encode()
        return prefix, prefix_end(prefix)

    def enter(self, value: bytes, *, timeout_s: float) -> Place:
        """Create our key, or find that an earlier try did, and tell our place; one transaction on a first try.

        Raises `LeaseGone` if the lease has expired.
        """
        key = self.key.encode()
        start, end = self._everyone
        result = self.store.txn(
            [CreateRevisionIs(key, 0)],
            [
                Put(key, value, self.lease),
                # Ours is the newest: the answer is our own key, then those right ahead of us.
                Range(start, end, newest_first=True, limit=self.slots + 1),
                *self._elsewhere(),
            ],
            [Range(key, keys_only=True)],
            timeout_s=timeout_s,
        )
        if result.succeeded:
            elsewhere = tuple(kv.key for other in result.ranges[1:] for kv in other.kvs)
            return replace(
                self._place(result.header.revision, result.ranges[0], result.header.revision), elsewhere=elsewhere
            )
        if not result.ranges[0].kvs:
            raise PlaceLost  # it was there when compared and is gone: etcd never does this
        return self.look(result.ranges[0].kvs[0].create_revision, timeout_s=timeout_s)

    def full(self, *, timeout_s: float) -> bool:
        """Whether nobody who came now would hold."""
        start, end = self._everyone
        found = self.store.range(Range(start, end, limit=self.slots, keys_only=True), timeout_s=timeout_s)
        return len(found.kvs) >= self.slots

    def look(self, rev: int, *, timeout_s: float) -> Place:
        """Tell our place by one linearizable read, of our own key and those right ahead at one revision.

        Raises `PlaceLost` if our own is not there, or not the one that we created. (A read and not a transaction that
        compares, which says the same: a full etcd refuses transactions, but it must not keep a free slot from us.)
        """
        start, end = self._everyone
        newest = Range(start, end, newest_first=True, limit=self.slots + 1, max_create_revision=rev)
        result = self.store.range(newest, timeout_s=timeout_s)
        if not result.kvs or (result.kvs[0].key, result.kvs[0].create_revision) != (self.key.encode(), rev):
            raise PlaceLost
        return self._place(rev, result, result.header.revision)

    def _elsewhere(self) -> tuple[Range, ...]:
        """One key each of the queues of other capacities that sort before and after ours."""
        if self.stage.family is None:
            return ()
        family = self.stage.family.encode()
        start, end = self._everyone
        return (
            Range(family, start, limit=1, keys_only=True),
            Range(end, prefix_end(family), limit=1, keys_only=True),
        )

    def _place(self, rev: int, newest: RangeResult, seen_at: int) -> Place:
        ahead = tuple(kv for kv in newest.kvs if kv.create_revision < rev)[: self.slots]
        if len(ahead) < self.slots:
            return Place(rev, (), seen_at)
        unleased = tuple(kv.key for kv in ahead if not kv.lease)
        return Place(rev, tuple(kv.key for kv in ahead), seen_at, unleased=unleased)
