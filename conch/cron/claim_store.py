"""The transactions of a tick: each claims or ends it at once or not at all, and finds itself when it is repeated.

A claim is created once and outlives its run, so a tick runs at most once, whoever dies. The leases under claims and
results are shared by all hosts: their ids follow from the hour or the day, so leases do not grow with ticks or hosts.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from conch.cron.job import Job
from conch.cron.values import FIRST_TICK, LAST_TICK, Result, claim_value, fields_of
from conch.etcd.store import (
    Compare,
    CreateRevisionIs,
    Delete,
    Full,
    KeyValue,
    LeaseExists,
    LeaseGone,
    ModRevisionIs,
    Operation,
    Put,
    Range,
    RangeResult,
    Store,
    StoreError,
    TxnResult,
    ValueBelow,
)
from conch.holder import Holder
from conch.keys import Keys

# A claim lives 25 h at least; one lease serves the claims of an hour, one the results of a day.
_CLAIM_S, _CLAIM_EVERY_S = 26 * 3600, 3600
_RESULT_S, _RESULT_EVERY_S = 15 * 86400, 86400
# How many of these hours and days a lease is young: then no key under it is about to end.
_CLAIM_YOUNG, _RESULT_YOUNG = 6, 7
HISTORY = 1000
# How many old ticks one delivery removes at most: it catches up, and stays below etcd's limit of operations.
TRIM = 16


@dataclass(frozen=True, slots=True)
class Node:
    """Our daemon as it is registered: the number of its hold, its lease, its key's create-revision."""

    number: int
    lease: int
    rev: int


@dataclass(slots=True)
class PendingTick:
    """A tick that this daemon could claim. `now_rev` is the create-revision of the request for it, 0 if scheduled.

    `request` is the request's lease, by which whoever made it finds the claim, and `number` the one in its key.
    `unclear` says that a try was made whose outcome is not known; `trying` and `taking` that one is under way, for the
    claim or for the run key. `void` says why it is only to be recorded as skipped; `refused`, that etcd refused the
    newest try. After a failure it is not tried before `not_before` (CLOCK_BOOTTIME).
    """

    job: Job
    job_rev: int
    tick: int
    late_at: float
    run: str
    request_rev: int = 0
    request: str = ""
    number: int = 0
    unclear: bool = False
    trying: bool = False
    taking: bool = False
    void: str = ""
    refused: bool = False
    changes: int = 0
    pause_s: float = 0.0
    not_before: float = 0.0

    @property
    def id(self) -> tuple[str, int]:
        """Which tick it is."""
        return self.job.name, self.tick


@dataclass(frozen=True, slots=True)
class Won:
    """The tick is ours: the claim's create-revision and lease, and the run key's revision if we have that too.

    `old` are ticks over what is kept, oldest first; None: that was not looked at.
    """

    rev: int
    lease: int
    run_rev: int | None
    old: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class Taken:
    """Nobody can claim it any more, or not in this way: `why` says what stands against it.

    `odd` is the key of which nothing can be made, if that is it.
    """

    why: str
    odd: bytes = b""


@dataclass(frozen=True, slots=True)
class Busy:
    """A run of the job is alive: its run key; None: it has gone meanwhile."""

    run: KeyValue | None


@dataclass(frozen=True, slots=True)
class NodeGone:
    """We are not registered any more."""


@dataclass(frozen=True, slots=True)
class Changed:
    """The job is not what the claim was to be for: its key as it is now; None: it was removed. Nobody has the tick."""

    job: KeyValue | None


@dataclass(frozen=True, slots=True)
class Again:
    """What was known of the floor was wrong."""

    has_floor: bool


@dataclass(frozen=True, slots=True)
class Delivered:
    """The result is in etcd, or not wanted there. `old` are ticks over what is kept, oldest first."""

    old: tuple[int, ...]
    has_floor: bool
    wanted: bool = True


Outcome = Won | Taken | Changed | Busy | NodeGone | Again


def _is_tick(value: bytes) -> bool:
    return value.isdigit() and FIRST_TICK <= int(value[:11]) <= LAST_TICK


def shared_lease(prefix: str, kind: str, period: int) -> int:
    """The id of a lease that all hosts share."""
    digest = hashlib.sha256(f"{prefix} {kind} {period}".encode()).digest()
    return int.from_bytes(digest[:8]) >> 1 or 1


