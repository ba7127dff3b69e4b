"""The queue recipe: first come, first served by create-revision; the first N hold.

Each contender has one leased key below the queue's. To be promoted, at most N-1 of those ahead may remain, so of any
N of them one must leave first: a contender that watches the N keys right ahead, and reads its place again when one is
deleted, misses nothing and is woken by nothing else. An election is this queue with N = 1. (This is the recipe of
etcd's own lock, from N = 1 to N.)
"""

from conch.etcd.store import CreateRevisionIs, ModRevisionIs, Put, Range, RangeResult, Store
from conch.keeper.hold_spec import QueueSpec
from conch.keys import contender, prefix_end
from conch.record import Record, replace
from conch.static_typing import Callable


class PlaceLost(Exception):
    """Our key is not there, or not the one that we created."""


class Place(Record):
    """A place in the queue, as true at revision `seen_at`.

    `rev` is our key's create-revision, the fencing token. `ahead` has the N keys right ahead of us, or none when we
    hold; `unleased` has those of them without a lease. `elsewhere` has keys seen in queues of other capacities, and is
    filled by `Queue.enter` only.
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
    """A queue as one contender with one lease sees it."""

    store: Store
    spec: QueueSpec
    lease: int

    @property
    def slots(self) -> int:
        """How many contenders hold at the same time."""
        return self.spec.slots

    @property
    def key(self) -> str:
        """Our own key."""
        return contender(self.spec.prefix, self.lease)

    def enter(self, value: bytes, *, timeout_s: float) -> Place:
        """Create our key, unless an earlier try did, and return our place; one transaction on a first try.

        Raises `LeaseGone` if the lease has expired.
        """
        key = self.key.encode()
        start, end = _contenders(self.spec)
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
            raise PlaceLost  # the key was there when compared and is not there now: etcd never does this
        return self.read(result.ranges[0].kvs[0].create_revision, timeout_s=timeout_s)

    def read(self, rev: int, *, timeout_s: float) -> Place:
        """Return our place by one linearizable read, of our own key and those right ahead at one revision.

        Raises `PlaceLost` if our own is not there, or not the one that we created. (A read, not a transaction that
        compares and says the same: a full etcd refuses transactions, but it must not keep a free slot from us.)
        """
        start, end = _contenders(self.spec)
        newest = Range(start, end, newest_first=True, limit=self.slots + 1, max_create_revision=rev)
        result = self.store.range(newest, timeout_s=timeout_s)
        if not result.kvs or (result.kvs[0].key, result.kvs[0].create_revision) != (self.key.encode(), rev):
            raise PlaceLost
        return self._place(rev, result, result.header.revision)

    def describe(self, rev: int, value: bytes, *, timeout_s: float) -> bool:
        """Give our key with create-revision `rev` another value; return whether that was done.

        It is done once, and only while the key is as we created it: that revision is its mod-revision, too. A key that
        is gone is not made again, and what somebody else wrote into it stays.
        """
        key = self.key.encode()
        unchanged, described = ModRevisionIs(key, rev), Put(key, value, self.lease)
        return self.store.txn([unchanged], [described], timeout_s=timeout_s).succeeded

    def _elsewhere(self) -> tuple[Range, ...]:
        """Return the ranges of one key each in the queues of other capacities, before and after ours in sort order."""
        if self.spec.sibling_prefix is None:
            return ()
        sibling_prefix = self.spec.sibling_prefix.encode()
        start, end = _contenders(self.spec)
        return (
            Range(sibling_prefix, start, limit=1, keys_only=True),
            Range(end, prefix_end(sibling_prefix), limit=1, keys_only=True),
        )

    def _place(self, rev: int, newest: RangeResult, seen_at: int) -> Place:
        ahead = tuple(kv for kv in newest.kvs if kv.create_revision < rev)[: self.slots]
        if len(ahead) < self.slots:
            return Place(rev, (), seen_at)
        unleased = tuple(kv.key for kv in ahead if not kv.lease)
        return Place(rev, tuple(kv.key for kv in ahead), seen_at, unleased=unleased)


def is_full(
    store: Store, spec: QueueSpec, until_answered: Callable[[Callable[[float], RangeResult]], RangeResult]
) -> bool:
    """Return whether a contender that entered the queue now would have to wait."""
    start, end = _contenders(spec)
    contenders = Range(start, end, limit=spec.slots, keys_only=True)
    found = until_answered(lambda limit_s: store.range(contenders, timeout_s=limit_s))
    return len(found.kvs) >= spec.slots


def _contenders(spec: QueueSpec) -> tuple[bytes, bytes]:
    """Return where the range of all contenders begins and ends."""
    prefix = spec.prefix.encode()
    return prefix, prefix_end(prefix)
