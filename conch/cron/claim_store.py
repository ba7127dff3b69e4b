"""Claims of ticks in etcd: each transaction claims a tick completely or not at all, and recognises its own repetition.

A claim is created once and outlives its run, so a tick runs at most once, whichever host dies.
"""

from collections.abc import Container, Mapping, Sequence

from conch.cron.claim_outcomes import Again, Busy, Changed, Cordoned, NodeGone, Outcome, Taken, Won
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


class ClaimStore:
    """The transactions on claims and run keys. Every call may raise `StoreError`.

    Those that are `sending` may raise `Unsent`, too.
    """

    def __init__(self, store: Store, keys: Keys, host: str, results: ResultStore) -> None:
        self._store = store
        self._keys = keys
        self._host = host
        self._node_key = keys.node(host).encode()
        self._not_cordoned = CreateRevisionIs(keys.cron("cordon", host).encode(), 0)
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
        compare.append(self._not_cordoned)
        if pending.job.exclusive:
            run = self._run_key(pending)
            compare += [CreateRevisionIs(key, 0) for key in (run, self._run_key(pending, other=True))]
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
        compare += [self._not_cordoned, CreateRevisionIs(busy.key, busy.create_revision)]
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
        recording = self._results.recording(pending.path, result, expired_ticks, now, has_floor=has_floor)
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
            CreateRevisionIs(self._key("fire", *pending.path), 0),
            CreateRevisionIs(self._key("result", *pending.path), 0),
            CreateRevisionIs(self._other_claim(pending), 0),
            ModRevisionIs(self._key("job", pending.job.name), pending.job_rev),
            ValueBelow(floor, str(pending.tick).encode()) if has_floor else CreateRevisionIs(floor, 0),
        ]
        success: list[Operation] = [Put(self._key("fire", *pending.path), value, self._leases.for_claims(now))]
        if pending.request_rev:
            request = self._key("now", pending.job.name, pending.number)
            compare.append(CreateRevisionIs(request, pending.request_rev))
            if not pending.host:  # else it is for the other hosts, too: who asked withdraws it
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
        name, run = pending.job.name, self._run_key(pending)
        failure = (
            Range(self._node_key, keys_only=True),
            Range(self._key("fire", *pending.path)),
            Range(self._key("result", *pending.path), keys_only=True),
            Range(self._key("job", name)),
            Range(self._key("floor", name)),
            Range(self._key("now", name, pending.number), keys_only=True),
            Range(run),
            Range(self._other_claim(pending), keys_only=True),
            Range(self._run_key(pending, other=True)),
            Range(self._not_cordoned.key, keys_only=True),
        )
        tells = {"has_floor": has_floor, "to_run": self._not_cordoned in compare}
        try:
            answer = await sending.make(name, Txn(tuple(compare), tuple(success), failure), now)
        except Full as error:
            answer = await self._read_back(failure, error, sending)
            if answer.ranges[1].kvs and self.is_ours(answer.ranges[1].kvs[0], pending):
                return self._explain(pending, node, answer, **tells)
            raise
        if answer is None:
            return NodeGone()
        if answer.succeeded:
            has_run = run in [operation.key for operation in success if isinstance(operation, Put)]
            rev = answer.header.revision
            expired = self._results.found_old(name, *answer.ranges) if answer.ranges else None
            return Won(rev, self._leases.for_claims(now), rev if has_run else None, expired)
        return self._explain(pending, node, answer, **tells)

    async def _read_back(self, reads: Sequence[Range], error: Full, sending: Sending) -> TxnResult:
        """Read what a refused claim may have written all the same; if that fails too, mark the outcome unclear."""
        try:
            return await sending.read(*reads)
        except StoreError:
            error.unclear = True
            raise error from None

    def _explain(
        self, pending: PendingTick, node: Registration, answer: TxnResult, *, has_floor: bool, to_run: bool
    ) -> Outcome:
        """Say why a claim's comparison failed: an earlier try of ours has won, or something stands against it."""
        ours, claim, result, job, floor, request, run, other_claim, other_run, cordon = (
            found.kvs[0] if found.kvs else None for found in answer.ranges
        )
        if claim is not None:
            if not self.is_ours(claim, pending):
                return Taken("claimed by another")
            if fields_of(claim.value).get("skip") is True:
                return Taken("an earlier try of ours recorded it as skipped")
            has_run = run is not None and self._is_held(run, pending, node)
            return Won(claim.create_revision, claim.lease, run.create_revision if run is not None and has_run else None)
        if result is not None:
            return Taken("it has a result")
        if other_claim is not None:
            return Taken("it was claimed before the job was changed")
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
        if to_run and cordon is not None:
            return Cordoned()
        return Busy(run or other_run)

    async def take_run(
        self, pending: PendingTick, rev: int, node: Registration, identity: Holder, now: float, *, sending: Sending
    ) -> Outcome:
        """Take the run key for a tick that waited, now that the run before it has ended."""
        claim_key, run_key, other_run_key = (
            self._key("fire", *pending.path),
            *(self._run_key(pending, other=other) for other in (False, True)),
        )
        result_key, node_key = self._key("result", *pending.path), self._node_key
        txn = Txn(
            (
                CreateRevisionIs(node_key, node.rev),
                CreateRevisionIs(claim_key, rev),
                CreateRevisionIs(result_key, 0),
                CreateRevisionIs(run_key, 0),
                CreateRevisionIs(other_run_key, 0),
            ),
            (Put(run_key, claim_value(identity, pending.run, pending.tick), node.lease), Range(claim_key)),
            (
                *(Range(node_key, keys_only=True), Range(run_key), Range(claim_key)),
                *(Range(result_key, keys_only=True), Range(other_run_key)),
            ),
        )
        answer = await sending.make(pending.job.name, txn, now)
        if answer is None:
            return NodeGone()
        if answer.succeeded:
            return Won(rev, answer.ranges[0].kvs[0].lease, answer.header.revision)
        ours, run, claim, result, other_run = (found.kvs[0] if found.kvs else None for found in answer.ranges)
        if result is not None:
            return Taken("it has a result")
        if run is not None and self._is_held(run, pending, node):
            return Won(rev, claim.lease if claim else 0, run.create_revision)  # an earlier try succeeded
        if ours is None or ours.create_revision != node.rev:
            return NodeGone()
        if claim is None or claim.create_revision != rev:
            return Taken("the claim is gone")
        return Busy(run or other_run)

    async def release(self, pending: PendingTick, run_rev: int, now: float, *, sending: Sending) -> None:
        """Delete the tick's run key, if it is still the one created at `run_rev`."""
        await self._results.end_run(pending.job.name, pending.host, run_rev, now, sending=sending)

    def whose(self, pending: PendingTick, *, timeout_s: float) -> tuple[KeyValue | None, KeyValue | None]:
        """Read the claim of a tick and the job's run key; change nothing."""
        reads = [Range(self._key("fire", *pending.path)), Range(self._run_key(pending))]
        answer = self._store.txn([], reads, timeout_s=timeout_s)
        claim, run = (found.kvs[0] if found.kvs else None for found in answer.ranges)
        return claim, run

    def is_ours(self, kv: KeyValue, pending: PendingTick) -> bool:
        """Return whether a claim or run key was made for this very run."""
        return fields_of(kv.value).get("run") == pending.run

    def taken_between(
        self, spans: Mapping[str, tuple[int, int]], each: Container[str] = (), *, timeout_s: float
    ) -> dict[str, set[int]]:
        """For each job, return which ticks from a first to a last have a claim, or a result (it outlives its claim).

        Of the jobs in `each` those of other hosts do not count. Takes a few dozen jobs at most, because of etcd's limit
        of operations.
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
                if at is not None and at.name in taken and (at.name not in each or at.host in ("", self._host)):
                    taken[at.name].add(at.tick)
        return taken

    def _run_key(self, pending: PendingTick, *, other: bool = False) -> bytes:
        """Return the run key that a tick takes; `other` is the one that it would take here if `--each` were changed."""
        host = self._host if (pending.host == "") == other else ""
        return self._key("run", pending.job.name, *([host] if host else []))

    def _other_claim(self, pending: PendingTick) -> bytes:
        """Return the key of the claim that the tick would have here if `--each` were changed.

        A tick that was due before the change runs under one of the definitions alone.
        """
        return self._key("fire", *pending.id, *([] if pending.host else [self._host]))

    def _is_held(self, run: KeyValue, pending: PendingTick, node: Registration) -> bool:
        """Return whether a run key was made for this run by this registration.

        One that an earlier try made under a registration that we have lost goes with that one's lease, soon.
        """
        return run.lease == node.lease and self.is_ours(run, pending)

    def _key(self, kind: str, *path: str | int) -> bytes:
        return self._keys.cron(kind, *path).encode()