class Claims:
    """Claims and results of ticks in etcd. Every call may raise `StoreError`."""

    def __init__(self, store: Store, keys: Keys, host: str, history: int = HISTORY) -> None:
        """`history` is how many ticks a job keeps."""
        self.history = history
        self._store = store
        self._keys = keys
        self._host = host

    # -- claiming -----------------------------------------------------------------------------------------

    def claim(
        self, due: PendingTick, node: Node, me: Holder, now: float, *, has_floor: bool, timeout_s: float
    ) -> Outcome:
        """Take the tick to run it, with the job's run key where it needs one."""
        value = claim_value(me, due.run, due.tick, due.request)
        lease = self._claim_lease(now)
        compare, success = self._claiming(due, node, lease, value, has_floor=has_floor)
        if due.job.exclusive:
            run = self._key("run", due.job.name)
            compare.append(CreateRevisionIs(run, 0))
            success.append(Put(run, value, node.lease))
        return self._claim(due, node, compare, success, now, has_floor=has_floor, timeout_s=timeout_s)

    def claim_to_wait(
        self, due: PendingTick, node: Node, me: Holder, now: float, busy: KeyValue, *, has_floor: bool, timeout_s: float
    ) -> Outcome:
        """Take the tick while the run before it is being ended for it (`replace`)."""
        lease = self._claim_lease(now)
        value = claim_value(me, due.run, due.tick, due.request)
        compare, success = self._claiming(due, node, lease, value, has_floor=has_floor)
        compare.append(CreateRevisionIs(busy.key, busy.create_revision))
        return self._claim(due, node, compare, success, now, has_floor=has_floor, timeout_s=timeout_s)

    def claim_to_skip(
        self,
        due: PendingTick,
        node: Node,
        me: Holder,
        now: float,
        busy: KeyValue | None,
        reason: str,
        old: Sequence[int] = (),
        *,
        has_floor: bool,
        timeout_s: float,
    ) -> Outcome:
        """Take the tick and record at once that it is not run; remove the ticks `old` for good, as `deliver` does."""
        lease = self._claim_lease(now)
        value = claim_value(me, due.run, due.tick, due.request, skip=True)
        compare, success = self._claiming(due, node, lease, value, has_floor=has_floor)
        if busy is not None:
            compare.append(CreateRevisionIs(busy.key, busy.create_revision))
        result = Result(self._host, "skipped", reason=reason).encode()
        success.append(Put(self._key("result", *due.id), result, self._result_lease(now)))
        removing = self.removal(due.job.name, [one for one in old if one < due.tick], has_floor=has_floor)
        compare += removing[0]
        success += [*removing[1], *self.oldest(due.job.name, TRIM)]
        return self._claim(due, node, compare, success, now, has_floor=has_floor, timeout_s=timeout_s)

    def take_run(self, due: PendingTick, rev: int, node: Node, me: Holder, *, timeout_s: float) -> Outcome:
        """For a tick that waited: take the run key now that the run before it is gone."""
        fire, run, ours = self._key("fire", *due.id), self._key("run", due.job.name), self._node_key()
        ended = self._key("result", *due.id)
        result = self._store.txn(
            [
                CreateRevisionIs(ours, node.rev),
                CreateRevisionIs(fire, rev),
                CreateRevisionIs(ended, 0),
                CreateRevisionIs(run, 0),
            ],
            [Put(run, claim_value(me, due.run, due.tick), node.lease), Range(fire)],
            [
                Range(ours, keys_only=True),
                Range(run),
                Range(fire),
                Range(ended, keys_only=True),
            ],
            timeout_s=timeout_s,
        )
        if result.succeeded:
            return Won(rev, result.ranges[0].kvs[0].lease, result.header.revision)
        at, running, claimed, over = (found.kvs[0] if found.kvs else None for found in result.ranges)
        if over is not None:
            return Taken("it has a result")
        if running is not None and fields_of(running.value).get("run") == due.run:
            return Won(rev, claimed.lease if claimed else 0, running.create_revision)  # an earlier try was made
        if at is None or at.create_revision != node.rev:
            return NodeGone()
        if claimed is None or claimed.create_revision != rev:
            return Taken("the claim is gone")
        return Busy(running)

    def whose(self, due: PendingTick, *, timeout_s: float) -> tuple[KeyValue | None, KeyValue | None]:
        """The claim of a tick and the job's run key as they are, without making any."""
        asked = [Range(self._key("fire", *due.id)), Range(self._key("run", due.job.name))]
        fire, run = (
            found.kvs[0] if found.kvs else None for found in self._store.txn([], asked, timeout_s=timeout_s).ranges
        )
        return fire, run

    def release(self, name: str, run_rev: int, *, timeout_s: float) -> None:
        """End a run key that is of no use."""
        run = self._key("run", name)
        self._store.txn([CreateRevisionIs(run, run_rev)], [Delete(run)], timeout_s=timeout_s)

    def is_ours(self, kv: KeyValue, due: PendingTick) -> bool:
        """Whether a claim or run key was made for this very run."""
        return fields_of(kv.value).get("run") == due.run

    def taken_between(self, asked: Mapping[str, tuple[int, int]], *, timeout_s: float) -> dict[str, set[int]]:
        """For each job, of the ticks from a first to a last, those with a claim, or a result (it outlives its claim).

        At most some dozens of jobs, for etcd's limit of operations.
        """
        ranges = [
            Range(self._key(kind, name, first), self._key(kind, name, last + 1), keys_only=True)
            for name, (first, last) in asked.items()
            for kind in ("fire", "result")
        ]
        taken: dict[str, set[int]] = {name: set() for name in asked}
        for found in self._store.txn([], ranges, timeout_s=timeout_s).ranges:
            for kv in found.kvs:
                at = self._keys.tick_of(kv.key)
                if at is not None and at.name in taken:
                    taken[at.name].add(at.tick)
        return taken

    def _claiming(
        self, due: PendingTick, node: Node, lease: int, value: bytes, *, has_floor: bool
    ) -> tuple[list[Compare], list[Operation]]:
        """What all claims compare and do."""
        floor = self._key("floor", due.job.name)
        compare: list[Compare] = [
            CreateRevisionIs(self._node_key(), node.rev),
            CreateRevisionIs(self._key("fire", *due.id), 0),
            CreateRevisionIs(self._key("result", *due.id), 0),
            ModRevisionIs(self._key("job", due.job.name), due.job_rev),
            ValueBelow(floor, str(due.tick).encode()) if has_floor else CreateRevisionIs(floor, 0),
        ]
        success: list[Operation] = [Put(self._key("fire", *due.id), value, lease)]
        if due.request_rev:
            request = self._key("now", due.job.name, due.number)
            compare.append(CreateRevisionIs(request, due.request_rev))
            success.append(Delete(request))
        return compare, success

    def _claim(
        self,
        due: PendingTick,
        node: Node,
        compare: Sequence[Compare],
        success: Sequence[Operation],
        now: float,
        *,
        has_floor: bool,
        timeout_s: float,
    ) -> Outcome:
        name = due.job.name
        failure = [
            Range(self._node_key(), keys_only=True),
            Range(self._key("fire", *due.id)),
            Range(self._key("result", *due.id), keys_only=True),
            Range(self._key("job", name)),
            Range(self._key("floor", name)),
            Range(self._key("now", due.job.name, due.number), keys_only=True),
            Range(self._key("run", name)),
        ]
        try:
            result = self._with_leases(
                lambda: self._store.txn(compare, success, failure, timeout_s=timeout_s), now, timeout_s
            )
        except Full as error:
            result = self._read_back(failure, error, timeout_s)
            if result.ranges[1].kvs and self.is_ours(result.ranges[1].kvs[0], due):
                return self._why_not(due, node, result, has_floor=has_floor)
            raise
        if result is None:
            return NodeGone()
        if result.succeeded:
            taken = any(isinstance(one, Put) and one.key == self._key("run", name) for one in success)
            rev, old = result.header.revision, self.over(*result.ranges, most=TRIM) if result.ranges else None
            return Won(rev, self._claim_lease(now), rev if taken else None, old)
        return self._why_not(due, node, result, has_floor=has_floor)

    def _read_back(self, asked: Sequence[Operation], error: Full, timeout_s: float) -> TxnResult:
        """What is there after a refusal that may have been made all the same; without an answer it stays unclear."""
        try:
            return self._store.txn([], asked, timeout_s=timeout_s)
        except StoreError:
            error.unclear = True
            raise error from None

    def _why_not(self, due: PendingTick, node: Node, result: TxnResult, *, has_floor: bool) -> Outcome:
        """What a claim found that was not made just now: an earlier try of ours, or what stands against it."""
        ours, fire, ended, job, floor, request, run = (found.kvs[0] if found.kvs else None for found in result.ranges)
        if fire is not None:
            if not self.is_ours(fire, due):
                return Taken("claimed by another")
            if fields_of(fire.value).get("skip") is True:
                return Taken("an earlier try of ours recorded it as skipped")
            mine = run is not None and self.is_ours(run, due)
            return Won(fire.create_revision, fire.lease, run.create_revision if run is not None and mine else None)
        if ended is not None:
            return Taken("it has a result")
        if (floor is not None) != has_floor:
            return Again(floor is not None)
        if floor is not None and not _is_tick(floor.value):
            return Taken("its floor cannot be read", floor.key)
        if floor is not None and floor.value >= str(due.tick).encode():
            return Taken("it is older than what is kept")
        if job is None or job.mod_revision != due.job_rev:
            return Changed(job)
        if due.request_rev and (request is None or request.create_revision != due.request_rev):
            return Taken("the request is gone")
        if ours is None or ours.create_revision != node.rev:
            return NodeGone()
        return Busy(run)

    # -- ending -------------------------------------------------------------------------------------------

    def deliver(
        self,
        name: str,
        tick: int,
        result: Result,
        run_rev: int | None,
        old: Sequence[int],
        now: float,
        *,
        has_floor: bool,
        timeout_s: float,
    ) -> Delivered:
        """Record how a tick ended, end its run key, and remove the ticks `old` for good by raising the floor.

        A result is created once; below the floor none is wanted.
        """
        key, run, floor = self._key("result", name, tick), self._key("run", name), self._key("floor", name)
        oldest = self.oldest(name, TRIM)
        known: tuple[bool, int | None] = (has_floor, run_rev)
        odd: int | None = None  # the revision of a floor that cannot be read: it does not count
        while True:
            has_floor, held = known
            above = ValueBelow(floor, str(tick).encode()) if has_floor else CreateRevisionIs(floor, 0)
            compare: list[Compare] = [CreateRevisionIs(key, 0), above if odd is None else ModRevisionIs(floor, odd)]
            success: list[Operation] = [Put(key, result.encode(), self._result_lease(now))]
            if held is not None:
                compare.append(CreateRevisionIs(run, held))
                success.append(Delete(run))
            old = [one for one in old if one < tick]
            removing = self.removal(name, old, has_floor=has_floor)
            compare += removing[0]
            success += removing[1]
            answer = self._with_leases(
                lambda c=compare, s=success: self._store.txn(  # type: ignore[misc]
                    c,
                    [*s, *oldest],
                    [Range(key, keys_only=True), Range(floor), Range(run, keys_only=True), *oldest],
                    timeout_s=timeout_s,
                ),
                now,
                timeout_s,
            )
            if answer is None:
                raise LeaseGone("cannot record a result: its lease is gone")
            if answer.succeeded:
                return Delivered(self.over(*answer.ranges, most=TRIM), has_floor or bool(old))
            there, bottom, running = (found.kvs[0] if found.kvs else None for found in answer.ranges[:3])
            odd = None if bottom is None or _is_tick(bottom.value) else bottom.mod_revision
            too_old = odd is None and bottom is not None and bottom.value >= str(tick).encode()
            if there is not None or too_old:
                if held is not None and running is not None and running.create_revision == held:
                    self.release(name, held, timeout_s=timeout_s)
                return Delivered((), bottom is not None, wanted=there is not None)
            old = ()
            known = (bottom is not None, held if running is not None and running.create_revision == held else None)

    # -- what is over the limit ---------------------------------------------------------------------------

    def oldest(self, name: str, limit: int) -> list[Range]:
        """The oldest claims and results of a job, and how many it has; other keys lie hardly ever among them."""
        prefixes = [self._keys.ticks(kind, name).encode() for kind in ("fire", "result")]
        first = str(FIRST_TICK).encode()
        return [Range(prefix + first, prefix + b":", limit=limit, keys_only=True) for prefix in prefixes]

    def over(self, fires: RangeResult, results: RangeResult, *, most: int, earlier: int = 0) -> tuple[int, ...]:
        """The oldest ticks beyond those that are kept, at most so many, from what `oldest` found.

        `earlier` is how many results are known to be older than the oldest claim.
        """
        over = max(fires.count + earlier, results.count) - self.history
        if over <= 0:
            return ()
        ticks: set[int] = set()
        end = LAST_TICK
        for found in (fires, results):
            some = {at.tick for kv in found.kvs if (at := self._keys.tick_of(kv.key)) is not None}
            ticks |= some
            if found.count > len(found.kvs):
                end = min(end, max(some, default=0))  # beyond that there may be others
        return tuple(sorted(tick for tick in ticks if tick <= end)[: min(over, most)])

    def removal(self, name: str, old: Sequence[int], *, has_floor: bool) -> tuple[list[Compare], list[Operation]]:
        """What to compare and to do to remove these ticks for good: the floor goes up, and never down."""
        if not old:
            return [], []
        floor, top = self._key("floor", name), str(max(old)).encode()
        keys = [self._key(kind, name, one) for one in old for kind in ("fire", "result")]
        compare = ValueBelow(floor, top) if has_floor else CreateRevisionIs(floor, 0)
        return [compare], [*map(Delete, keys), Put(floor, top)]

    # -- leases and keys ----------------------------------------------------------------------------------

    def young_leases(self, now: float) -> frozenset[int]:
        """The shared leases that last long enough, whoever granted them; those of a clock a little ahead, too."""
        claims = (self._claim_lease(now + at * _CLAIM_EVERY_S) for at in range(-_CLAIM_YOUNG, 2))
        results = (self._result_lease(now + at * _RESULT_EVERY_S) for at in range(-_RESULT_YOUNG, 2))
        return frozenset((*claims, *results))

    def prolong(self, kvs: Sequence[KeyValue], now: float, *, timeout_s: float) -> bool:
        """Put keys under the shared lease of results, which is the longer one, if all are as they were."""
        there = self._store.txn([], [Range(kv.key) for kv in kvs], timeout_s=timeout_s).ranges
        values = [found.kvs[0].value if found.kvs else b"" for found in there]
        compare = [ModRevisionIs(kv.key, kv.mod_revision) for kv in kvs]
        lease = self._result_lease(now)
        puts = [Put(kv.key, value, lease) for kv, value in zip(kvs, values, strict=True)]
        made = self._with_leases(lambda: self._store.txn(compare, puts, timeout_s=timeout_s), now, timeout_s)
        return made is not None and made.succeeded

    def _with_leases(self, call: Callable[[], TxnResult], now: float, timeout_s: float) -> TxnResult | None:
        """Call, and once more with the shared leases granted if one was missing; None: another lease is."""
        try:
            return call()
        except LeaseGone as error:
            unclear = error.unclear
        for lease, ttl_s in ((self._claim_lease(now), _CLAIM_S), (self._result_lease(now), _RESULT_S)):
            try:
                self._store.grant(lease, ttl_s, timeout_s=timeout_s)
            except LeaseExists:
                pass  # another host was first
            except StoreError as error:
                error.unclear = unclear  # it says nothing of the call itself
                raise
        try:
            return call()
        except LeaseGone as error:
            if unclear or error.unclear:
                error.unclear = True  # an earlier try may have been made
                raise
            return None
        except StoreError as error:
            error.unclear = error.unclear or unclear
            raise

    def _claim_lease(self, now: float) -> int:
        return shared_lease(self._keys.prefix, "claims", int(now // _CLAIM_EVERY_S))

    def _result_lease(self, now: float) -> int:
        return shared_lease(self._keys.prefix, "results", int(now // _RESULT_EVERY_S))

    def _key(self, kind: str, *path: str | int) -> bytes:
        return self._keys.cron(kind, *path).encode()

    def _node_key(self) -> bytes:
        return self._keys.node(self._host).encode()
