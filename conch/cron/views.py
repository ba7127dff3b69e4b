"""Reads jobs and ticks from etcd, for `conch cron` and the status server."""

import math
import time
from collections.abc import Iterator, Sequence
from typing import Any

from conch.cron.values import LAST_TICK, Daemons, fields_of, row, whole_tick
from conch.etcd.store import KeyValue, Range, RangeResult, Store
from conch.holder import UnreadableHolder
from conch.keys import Keys, prefix_end
from conch.record import replace

# A job takes three reads, and etcd accepts 128 operations at most.
_JOBS_AT_ONCE = 40
# How many keys a page has. Jobs have a few hundred bytes each, and 32 KiB at most.
_PAGE = 500
# The factor by which a read grows when too few of its ticks are readable.
_GROWTH = 8
# Of a tick that ran on every host one row is shown in a list of jobs.
# How far back a job's last run is looked for, behind ticks that were skipped.
_LOOK_BACK = 200
_WORST_FIRST = ("failed", "timeout", "lost", "killed", "missed", "claimed", "running", "skipped", "ok")


def everything(prefix: str) -> Range:
    """Return the read of all keys below a prefix, sorted by name."""
    return Range(prefix.encode(), prefix_end(prefix.encode()))


def pages(store: Store, what: Range, *, timeout_s: float) -> Iterator[RangeResult]:
    """Read the keys of a range, sorted by name, in pages: neither we nor etcd hold the answer to all of it in memory.

    Each page is as of when it was read. What changes meanwhile is seen by a watch from the first page's revision on.
    """
    while True:
        found = store.range(replace(what, limit=_PAGE), timeout_s=timeout_s)
        yield found
        if found.count <= len(found.kvs) or not found.kvs:
            return
        what = replace(what, key=found.kvs[-1].key + b"\0")


def newest(keys: Keys, kind: str, name: str, limit: int) -> Range:
    """Return the read of the newest claims (`fire`) or results of a job."""
    ticks = everything(keys.ticks(kind, name))
    return Range(ticks.key, ticks.end, limit=limit, last_first=True)


def rows(
    keys: Keys, name: str, claims: RangeResult, results: RangeResult, limit: int, daemons: Daemons
) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the rows of the newest `limit` readable ticks, newest first, and the unreadable keys among them.

    A tick that runs on every host has a row for each. `claims` and `results` are the newest of each kind. A tick older
    than all keys that were read of one kind has no row, because its other key may exist without having been read.
    """
    found: dict[tuple[int, str], dict[str, KeyValue]] = {}
    unreadable = []
    oldest = (0, "")
    for kind, read in (("claim", claims), ("result", results)):
        ticks = []
        for kv in read.kvs:
            at = keys.tick_of(kv.key)
            if at is None:
                unreadable.append(kv.key.decode("utf-8", "replace"))
            else:
                ticks.append((at.tick, at.host))
                found.setdefault((at.tick, at.host), {})[kind] = kv
        if read.count > len(read.kvs):
            oldest = max(oldest, min(ticks, default=(LAST_TICK + 1, "")))
    shown: list[dict[str, Any]] = []
    for at_host in sorted(found, reverse=True):
        if len(shown) == limit or at_host < oldest:
            break
        tick, claim, result = at_host[0], found[at_host].get("claim"), found[at_host].get("result")
        try:
            shown.append(row(name, tick, claim.value if claim else None, result.value if result else None, daemons))
        except UnreadableHolder:
            unreadable += [kv.key.decode("utf-8", "replace") for kv in (result or claim,) if kv is not None]
    return sorted(shown, key=lambda row: (-row["tick_unix"], row["node"])), unreadable


def daemons(store: Store, keys: Keys, *, timeout_s: float) -> Daemons:
    """Read which daemons live."""
    return Daemons(kv.value for kv in store.range(everything(keys.node()), timeout_s=timeout_s).kvs)


def history(
    store: Store, keys: Keys, name: str, limit: int, *, timeout_s: float
) -> tuple[list[dict[str, Any]], list[str]]:
    """Read the rows of the newest readable ticks of a job, at most `limit`, and the unreadable keys among them.

    A run that is alive comes first, however old its tick is. If all others were skipped, the last that ran is there,
    too: ticks that were skipped hide neither.
    """
    shown, live, unreadable = _newest_rows(store, keys, name, limit, timeout_s=timeout_s)
    ticks = {(row["tick_unix"], row["node"]) for row in live}
    others = [row for row in shown if (row["tick_unix"], row["node"]) not in ticks][: limit - len(live)]
    if len(others) > 1 and all(row["state"] == "skipped" for row in others):
        older, _, _ = _newest_rows(store, keys, name, _LOOK_BACK, timeout_s=timeout_s)
        others[-1] = next((row for row in older if row["state"] not in ("skipped", "running")), others[-1])
    return [*live, *others], unreadable


def _newest_rows(
    store: Store, keys: Keys, name: str, limit: int, *, timeout_s: float
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[str]]:
    """Read the newest rows, the row of the run that holds the job's run key, and the unreadable keys."""
    count = limit
    more = [Range(keys.cron("run", name).encode()), everything(keys.node())]
    while True:
        ranges = [newest(keys, kind, name, count) for kind in ("fire", "result")]
        claims, results, runs, nodes = store.txn([], [*ranges, *more], timeout_s=timeout_s).ranges
        alive = Daemons(kv.value for kv in nodes.kvs)
        shown, unreadable = rows(keys, name, claims, results, limit, alive)
        if len(shown) == limit or all(read.count <= count for read in (claims, results)):
            return shown, _live_rows(name, runs, alive), unreadable
        count *= _GROWTH  # unreadable ticks took the place of others


