"""Sweeps the history of all jobs: it removes ticks beyond the limit, and keeps the newest ones of each job at any age.

Deliveries and skips trim a job as its ticks end. The sweep does what they cannot: it trims what they left over,
prolongs the newest ticks before their leases expire, and removes the keys of removed jobs. Every step is a transaction
that compares what it relies on. So it may run beside claims, deliveries, other sweeps, and daemons that never sweep.
"""

from collections import Counter
from collections.abc import Iterator, Sequence

from conch.cron.result_store import ResultStore
from conch.cron.views import everything, pages
from conch.etcd.store import (
    Compare,
    CreateRevisionIs,
    Delete,
    KeyValue,
    ModRevisionIs,
    Range,
    RangeResult,
    Store,
    TooBig,
)
from conch.keys import Keys, prefix_end
from conch.record import replace

# How many of the newest ticks of each job never expire.
KEPT = 20
# Keys of removed jobs are deleted once their ticks are older than this, in seconds.
ORPHAN_S = 15 * 86400
# etcd accepts 128 operations at most. A job takes two reads of `KEPT` keys each, a tick two deletions.
# A result may have 24 KiB, so prolonging is limited to what 0.5 MiB surely holds, a third of etcd's limit.
_JOBS, _GAPS, _TICKS, _PROLONGED = 30, 60, 60, 20


