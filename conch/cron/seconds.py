"""Chooses the second that a request to run now gets: the first free one after those of all earlier requests."""

from collections.abc import Collection
from dataclasses import dataclass

from conch.cron.schedule import Schedule
from conch.cron.values import fields_of
from conch.etcd.store import KeyValue, Range, Store
from conch.keys import Keys

# How far ahead of now a request's tick may lie, in seconds: this many requests of a job can be claimed in one second.
REACH = 1000


@dataclass(frozen=True, slots=True)
class Seconds:
    """The seconds from `lowest` to before `end` that a request can get, without those in `taken`."""

    lowest: int
    end: int
    taken: frozenset[int]


def free_second(schedule: Schedule | None, lowest: int, end: int, taken: Collection[int] = ()) -> int | None:
    """Return the first second from `lowest` to before `end` that is not taken and is no tick of the schedule."""
    for second in range(lowest, end):
        if second not in taken and (schedule is None or schedule.next_after(second - 1) != second):
            return second
    return None


def read_seconds(
    store: Store, keys: Keys, name: str, request: tuple[int, int], now: int, *, timeout_s: float
) -> Seconds | None:
    """Read which seconds a request (its number and create-revision) can get at the second `now`.

    Returns None if the request is gone.
    """
    number, request_rev = request
    key, floor = (keys.cron(*path).encode() for path in (("now", name, number), ("floor", name)))
    fires, fires_end, ended, ended_end = (
        keys.cron(kind, name, second).encode() for kind in ("fire", "result") for second in (now, now + REACH)
    )
    span = [Range(fires, fires_end), Range(ended, ended_end, keys_only=True)]
    answer = store.txn([], [Range(key, keys_only=True), Range(floor), *span], timeout_s=timeout_s)
    requests, floors, claims, results = (found.kvs for found in answer.ranges)
    if not requests or requests[0].create_revision != request_rev:
        return None
    return seconds_from(keys, now, floors[0].value if floors else b"", claims, results)


def seconds_from(
    keys: Keys, now: int, floor: bytes, claims: Collection[KeyValue], results: Collection[KeyValue]
) -> Seconds:
    """Compute the same from keys already read.

    Requests get increasing ticks, so a new one lies above every requested tick that is claimed.
    """
    ticks = {at.tick: kv for kv in claims if (at := keys.tick_of(kv.key)) is not None}
    ended = {at.tick for kv in results if (at := keys.tick_of(kv.key)) is not None}
    requested = [tick for tick, kv in ticks.items() if fields_of(kv.value).get("request")]
    bottom = int(floor) if floor.isdigit() and len(floor) == len(str(now)) else 0
    lowest = max([now - 1, bottom, *requested]) + 1
    return Seconds(lowest, max(now, bottom) + REACH, frozenset(ticks.keys() | ended))