def _live_rows(name: str, runs: RangeResult, alive: Daemons) -> list[dict[str, Any]]:
    """Return the row of the run that a run key names, if its daemon lives."""
    ticks = [(whole_tick(fields_of(kv.value).get("tick")), kv.value) for kv in runs.kvs if alive.wrote(kv.value)]
    return [row(name, tick, value, None, alive) for tick, value in ticks if tick is not None]


def last_rows(
    store: Store, keys: Keys, names: Sequence[str], *, timeout_s: float, within_s: float | None = None
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Read the row of each job that has one, and the unreadable keys: of its live run, else of the last that ended.

    Ticks that were skipped are shown only if there is neither. Of a tick that ran on every host it is the row of the
    host where it went worst. Raises `TimeoutError` if all requests together take longer than `within_s`.
    """
    deadline = math.inf if within_s is None else time.monotonic() + within_s
    found: dict[str, dict[str, Any]] = {}
    unreadable: list[str] = []
    alive = daemons(store, keys, timeout_s=timeout_s)
    for at in range(0, len(names), _JOBS_AT_ONCE):
        page = names[at : at + _JOBS_AT_ONCE]
        reads = [read for name in page for read in _reads_of_last(keys, name)]
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            raise TimeoutError(f"etcd took too long to return the newest ticks of {len(names)} jobs")
        ranges = store.txn([], reads, timeout_s=min(timeout_s, left_s)).ranges
        for i, name in enumerate(page):
            claims, results, runs = ranges[3 * i : 3 * i + 3]
            shown, bad = rows(keys, name, claims, results, 1, alive)
            if (bad and not shown) or (shown and shown[0]["state"] == "skipped"):
                shown, bad = history(store, keys, name, 2, timeout_s=timeout_s)
                shown = [row for row in shown if row["state"] != "skipped"] or shown
            unreadable += bad
            shown = [*_live_rows(name, runs, alive), *shown]
            ticks = [keys.tick_of(kv.key) for read in (claims, results) for kv in read.kvs]
            if shown and any(tick.host for tick in ticks if tick and tick.tick == shown[0]["tick_unix"]):
                shown = _worst_first(store, keys, name, shown[0]["tick_unix"], alive, timeout_s=timeout_s)
            if shown:
                found[name] = shown[0]
    return found, unreadable


def _reads_of_last(keys: Keys, name: str) -> list[Range]:
    return [*(newest(keys, kind, name, 1) for kind in ("fire", "result")), Range(keys.cron("run", name).encode())]


def _worst_first(
    store: Store, keys: Keys, name: str, tick: int, alive: Daemons, *, timeout_s: float
) -> list[dict[str, Any]]:
    """Read the rows of a tick that ran on every host: what went wrong first, then what is not over, then the rest."""
    ticks = [keys.cron(kind, name, tick).encode() for kind in ("fire", "result")]
    reads = [Range(key, key + b"0") for key in ticks]  # the key itself, and those of hosts below it
    claims, results = store.txn([], reads, timeout_s=timeout_s).ranges
    shown, _ = rows(keys, name, claims, results, len(claims.kvs) + len(results.kvs), alive)
    rank = {state: number for number, state in enumerate(_WORST_FIRST)}
    return sorted(shown, key=lambda row: rank.get(row["state"], -1))
