"""What can be read of jobs and ticks: for `conch cron` and the status server."""

import math
import time
from collections.abc import Sequence
from typing import Any

from conch.cron.values import LAST_TICK, fields_of, row
from conch.etcd.store import KeyValue, Range, RangeResult, Store
from conch.holder import UnreadableHolder
from conch.keys import Keys, NodeKey, prefix_end

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


def rows(
    keys: Keys, name: str, claims: RangeResult, results: RangeResult, limit: int
) -> tuple[list[dict[str, Any]], list[str]]:
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
            at = keys.tick_of(kv.key)
            if at is None:
                unreadable.append(kv.key.decode("utf-8", "replace"))
            else:
                ticks.append(at.tick)
                found.setdefault(at.tick, {})[kind] = kv
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
        shown, unreadable = rows(keys, name, claims, results, limit)
        if len(shown) == limit or all(read.count <= asked for read in (claims, results)):
            return shown, unreadable
        asked *= _MORE  # unreadable ones took the place of others


def last_rows(
    store: Store, keys: Keys, names: Sequence[str], *, timeout_s: float, within_s: float | None = None
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """The newest tick of each job that has one. Raises `TimeoutError` if all requests together take longer."""
    until = math.inf if within_s is None else time.monotonic() + within_s
    found: dict[str, dict[str, Any]] = {}
    unreadable: list[str] = []
    for at in range(0, len(names), _JOBS_AT_ONCE):
        some = names[at : at + _JOBS_AT_ONCE]
        asked = [newest(keys, kind, name, 1) for name in some for kind in ("fire", "result")]
        left_s = until - time.monotonic()
        if left_s <= 0:
            raise TimeoutError(f"etcd took too long to tell the newest ticks of {len(names)} jobs")
        ranges = store.txn([], asked, timeout_s=min(timeout_s, left_s)).ranges
        for i, name in enumerate(some):
            shown, bad = rows(keys, name, ranges[2 * i], ranges[2 * i + 1], 1)
            if bad and not shown:
                shown, bad = history(store, keys, name, 1, timeout_s=timeout_s)
            unreadable += bad
            if shown:
                found[name] = shown[0]
    return found, unreadable


def live_nodes(keys: Keys, kvs: Sequence[KeyValue]) -> list[str]:
    """The hosts whose conchd takes new ticks."""
    found = [(keys.parse(kv.key), fields_of(kv.value)) for kv in kvs]
    return [key.host for key, fields in found if isinstance(key, NodeKey) and fields.get("draining") is not True]
