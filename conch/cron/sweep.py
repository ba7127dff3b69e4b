"""The sweep over all jobs' history: what is too much goes, and the newest ticks of each job stay, however old.

Deliveries and skips trim a job as its ticks end. The sweep does what they cannot: it finds what they left over,
prolongs the newest ticks before their leases end, and removes what removed jobs left. Every step is a transaction that
compares what it rests on. So it may run beside claims, deliveries, other sweeps, and daemons that know of none.
"""

from collections import Counter
from collections.abc import Iterator, Sequence

from conch.cron.result_store import ResultStore
from conch.cron.views import everything
from conch.etcd.store import Compare, CreateRevisionIs, Delete, KeyValue, ModRevisionIs, Range, RangeResult, Store
from conch.keys import Keys, prefix_end

# The newest ticks of each job that do not end by age.
KEPT = 20
# What removed jobs left is removed once it is older; in seconds.
ORPHAN_S = 15 * 86400
# etcd takes 128 operations at most. Jobs have two reads of `KEPT` keys each, ticks two deletions.
_JOBS, _GAPS, _TICKS, _PROLONGED = 30, 60, 60, 50
_PAGE = 500


class Sweep:
    """One pass. `counts` says how many ticks were `trimmed` and `kept`, and `orphans` and `floors` removed."""

    def __init__(self, store: Store, keys: Keys, results: ResultStore, now: float, *, timeout_s: float) -> None:
        """`now` is the wall clock's time, by which leases are told apart and the age of a tick is reckoned."""
        self._store = store
        self._keys = keys
        self._results = results
        self._now = now
        self._timeout_s = timeout_s
        self._young = results.leases.young(now)
        self.counts: Counter[str] = Counter()

    def pages(self) -> Iterator[None]:
        """Yield after each small piece of work, so that the caller can pause. Raises `StoreError`."""
        names: list[bytes] = []
        prefix = self._keys.cron("job")
        for kvs in self._listed(everything(prefix)):
            names += [kv.key[len(prefix.encode()) :] for kv in kvs]
            yield
        yield from self._jobs([name.decode() for name in names if name.isascii() and b"/" not in name])
        for kind in ("fire", "result"):
            yield from self._orphans(kind, names)
        yield from self._floors(frozenset(names))

    def _listed(self, what: Range) -> Iterator[tuple[KeyValue, ...]]:
        """The keys of a range, in pages."""
        start = what.key
        while True:
            found = self._range(Range(start, what.end, limit=_PAGE, keys_only=True))
            yield found.kvs
            if found.count <= len(found.kvs) or not found.kvs:
                return
            start = found.kvs[-1].key + b"\0"

    def _range(self, what: Range) -> RangeResult:
        return self._store.range(what, timeout_s=self._timeout_s)

    # -- jobs that are there ------------------------------------------------------------------------------

    def _jobs(self, names: Sequence[str]) -> Iterator[None]:
        old: list[KeyValue] = []
        for at in range(0, len(names), _JOBS):
            some = names[at : at + _JOBS]
            asked = [self._newest(kind, name) for name in some for kind in ("fire", "result")]
            ranges = self._store.txn([], asked, timeout_s=self._timeout_s).ranges
            yield
            for name, fires, results in zip(some, ranges[::2], ranges[1::2], strict=True):
                if fires.count + results.count > self._results.history:
                    yield from self._trim(name)
                old += self._ending(fires, results)
                while len(old) >= _PROLONGED:
                    yield from self._prolong(old[:_PROLONGED])
                    old = old[_PROLONGED:]
        yield from self._prolong(old)

    def _newest(self, kind: str, name: str) -> Range:
        ticks = everything(self._keys.ticks(kind, name))
        return Range(ticks.key, ticks.end, limit=KEPT, last_first=True)

    def _ending(self, fires: RangeResult, results: RangeResult) -> list[KeyValue]:
        """Of the newest ticks what is to be prolonged: the results, and the claims that have none."""
        claims, ended = (
            {at.tick: kv for kv in some.kvs if (at := self._keys.tick_of(kv.key))} for some in (fires, results)
        )
        newest = [(claims | ended)[tick] for tick in sorted(claims.keys() | ended.keys(), reverse=True)[:KEPT]]
        return [kv for kv in newest if kv.lease and kv.lease not in self._young]

    def _prolong(self, some: Sequence[KeyValue]) -> Iterator[None]:
        """Put keys that are as they were under a lease that lasts; one that was changed meanwhile is left alone."""
        if not some:
            return
        kept = self._results.prolong(some, self._now, timeout_s=self._timeout_s)
        yield
        if kept:
            self.counts["kept"] += len(some)
        elif len(some) > 1:
            for kv in some:
                yield from self._prolong([kv])

    def _trim(self, name: str) -> Iterator[None]:
        """Remove the oldest ticks of a job beyond those that are kept."""
        floor = self._keys.cron("floor", name).encode()
        failed = 0
        while failed < 2:
            asked = [*self._results.oldest(name, _TICKS), Range(floor)]
            fires, results, floors = self._store.txn([], asked, timeout_s=self._timeout_s).ranges
            yield
            old = self._results.over(fires, results, most=_TICKS, earlier=self._before_claims(name, fires, results))
            if not old:
                return
            bottom = floors.kvs[0] if floors.kvs else None
            compare, operations = self._results.removal(name, old, has_floor=bottom is not None)
            if bottom is not None and bottom.value >= str(max(old)).encode():
                compare, operations = [ModRevisionIs(floor, bottom.mod_revision)], operations[:-1]  # it is high enough
            made = self._store.txn(compare, operations, timeout_s=self._timeout_s).succeeded
            yield
            self.counts["trimmed"] += len(old) if made else 0
            failed = 0 if made else failed + 1

    def _before_claims(self, name: str, fires: RangeResult, results: RangeResult) -> int:
        """How many results are older than the oldest claim: claims expire sooner than results."""
        ticks = [at.tick for kv in fires.kvs if (at := self._keys.tick_of(kv.key)) is not None]
        if not ticks or fires.count + results.count <= self._results.history:
            return 0
        first = everything(self._keys.ticks("result", name)).key
        last = self._keys.cron("result", name, min(ticks)).encode()
        return self._range(Range(first, last, limit=1, keys_only=True)).count

    # -- what removed jobs left ---------------------------------------------------------------------------

    def _orphans(self, kind: str, names: Sequence[bytes]) -> Iterator[None]:
        """Remove old ticks of jobs that are not there: they lie between those of the jobs that are."""
        all_ = everything(self._keys.cron(kind))
        gaps = gaps_between(all_, [all_.key + name + b"/" for name in names])
        for at in range(0, len(gaps), _GAPS):
            some = gaps[at : at + _GAPS]
            asked = [Range(gap.key, gap.end, limit=1, keys_only=True) for gap in some]
            ranges = self._store.txn([], asked, timeout_s=self._timeout_s).ranges
            yield
            for gap, found in zip(some, ranges, strict=True):
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
                if at is None or kv.key != self._keys.cron(kind, at.name, at.tick).encode():
                    continue
                if at.tick >= self._now - ORPHAN_S:
                    start = prefix_end(self._keys.ticks(kind, at.name).encode())  # those after it are younger
                    break
                old.setdefault(at.name, []).append(kv.key)
            for name, keys in old.items():
                job = self._keys.cron("job", name).encode()
                made = self._store.txn(
                    [CreateRevisionIs(job, 0)], [Delete(key) for key in keys], timeout_s=self._timeout_s
                )
                self.counts["orphans"] += len(keys) if made.succeeded else 0
                yield
            if not start or start >= gap.end:
                return

    def _floors(self, names: frozenset[bytes]) -> Iterator[None]:
        """Remove the floors of removed jobs. One that is there again has its own, and keeps it."""
        prefix = self._keys.cron("floor").encode()
        for kvs in self._listed(everything(prefix.decode())):
            yield
            for kv in kvs:
                name = kv.key[len(prefix) :]
                if name not in names:
                    job = self._keys.cron("job").encode() + name
                    compare: list[Compare] = [CreateRevisionIs(job, 0), ModRevisionIs(kv.key, kv.mod_revision)]
                    made = self._store.txn(compare, [Delete(kv.key)], timeout_s=self._timeout_s)
                    self.counts["floors"] += made.succeeded
                    yield


def gaps_between(all_: Range, prefixes: Sequence[bytes]) -> list[Range]:
    """What of a range begins with none of these prefixes, which lie in it."""
    gaps, start = [], all_.key
    for prefix in sorted(prefixes):
        if start < prefix:
            gaps.append(Range(start, prefix))
        start = max(start, prefix_end(prefix))
    return [*gaps, Range(start, all_.end)] if start < all_.end else gaps
