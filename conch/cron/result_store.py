"""Results of ticks in etcd, and the limit on how many ticks a job keeps.

A result is created once and never changed. Ticks beyond the limit are removed for good: the same transaction raises
the job's floor, and neither a claim nor a result at or below the floor is accepted any more.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from conch.cron.shared_leases import SharedLeases
from conch.cron.ticks import TRIM
from conch.cron.transactions import Sending
from conch.cron.values import FIRST_TICK, LAST_TICK, Result
from conch.etcd.store import (
    Compare,
    CreateRevisionIs,
    Delete,
    KeyValue,
    LeaseGone,
    ModRevisionIs,
    Operation,
    Put,
    Range,
    RangeResult,
    Store,
    Txn,
    TxnResult,
    ValueBelow,
)
from conch.keys import Keys

HISTORY = 1000
# A job whose ticks run on every host keeps so many times as many rows.
EACH_TIMES = 10
# How many of a job's oldest ticks a transaction reads. One that finds more to remove has the next ones read `TRIM`.
_FEW = 4

# Job and tick, and the host if the tick runs on every host.
TickPath = tuple[str, int] | tuple[str, int, str]


@dataclass(frozen=True, slots=True)
class Delivered:
    """The result is in etcd, or not wanted there. `old` are ticks beyond the limit, oldest first."""

    old: tuple[int, ...]
    has_floor: bool
    is_wanted: bool = True


@dataclass(frozen=True, slots=True)
class _Assumed:
    """What a delivery assumes of etcd, and compares: corrected from the answer when a comparison fails.

    `run_rev` is the create-revision of the run key to end, None: it is gone. `unreadable_floor` is the mod-revision
    of a floor that is not a tick; such a floor does not count.
    """

    has_floor: bool
    run_rev: int | None
    unreadable_floor: int | None = None


def is_tick(value: bytes) -> bool:
    """Return whether the value of a floor is a tick."""
    return value.isdigit() and FIRST_TICK <= int(value[:11]) <= LAST_TICK


class ResultStore:
    """The transactions that record how ticks ended and remove expired ones. Every call may raise `StoreError`.

    Those that are `sending` may raise `Unsent`, too.
    """

    def __init__(self, store: Store, keys: Keys, history: int = HISTORY) -> None:
        """`history` is how many ticks a job keeps."""
        self.history = history
        self.leases = SharedLeases(store, keys.prefix)
        self._store = store
        self._keys = keys
        self._behind: set[str] = set()  # jobs with more to remove than a transaction reads

    # -- delivering ---------------------------------------------------------------------------------------

    async def deliver(
        self,
        name: str,
        tick: int,
        result: Result,
        run_rev: int | None,
        expired_ticks: Sequence[int],
        now: float,
        *,
        host: str = "",
        has_floor: bool,
        sending: Sending,
    ) -> Delivered:
        """Record how a tick ended, end its run key, and remove `expired_ticks` for good by raising the floor.

        A tick that runs on every host has `host` in its keys.

        A result is created once; at or below the floor none is wanted.
        """
        assumed = _Assumed(has_floor, run_rev)
        path: TickPath = (name, tick, host) if host else (name, tick)
        while True:
            expired_ticks = [expired for expired in expired_ticks if expired < tick]
            answer = await self._try_deliver(path, result, expired_ticks, assumed, now, sending)
            if answer.succeeded:
                return Delivered(self.found_old(name, *answer.ranges), assumed.has_floor or bool(expired_ticks))
            existing, floor, run = (found.kvs[0] if found.kvs else None for found in answer.ranges)
            unreadable = None if floor is None or is_tick(floor.value) else floor.mod_revision
            too_old = unreadable is None and floor is not None and floor.value >= str(tick).encode()
            run_rev = assumed.run_rev if run is not None and run.create_revision == assumed.run_rev else None
            if existing is not None or too_old:
                if run_rev is not None:
                    await self.end_run(name, host, run_rev, now, sending=sending)
                return Delivered((), floor is not None, is_wanted=existing is not None)
            expired_ticks = ()
            assumed = _Assumed(floor is not None, run_rev, unreadable)

    async def _try_deliver(
        self,
        path: TickPath,
        result: Result,
        expired_ticks: Sequence[int],
        assumed: _Assumed,
        now: float,
        sending: Sending,
    ) -> TxnResult:
        """Make the one transaction of a delivery.

        It answers with the oldest ticks; if a comparison failed, with the keys of the result, the floor and the run.
        """
        name, tick, *host = path
        key, run, floor = self._key("result", *path), self._key("run", name, *host), self._key("floor", name)
        above: Compare = ValueBelow(floor, str(tick).encode()) if assumed.has_floor else CreateRevisionIs(floor, 0)
        if assumed.unreadable_floor is not None:
            above = ModRevisionIs(floor, assumed.unreadable_floor)
        compare, success = self.recording(path, result, expired_ticks, now, has_floor=assumed.has_floor)
        compare += [CreateRevisionIs(key, 0), above]
        if assumed.run_rev is not None:
            compare.append(CreateRevisionIs(run, assumed.run_rev))
            success.append(Delete(run))
        failure = (Range(key, keys_only=True), Range(floor), Range(run, keys_only=True))
        answer = await sending.make(name, Txn(tuple(compare), tuple(success), failure), now)
        if answer is None:
            raise LeaseGone("cannot record a result: its lease is gone")
        return answer

    def recording(
        self, path: TickPath, result: Result, expired_ticks: Sequence[int], now: float, *, has_floor: bool
    ) -> tuple[list[Compare], list[Operation]]:
        """Return the comparisons and operations that put a result and remove the expired ticks before it.

        The operations end with reading the oldest ticks. That no result exists is for the caller to compare.
        """
        name, tick = path[:2]
        key = self._key("result", *path)
        expired_ticks = [expired for expired in expired_ticks if expired < tick]
        compare, removal = self.removal(name, expired_ticks, has_floor=has_floor)
        oldest = self.oldest(name, TRIM if name in self._behind else _FEW)
        return compare, [Put(key, result.encode(), self.leases.for_results(now)), *removal, *oldest]

    async def end_run(self, name: str, host: str, run_rev: int, now: float, *, sending: Sending) -> None:
        """Delete the job's run key (that of `host`, if one is given), if it is still the one created at `run_rev`."""
        run = self._key("run", name, *([host] if host else []))
        await sending.make(name, Txn((CreateRevisionIs(run, run_rev),), (Delete(run),)), now)

    # -- the limit ----------------------------------------------------------------------------------------

    def oldest(self, name: str, limit: int) -> list[Range]:
        """Return the reads of a job's oldest claims and results and their counts; other keys are rare among them."""
        prefixes = [self._keys.ticks(kind, name).encode() for kind in ("fire", "result")]
        first = str(FIRST_TICK).encode()
        return [Range(prefix + first, prefix + b":", limit=limit, keys_only=True) for prefix in prefixes]

    def found_old(self, name: str, claims: RangeResult, results: RangeResult) -> tuple[int, ...]:
        """Return the oldest ticks beyond the limit, out of the answers to the reads of `recording`."""
        if max(claims.count, results.count) - self._limit(claims, results) > _FEW:
            self._behind.add(name)
        else:
            self._behind.discard(name)
        return self.over(claims, results, most=TRIM)

    def over(self, claims: RangeResult, results: RangeResult, *, most: int, earlier: int = 0) -> tuple[int, ...]:
        """Return the oldest ticks beyond the limit, up to `most`, out of the answers to the reads of `oldest`.

        `earlier` is how many results are known to be older than the oldest claim.
        """
        excess = max(claims.count + earlier, results.count) - self._limit(claims, results)
        if excess <= 0:
            return ()
        keys_of: dict[int, int] = {}
        end = LAST_TICK
        for found in (claims, results):
            read = Counter(at.tick for kv in found.kvs if (at := self._keys.tick_of(kv.key)) is not None)
            keys_of |= {tick: max(count, keys_of.get(tick, 0)) for tick, count in read.items()}
            if found.count > len(found.kvs):
                end = min(end, max(read, default=0))  # past this tick there may be others that were not read
        over: list[int] = []
        for tick in sorted(tick for tick in keys_of if tick <= end)[:most]:
            if excess <= 0:
                break
            over.append(tick)
            excess -= keys_of[tick]  # a tick is removed for all hosts, or for none
        return tuple(over)

    def _limit(self, claims: RangeResult, results: RangeResult) -> int:
        """Return how many keys of one kind the job may have: more where a tick has one per host."""
        kvs = (*claims.kvs, *results.kvs)
        each = any((at := self._keys.tick_of(kv.key)) is not None and at.host for kv in kvs)
        return self.history * EACH_TIMES if each else self.history

    def removal(
        self, name: str, expired_ticks: Sequence[int], *, has_floor: bool
    ) -> tuple[list[Compare], list[Operation]]:
        """Return the comparisons and operations that remove these ticks for good: the floor rises, and never falls."""
        if not expired_ticks:
            return [], []
        floor, top = self._key("floor", name), str(max(expired_ticks)).encode()
        keys = [self._key(kind, name, tick) for tick in expired_ticks for kind in ("fire", "result")]
        removed = [Delete(key, key + b"0") for key in keys]  # the key itself, and those of hosts below it
        compare = ValueBelow(floor, top) if has_floor else CreateRevisionIs(floor, 0)
        return [compare], [*removed, Put(floor, top)]

    def prolong(self, kvs: Sequence[KeyValue], now: float, *, timeout_s: float) -> bool:
        """Move keys to the lease of results, which is the longer one, if all are unchanged; return whether it did."""
        read = self._store.txn([], [Range(kv.key) for kv in kvs], timeout_s=timeout_s).ranges
        values = [found.kvs[0].value if found.kvs else b"" for found in read]
        compare = [ModRevisionIs(kv.key, kv.mod_revision) for kv in kvs]
        lease = self.leases.for_results(now)
        puts = [Put(kv.key, value, lease) for kv, value in zip(kvs, values, strict=True)]
        answer = self.leases.call(lambda: self._store.txn(compare, puts, timeout_s=timeout_s), now, timeout_s)
        return answer is not None and answer.succeeded

    def _key(self, kind: str, *path: str | int) -> bytes:
        return self._keys.cron(kind, *path).encode()
