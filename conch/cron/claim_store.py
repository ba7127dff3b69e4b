"""Claims of ticks in etcd: each transaction claims a tick completely or not at all, and recognises its own repetition.

A claim is created once and outlives its run, so a tick runs at most once, whichever host dies.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from conch.cron.result_store import ResultStore, is_tick
from conch.cron.ticks import PendingTick, Registration
from conch.cron.transactions import Sending
from conch.cron.values import Result, claim_value, fields_of
from conch.etcd.store import (
    Compare,
    CreateRevisionIs,
    Delete,
    Full,
    KeyValue,
    ModRevisionIs,
    Operation,
    Put,
    Range,
    Store,
    StoreError,
    Txn,
    TxnResult,
    ValueBelow,
)
from conch.holder import Holder
from conch.keys import Keys


@dataclass(frozen=True, slots=True)
class Won:
    """The tick is ours: the claim's create-revision and lease, and the run key's revision if we have that too.

    `old` are ticks beyond the limit of history, oldest first; None: that was not read.
    """

    rev: int
    lease: int
    run_rev: int | None
    old: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class Taken:
    """Nobody can claim the tick any more, or not in this way: `why` says what stands against it.

    `odd` is the key whose unreadable value stands against it, if that is the reason.
    """

    why: str
    odd: bytes = b""


@dataclass(frozen=True, slots=True)
class Busy:
    """A run of the job is alive: its run key; None: it has ended meanwhile."""

    run: KeyValue | None


@dataclass(frozen=True, slots=True)
class NodeGone:
    """We are not registered any more."""


@dataclass(frozen=True, slots=True)
class Changed:
    """The job has changed since the tick was planned, and nobody has the tick: the job's key now; None: removed."""

    job: KeyValue | None


@dataclass(frozen=True, slots=True)
class Again:
    """The assumption whether the job has a floor was wrong: try again with this one."""

    has_floor: bool


Outcome = Won | Taken | Changed | Busy | NodeGone | Again