class Sweep:
    """One pass. `counts` says how many ticks were `trimmed` and `kept`, and `orphans` and `floors` removed."""

    def __init__(self, store: Store, keys: Keys, results: ResultStore, now: float, *, timeout_s: float) -> None:
        """`now` is the time of the wall clock: it identifies the shared leases, and decides how old a tick is."""
        self._store = store
        self._keys = keys
        self._results = results
        self._now = now
        self._timeout_s = timeout_s
        self._young = results.leases.young(now)
        self.counts: Counter[str] = Counter()

    def pages(self) -> Iterator[None]:
        """Sweep; yield after each small piece of work, so that the caller can pause. Raises `StoreError`."""
        names: list[bytes] = []
        prefix = self._keys.cron("job")
        for found in self._list(prefix):
            names += [kv.key[len(prefix.encode()) :] for kv in found.kvs]
            yield
        yield from self._jobs([name.decode() for name in names if name.isascii() and b"/" not in name])
        for kind in ("fire", "result"):
            yield from self._orphans(kind, names)
        yield from self._floors(frozenset(names))

    def _list(self, prefix: str) -> Iterator[RangeResult]:
        """Yield the keys below a prefix, in pages."""
        return pages(self._store, replace(everything(prefix), keys_only=True), timeout_s=self._timeout_s)

    def _range(self, read: Range) -> RangeResult:
        return self._store.range(read, timeout_s=self._timeout_s)

    # -- existing jobs ------------------------------------------------------------------------------------

    def _jobs(self, names: Sequence[str]) -> Iterator[None]:
        expiring: list[KeyValue] = []
        for at in range(0, len(names), _JOBS):
            page = names[at : at + _JOBS]
            reads = [self._newest(kind, name) for name in page for kind in ("fire", "result")]
            ranges = self._store.txn([], reads, timeout_s=self._timeout_s).ranges
            yield
            for name, claims, results in zip(page, ranges[::2], ranges[1::2], strict=True):
                if claims.count + results.count > self._results.history:
                    yield from self._trim(name)
                expiring += self._expiring(claims, results)
                while len(expiring) >= _PROLONGED:
                    yield from self._prolong(expiring[:_PROLONGED])
                    expiring = expiring[_PROLONGED:]
        yield from self._prolong(expiring)

    def _newest(self, kind: str, name: str) -> Range:
        ticks = everything(self._keys.ticks(kind, name))
        return Range(ticks.key, ticks.end, limit=KEPT, last_first=True)

    def _expiring(self, claims: RangeResult, results: RangeResult) -> list[KeyValue]:
        """Return the keys of the newest ticks to prolong: their results, and the claims without a result."""
        claimed, ended = (
            {(at.tick, at.host): kv for kv in found.kvs if (at := self._keys.tick_of(kv.key))}
            for found in (claims, results)
        )
        newest = [(claimed | ended)[tick] for tick in sorted(claimed.keys() | ended.keys(), reverse=True)[:KEPT]]
        return [kv for kv in newest if kv.lease and kv.lease not in self._young]

    def _prolong(self, kvs: Sequence[KeyValue]) -> Iterator[None]:
        """Move unchanged keys to a lease that lasts; leave a key that was changed meanwhile as it is.

        So is one that is too large for etcd by now, as after its limit was lowered: the others must not wait for it.
        """
        if not kvs:
            return
        try:
            kept = self._results.prolong(kvs, self._now, timeout_s=self._timeout_s)
        except TooBig:
            kept = False
        yield
        if kept:
            self.counts["kept"] += len(kvs)
        elif len(kvs) > 1:
            for kv in kvs:
                yield from self._prolong([kv])

    def _trim(self, name: str) -> Iterator[None]:
        """Remove the oldest ticks of a job beyond the limit."""
        floor = self._keys.cron("floor", name).encode()
        failed = 0
        while failed < 2:
            reads = [*self._results.oldest(name, _TICKS), Range(floor)]
            claims, results, floors = self._store.txn([], reads, timeout_s=self._timeout_s).ranges
            yield
            earlier = self._before_claims(name, claims, results)
            expired = self._results.over(claims, results, most=_TICKS, earlier=earlier)
            if not expired:
                return
            current = floors.kvs[0] if floors.kvs else None
            compare, operations = self._results.removal(name, expired, has_floor=current is not None)
            if current is not None and current.value >= str(max(expired)).encode():
                # the floor is high enough: leave out the operation that raises it
                compare, operations = [ModRevisionIs(floor, current.mod_revision)], operations[:-1]
            succeeded = self._store.txn(compare, operations, timeout_s=self._timeout_s).succeeded
            yield
            self.counts["trimmed"] += len(expired) if succeeded else 0
            failed = 0 if succeeded else failed + 1

    def _before_claims(self, name: str, claims: RangeResult, results: RangeResult) -> int:
        """Count the results older than the oldest claim: claims expire sooner than results."""
        ticks = [at.tick for kv in claims.kvs if (at := self._keys.tick_of(kv.key)) is not None]
        if not ticks or claims.count + results.count <= self._results.history:
            return 0
        first = everything(self._keys.ticks("result", name)).key
        last = self._keys.cron("result", name, min(ticks)).encode()
        return self._range(Range(first, last, limit=1, keys_only=True)).count

    # -- removed jobs -------------------------------------------------------------------------------------

    def _orphans(self, kind: str, names: Sequence[bytes]) -> Iterator[None]:
        """Remove old ticks of removed jobs: their keys lie between those of existing jobs."""
        all_ = everything(self._keys.cron(kind))
        gaps = gaps_between(all_, [all_.key + name + b"/" for name in names])
        for at in range(0, len(gaps), _GAPS):
            page = gaps[at : at + _GAPS]
            reads = [Range(gap.key, gap.end, limit=1, keys_only=True) for gap in page]
            ranges = self._store.txn([], reads, timeout_s=self._timeout_s).ranges
            yield
            for gap, found in zip(page, ranges, strict=True):
                if found.kvs:
                    yield from self._orphans_in(kind, gap)

    def _orphans_in(self, kind: str, gap: Range) -> Iterator[None]:
        start = gap.key
        while True:
            found = self._range(Range(start, gap.end, limit=_TICKS, keys_only=True))
            yield
            old: dict[str, list[bytes]] = {}
            start = found.kvs[-1].key + b"\0" if found.count > len(found.kvs) else b""
            for kv in found.kvs:
                at = self._keys.tick_of(kv.key)
                if at is None or at.kind != kind:
                    continue
                if at.tick >= self._now - ORPHAN_S:
                    start = prefix_end(self._keys.ticks(kind, at.name).encode())  # the ticks after it are younger
                    break
                old.setdefault(at.name, []).append(kv.key)
            for name, keys in old.items():
                job = self._keys.cron("job", name).encode()
                answer = self._store.txn(
                    [CreateRevisionIs(job, 0)], [Delete(key) for key in keys], timeout_s=self._timeout_s
                )
                self.counts["orphans"] += len(keys) if answer.succeeded else 0
                yield
            if not start or start >= gap.end:
                return

    def _floors(self, names: frozenset[bytes]) -> Iterator[None]:
        """Remove the floors of removed jobs. A job that was added again meanwhile keeps its floor."""
        prefix = self._keys.cron("floor").encode()
        for found in self._list(prefix.decode()):
            yield
            for kv in found.kvs:
                name = kv.key[len(prefix) :]
                if name not in names:
                    job = self._keys.cron("job").encode() + name
                    compare: list[Compare] = [CreateRevisionIs(job, 0), ModRevisionIs(kv.key, kv.mod_revision)]
                    answer = self._store.txn(compare, [Delete(kv.key)], timeout_s=self._timeout_s)
                    self.counts["floors"] += answer.succeeded
                    yield


def gaps_between(all_: Range, prefixes: Sequence[bytes]) -> list[Range]:
    """Return the parts of a range whose keys begin with none of these prefixes, which lie in it."""
    gaps, start = [], all_.key
    for prefix in sorted(prefixes):
        if start < prefix:
            gaps.append(Range(start, prefix))
        start = max(start, prefix_end(prefix))
    return [*gaps, Range(start, all_.end)] if start < all_.end else gaps
