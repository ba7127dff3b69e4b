"""Offices and semaphores as read from etcd, without taking part in them: no lease, no key."""

import time

from conch.etcd.connection import Connection
from conch.etcd.patience import first_answer
from conch.etcd.store import Compacted, KeyValue, Range, RangeResult, Store, Unreachable
from conch.holder import Holder, UnreadableHolder, with_held_since
from conch.keys import prefix_end
from conch.log import Log
from conch.record import replace
from conch.static_typing import Iterator
from conch.times import rfc3339

_RETRY_S = 1.0


def contenders(queue: str) -> Range:
    """Return the range of all contenders of a queue, first in line first."""
    return Range(queue.encode(), prefix_end(queue.encode()), oldest_first=True)


def holder_of(kv: KeyValue, log: Log) -> Holder | None:
    """Return the holder that a key in a queue names.

    An unreadable value is logged with its key, which keeps its place, and yields None.
    """
    try:
        return Holder.decode(kv.value)
    except UnreadableHolder as error:
        why = str(error) if kv.lease else f"{error}; without a lease it keeps its place until it is deleted"
        log("warning", "unreadable", key=kv.key.decode("utf-8", "replace"), msg=why)
        return None


def read_queue(store: Store, what: Range, connection: Connection) -> RangeResult:
    """Read a range once. An etcd that accepts connections but is slow has the command timeout to answer."""

    def read(timeout_s: float) -> RangeResult:
        return store.range(what, timeout_s=timeout_s)

    return first_answer(read, connection, within_s=connection.command_timeout_s)


def watch_first(store: Store, queue: str, connection: Connection, log: Log) -> Iterator[KeyValue | None]:
    """Yield the first contender (None: vacant) now and after each change of it, without leaving one out.

    A contender says later that it holds: that is no change, and the value of one that came first just now has the time.

    Raises `Unreachable` only if etcd does not answer the first read; later it is asked until it answers.
    """
    started = False
    shown: tuple[bytes, int, Holder | bytes] | None = None
    while True:
        try:
            listed = read_queue(store, contenders(queue), connection)
        except Unreachable as error:
            if not started:
                raise
            log("warning", "retry", msg=str(error))
            time.sleep(_RETRY_S)
            continue
        waiting = {kv.key: kv for kv in listed.kvs}
        for first in _first_at_each_revision(store, queue, waiting, listed.header.revision, log):
            identity = None if first is None else (first.key, first.create_revision, _described(first))
            if not started or identity != shown:
                yield _since_now(first) if started and first is not None else first
                started, shown = True, identity


def _described(kv: KeyValue) -> Holder | bytes:
    """Return what a contender says of itself, but for since when it holds."""
    try:
        return replace(Holder.decode(kv.value), held_since=None)
    except UnreadableHolder:
        return kv.value


def _since_now(kv: KeyValue) -> KeyValue:
    """Return a contender that came first just now with the time, unless it says itself since when it holds."""
    try:
        if Holder.decode(kv.value).held_since is None:
            return replace(kv, value=with_held_since(kv.value, rfc3339(time.time())))
    except UnreadableHolder:
        pass
    return kv


def _first_at_each_revision(
    store: Store, queue: str, waiting: dict[bytes, KeyValue], revision: int, log: Log
) -> Iterator[KeyValue | None]:
    """Yield the first contender after each revision; return when etcd has compacted the history we need next."""

    def first() -> KeyValue | None:
        return min(waiting.values(), key=lambda kv: kv.create_revision, default=None)

    yield first()
    watch = store.watch([(contenders(queue), revision + 1)], log=lambda event: log("warning", event, queue=queue))
    try:
        for events in watch:
            for at, event in enumerate(events):
                if event.deleted:
                    waiting.pop(event.kv.key, None)
                else:
                    waiting[event.kv.key] = event.kv
                # several events of one revision are one change
                following = events[at + 1] if at + 1 < len(events) else None
                if following is None or following.kv.mod_revision != event.kv.mod_revision:
                    yield first()
    except Compacted:
        return
    finally:
        watch.cancel()
