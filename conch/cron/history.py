"""What can be read of jobs and ticks: for `conch cron` and the status server."""

import math
import time
from collections.abc import Sequence
from typing import Any

from conch.cron.records import fields_of, row
from conch.etcd.store import KeyValue, Range, Store
from conch.holder import UnreadableHolder
from conch.keys import Keys, NodeKey, TickKey, prefix_end

# Two reads a job, and etcd takes 128 operations at most.
_JOBS_AT_ONCE = 60


def everything(prefix: str) -> Range:
    """All keys below a prefix, by name."""
    return Range(prefix.encode(), prefix_end(prefix.encode()))


def newest(keys: Keys, kind: str, name: str, limit: int) -> Range:
    """The newest claims or results of a job."""
    ticks = everything(keys.ticks(kind, name))
    return Range(ticks.key, ticks.end, limit=limit, last_first=True)


def rows(
    keys: Keys, name: str, claims: Sequence[KeyValue], results: Sequence[KeyValue], limit: int
) -> tuple[list[dict[str, Any]], list[str]]:
    """A row a tick, newest first, and the keys that could not be read."""
    found: dict[int, dict[str, KeyValue]] = {}
    unreadable = []
    for kind, kvs in (("claim", claims), ("result", results)):
        for kv in kvs:
            at = keys.parse(kv.key)
            if isinstance(at, TickKey):
                found.setdefault(at.tick, {})[kind] = kv
            else:
                unreadable.append(kv.key.decode("utf-8", "replace"))
    shown = []
    for tick in sorted(found, reverse=True)[:limit]:
        claim, result = found[tick].get("claim"), found[tick].get("result")
        try:
            shown.append(row(name, tick, claim.value if claim else None, result.value if result else None))
        except UnreadableHolder:
            unreadable += [kv.key.decode("utf-8", "replace") for kv in (result or claim,) if kv is not None]
    return shown, unreadable


def history(
    store: Store, keys: Keys, name: str, limit: int, *, timeout_s: float
) -> tuple[list[dict[str, Any]], list[str]]:
    """The newest ticks of a job."""
    asked = [newest(keys, kind, name, limit) for kind in ("fire", "result")]
    claims, results = store.txn([], asked, timeout_s=timeout_s).ranges
    return rows(keys, name, claims.kvs, results.kvs, limit)


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
            shown, bad = rows(keys, name, ranges[2 * i].kvs, ranges[2 * i + 1].kvs, 1)
            unreadable += bad
            if shown:
                found[name] = shown[0]
    return found, unreadable


def live_nodes(keys: Keys, kvs: Sequence[KeyValue]) -> list[str]:
    """The hosts whose conchd takes new ticks."""
    found = [(keys.parse(kv.key), fields_of(kv.value)) for kv in kvs]
    return [key.host for key, fields in found if isinstance(key, NodeKey) and fields.get("draining") is not True]