class ClaimStore:
    """The transactions on claims and run keys. Every call may raise `StoreError`.

    Those that are `sending` may raise `Unsent`, too.
    """

    def __init__(self, store: Store, keys: Keys, host: str, results: ResultStore) -> None:
        self._store = store
        self._keys = keys
        self._host = host
        self._node_key = keys.node(host).encode()
        self._results = results
        self._leases = results.leases

    # -- claiming -----------------------------------------------------------------------------------------

    async def claim(
        self,
        pending: PendingTick,
        node: Registration,
        identity: Holder,
        now: float,
        *,
        has_floor: bool,
        sending: Sending,
    ) -> Outcome:
        """Claim the tick to run it, with the job's run key where the job needs one."""
        value = claim_value(identity, pending.run, pending.tick, pending.request)
        compare, success = self._common(pending, node, value, now, has_floor=has_floor)
        if pending.job.exclusive:
            run = self._key("run", pending.job.name)
            compare.append(CreateRevisionIs(run, 0))
            success.append(Put(run, value, node.lease))
        return await self._claim(pending, node, compare, success, now, has_floor=has_floor, sending=sending)

    async def claim_to_wait(
        self,
        pending: PendingTick,
        node: Registration,
        identity: Holder,
        now: float,
        busy: KeyValue,
        *,
        has_floor: bool,
        sending: Sending,
    ) -> Outcome:
        """Claim the tick while the run before it is ended to make room for it (`replace`)."""
        value = claim_value(identity, pending.run, pending.tick, pending.request)
        compare, success = self._common(pending, node, value, now, has_floor=has_floor)
        compare.append(CreateRevisionIs(busy.key, busy.create_revision))
        return await self._claim(pending, node, compare, success, now, has_floor=has_floor, sending=sending)

    async def claim_to_skip(
        self,
        pending: PendingTick,
        node: Registration,
        identity: Holder,
        now: float,
        busy: KeyValue | None,
        reason: str,
        expired_ticks: Sequence[int] = (),
        *,
        has_floor: bool,
        sending: Sending,
    ) -> Outcome:
        """Claim the tick and record in the same transaction that it does not run.

        This also removes `expired_ticks` for good, as `ResultStore.deliver` does.
        """
        value = claim_value(identity, pending.run, pending.tick, pending.request, skip=True)
        compare, success = self._common(pending, node, value, now, has_floor=has_floor)
        if busy is not None:
            compare.append(CreateRevisionIs(busy.key, busy.create_revision))
        result = Result(self._host, "skipped", reason=reason)
        recording = self._results.recording(*pending.id, result, expired_ticks, now, has_floor=has_floor)
        compare += recording[0]
        success += recording[1]
        return await self._claim(pending, node, compare, success, now, has_floor=has_floor, sending=sending)

    def _common(
        self, pending: PendingTick, node: Registration, value: bytes, now: float, *, has_floor: bool
    ) -> tuple[list[Compare], list[Operation]]:
        """Return the comparisons and operations that all kinds of claims share."""
        floor = self._key("floor", pending.job.name)
        compare: list[Compare] = [
            CreateRevisionIs(self._node_key, node.rev),
            CreateRevisionIs(self._key("fire", *pending.id), 0),
            CreateRevisionIs(self._key("result", *pending.id), 0),
            ModRevisionIs(self._key("job", pending.job.name), pending.job_rev),
            ValueBelow(floor, str(pending.tick).encode()) if has_floor else CreateRevisionIs(floor, 0),
        ]
        success: list[Operation] = [Put(self._key("fire", *pending.id), value, self._leases.for_claims(now))]
        if pending.request_rev:
            request = self._key("now", pending.job.name, pending.number)
            compare.append(CreateRevisionIs(request, pending.request_rev))
            success.append(Delete(request))
        return compare, success

    async def _claim(
        self,
        pending: PendingTick,
        node: Registration,
        compare: Sequence[Compare],
        success: Sequence[Operation],
        now: float,
        *,
        has_floor: bool,
        sending: Sending,
    ) -> Outcome:
        name = pending.job.name
        failure = (
            Range(self._node_key, keys_only=True),
            Range(self._key("fire", *pending.id)),
            Range(self._key("result", *pending.id), keys_only=True),
            Range(self._key("job", name)),
            Range(self._key("floor", name)),
            Range(self._key("now", name, pending.number), keys_only=True),
            Range(self._key("run", name)),
        )
        try:
            answer = await sending.make(name, Txn(tuple(compare), tuple(success), failure), now)
        except Full as error:
            answer = await self._read_back(failure, error, sending)
            if answer.ranges[1].kvs and self.is_ours(answer.ranges[1].kvs[0], pending):
                return self._explain(pending, node, answer, has_floor=has_floor)
            raise
        if answer is None:
            return NodeGone()
        if answer.succeeded:
            has_run = self._key("run", name) in [operation.key for operation in success if isinstance(operation, Put)]
            rev = answer.header.revision
            expired = self._results.found_old(name, *answer.ranges) if answer.ranges else None
            return Won(rev, self._leases.for_claims(now), rev if has_run else None, expired)
        return self._explain(pending, node, answer, has_floor=has_floor)

    async def _read_back(self, reads: Sequence[Range], error: Full, sending: Sending) -> TxnResult:
        """Read what a refused claim may have written all the same; if that fails too, mark the outcome unclear."""
        try:
            return await sending.read(*reads)
        except StoreError:
            error.unclear = True
            raise error from None

    def _explain(self, pending: PendingTick, node: Registration, answer: TxnResult, *, has_floor: bool) -> Outcome:
        """Say why a claim's comparison failed: an earlier try of ours has won, or something stands against it."""
        ours, claim, result, job, floor, request, run = (found.kvs[0] if found.kvs else None for found in answer.ranges)
        if claim is not None:
            if not self.is_ours(claim, pending):
                return Taken("claimed by another")
            if fields_of(claim.value).get("skip") is True:
                return Taken("an earlier try of ours recorded it as skipped")
            has_run = run is not None and self._is_held(run, pending, node)
            return Won(claim.create_revision, claim.lease, run.create_revision if run is not None and has_run else None)
        if result is not None:
            return Taken("it has a result")
        if (floor is not None) != has_floor:
            return Again(floor is not None)
        if floor is not None and not is_tick(floor.value):
            return Taken("its floor cannot be read", floor.key)
        if floor is not None and floor.value >= str(pending.tick).encode():
            return Taken("it is older than what is kept")
        if job is None or job.mod_revision != pending.job_rev:
            return Changed(job)
        if pending.request_rev and (request is None or request.create_revision != pending.request_rev):
            return Taken("the request is gone")
        if ours is None or ours.create_revision != node.rev:
            return NodeGone()
        return Busy(run)

    async def take_run(
        self, pending: PendingTick, rev: int, node: Registration, identity: Holder, now: float, *, sending: Sending
    ) -> Outcome:
        """Take the run key for a tick that waited, now that the run before it has ended."""
        claim_key, run_key = self._key("fire", *pending.id), self._key("run", pending.job.name)
        result_key, node_key = self._key("result", *pending.id), self._node_key
        txn = Txn(
            (
                CreateRevisionIs(node_key, node.rev),
                CreateRevisionIs(claim_key, rev),
                CreateRevisionIs(result_key, 0),
                CreateRevisionIs(run_key, 0),
            ),
            (Put(run_key, claim_value(identity, pending.run, pending.tick), node.lease), Range(claim_key)),
            (Range(node_key, keys_only=True), Range(run_key), Range(claim_key), Range(result_key, keys_only=True)),
        )
        answer = await sending.make(pending.job.name, txn, now)
        if answer is None:
            return NodeGone()
        if answer.succeeded:
            return Won(rev, answer.ranges[0].kvs[0].lease, answer.header.revision)
        ours, run, claim, result = (found.kvs[0] if found.kvs else None for found in answer.ranges)
        if result is not None:
            return Taken("it has a result")
        if run is not None and self._is_held(run, pending, node):
            return Won(rev, claim.lease if claim else 0, run.create_revision)  # an earlier try succeeded
        if ours is None or ours.create_revision != node.rev:
            return NodeGone()
        if claim is None or claim.create_revision != rev:
            return Taken("the claim is gone")
        return Busy(run)

    async def release(self, name: str, run_rev: int, now: float, *, sending: Sending) -> None:
        """Delete the job's run key, if it is still the one created at `run_rev`."""
        await self._results.end_run(name, run_rev, now, sending=sending)

    def whose(self, pending: PendingTick, *, timeout_s: float) -> tuple[KeyValue | None, KeyValue | None]:
        """Read the claim of a tick and the job's run key; change nothing."""
        reads = [Range(self._key("fire", *pending.id)), Range(self._key("run", pending.job.name))]
        answer = self._store.txn([], reads, timeout_s=timeout_s)
        claim, run = (found.kvs[0] if found.kvs else None for found in answer.ranges)
        return claim, run

    def is_ours(self, kv: KeyValue, pending: PendingTick) -> bool:
        """Return whether a claim or run key was made for this very run."""
        return fields_of(kv.value).get("run") == pending.run

    def taken_between(self, spans: Mapping[str, tuple[int, int]], *, timeout_s: float) -> dict[str, set[int]]:
        """For each job, return which ticks from a first to a last have a claim, or a result (it outlives its claim).

        Takes a few dozen jobs at most, because of etcd's limit of operations.
        """
        reads = [
            Range(self._key(kind, name, first), self._key(kind, name, last + 1), keys_only=True)
            for name, (first, last) in spans.items()
            for kind in ("fire", "result")
        ]
        taken: dict[str, set[int]] = {name: set() for name in spans}
        for found in self._store.txn([], reads, timeout_s=timeout_s).ranges:
            for kv in found.kvs:
                at = self._keys.tick_of(kv.key)
                if at is not None and at.name in taken:
                    taken[at.name].add(at.tick)
        return taken

    def _is_held(self, run: KeyValue, pending: PendingTick, node: Registration) -> bool:
        """Return whether a run key was made for this run by this registration.

        One that an earlier try made under a registration that we have lost goes with that one's lease, soon.
        """
        return run.lease == node.lease and self.is_ours(run, pending)

    def _key(self, kind: str, *path: str | int) -> bytes:
        return self._keys.cron(kind, *path).encode()
