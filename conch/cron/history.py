"""What can be read of jobs and ticks: for `conch cron` and the status server."""

from collections.abc import Sequence
from typing import Any

from conch.cron.records import LAST_TICK, fields_of, row, tick_of
from conch.etcd.store import KeyValue, Range, RangeResult, Store
from conch.holder import UnreadableHolder
from conch.keys import Keys, prefix_end

# Two reads a job, and etcd takes 128 operations at most.
_JOBS_AT_ONCE = 60
# How many times as many are read where too few can be read.
_MORE = 8


def everything(prefix: str) -> Range:
    """All keys below a prefix, by name."""
    return Range(prefix.encode(), prefix_end(prefix.encode()))


def newest(keys: Keys, kind: str, name: str, limit: int) -> Range:
    """The newest claims or results of a job."""
    ticks = everything(keys.ticks(kind, name))
    return Range(ticks.key, ticks.end, limit=limit, last_first=True)


def rows(name: str, claims: RangeResult, results: RangeResult, limit: int) -> tuple[list[dict[str, Any]], list[str]]:
    """A row for each of the newest `limit` ticks that can be read, newest first, and the keys before them that cannot.

    `claims` and `results` are the newest of each kind. What is older than all that was read of a kind has no row: its
    result may be there all the same.
    """
    found: dict[int, dict[str, KeyValue]] = {}
    unreadable = []
    oldest = 0
    for kind, read in (("claim", claims), ("result", results)):
        ticks = []
        for kv in read.kvs:
            at = tick_of(kv.key)
            if at is None:
                unreadable.append(kv.key.decode("utf-8", "replace"))
            else:
                ticks.append(at[1])
                found.setdefault(at[1], {})[kind] = kv
        if read.count > len(read.kvs):
            oldest = max(oldest, min(ticks, default=LAST_TICK + 1))
    shown: list[dict[str, Any]] = []
    for tick in sorted(found, reverse=True):
        if len(shown) == limit or tick < oldest:
            break
        claim, result = found[tick].get("claim"), found[tick].get("result")
        try:
            shown.append(row(name, tick, claim.value if claim else None, result.value if result else None))
        except UnreadableHolder:
            unreadable += [kv.key.decode("utf-8", "replace") for kv in (result or claim,) if kv is not None]
    return shown, unreadable


def history(
    store: Store, keys: Keys, name: str, limit: int, *, timeout_s: float
) -> tuple[list[dict[str, Any]], list[str]]:
    """The newest ticks of a job that can be read, and the keys that cannot."""
    asked = limit
    while True:
        ranges = [newest(keys, kind, name, asked) for kind in ("fire", "result")]
        claims, results = store.txn([], ranges, timeout_s=timeout_s).ranges
        shown, unreadable = rows(name, claims, results, limit)
        if len(shown) == limit or all(read.count <= asked for read in (claims, results)):
            return shown, unreadable
        asked *= _MORE  # unreadable ones took the place of others


def last_rows(
    store: Store, keys: Keys, names: Sequence[str], *, timeout_s: float
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """The newest tick of each job that has one."""
    found: dict[str, dict[str, Any]] = {}
    unreadable: list[str] = []
    for at in range(0, len(names), _JOBS_AT_ONCE):
        some = names[at : at + _JOBS_AT_ONCE]
        asked = [newest(keys, kind, name, 1) for name in some for kind in ("fire", "result")]
        ranges = store.txn([], asked, timeout_s=timeout_s).ranges
        for i, name in enumerate(some):
            shown, bad = rows(name, ranges[2 * i], ranges[2 * i + 1], 1)
            if bad and not shown:
                shown, bad = history(store, keys, name, 1, timeout_s=timeout_s)
            unreadable += bad
            if shown:
                found[name] = shown[0]
    return found, unreadable


def live_nodes(kvs: Sequence[KeyValue]) -> list[str]:
    """The hosts whose conchd takes new ticks."""
    return [
        kv.key.decode("utf-8", "replace").rpartition("/")[2]
        for kv in kvs
        if fields_of(kv.value).get("draining") is not True
    ]
