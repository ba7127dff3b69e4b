"""Reading holds without taking part: no lease, no key."""

import json
import sys
import time
from collections.abc import Iterator

from conch.errors import CannotWrite, ReaderGone
from conch.etcd.connection import Connection
from conch.etcd.patience import first_answer
from conch.etcd.store import Compacted, KeyValue, Range, RangeResult, Store, Unreachable
from conch.holder import Holder, UnreadableHolder
from conch.keys import prefix_end
from conch.log import Log, escape

_RETRY_S = 1.0


def everyone(queue: str) -> Range:
    """All contenders of a queue, first in line first."""
    return Range(queue.encode(), prefix_end(queue.encode()), oldest_first=True)


def holder_of(kv: KeyValue, log: Log) -> Holder | None:
    """The holder that a key in a queue names; an unreadable value is reported by its key, which keeps its place."""
    try:
        return Holder.decode(kv.value)
    except UnreadableHolder as error:
        why = str(error) if kv.lease else f"{error}; without a lease it keeps its place until it is deleted"
        log("warning", "unreadable", key=kv.key.decode("utf-8", "replace"), msg=why)
        return None


def line(kv: KeyValue, holder: Holder) -> str:
    """What people see of a contender, after its name."""
    return f"{escape(holder.host)} pid={holder.pid} since={escape(holder.started)} rev={kv.create_revision}"


def fields(kv: KeyValue, holder: Holder) -> dict[str, object]:
    """What programs see of a contender, after its name."""
    return {
        "host": holder.host,
        "pid": holder.pid,
        "started": holder.started,
        "cmd": holder.cmd,
        "rev": kv.create_revision,
        "lease": f"{kv.lease:x}",
    }


def put_line(text: str) -> None:
    """One line on stdout, at once."""
    if sys.stdout is None:
        raise CannotWrite("cannot write to stdout: it is closed")
    try:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        raise ReaderGone("stdout was closed") from None
    except OSError as error:
        raise CannotWrite(f"cannot write to stdout: {error.strerror}") from None


def put_json(data: dict[str, object]) -> None:
    """One object a line on stdout, at once."""
    put_line(json.dumps(data))


def list_once(store: Store, what: Range, connection: Connection) -> RangeResult:
    """Read for a look: an etcd that is there, if slow, has the command timeout."""

    def ask(timeout_s: float) -> RangeResult:
        return store.range(what, timeout_s=timeout_s)

    return first_answer(ask, connection, within_s=connection.command_timeout_s)


def first_in_line(store: Store, queue: str, connection: Connection, log: Log) -> Iterator[KeyValue | None]:
    """Yield the first contender (None: vacant) now and after each change of it; no change is left out."""
    started = False
    shown: tuple[bytes, int, bytes] | None = None
    while True:
        try:
            listed = list_once(store, everyone(queue), connection)
        except Unreachable as error:
            if not started:
                raise
            log("warning", "retry", msg=str(error))
            time.sleep(_RETRY_S)
            continue
        waiting = {kv.key: kv for kv in listed.kvs}
        for now in _after_each_revision(store, queue, waiting, listed.header.revision, log):
            mark = None if now is None else (now.key, now.create_revision, now.value)
            if not started or mark != shown:
                started, shown = True, mark
                yield now


def _after_each_revision(
    store: Store, queue: str, waiting: dict[bytes, KeyValue], revision: int, log: Log
) -> Iterator[KeyValue | None]:
    """The first contender after each revision; ends when the history is gone and a new list is wanted."""

    def first() -> KeyValue | None:
        return min(waiting.values(), key=lambda kv: kv.create_revision, default=None)

    yield first()
    watch = store.watch([(everyone(queue), revision + 1)], tell=lambda event: log("warning", event, queue=queue))
    try:
        for events in watch:
            for at, event in enumerate(events):
                if event.deleted:
                    waiting.pop(event.kv.key, None)
                else:
                    waiting[event.kv.key] = event.kv
                following = events[at + 1] if at + 1 < len(events) else None
                if following is None or following.kv.mod_revision != event.kv.mod_revision:
                    yield first()
    except Compacted:
        return
    finally:
        watch.cancel()
