"""A watch that resumes: events in order and none twice, whatever endpoints come and go."""

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from conch.etcd.messages import key_value
from conch.etcd.store import Compacted, Event, Range, Refused

_PAUSE_S, _PAUSE_MOST_S = 0.05, 1.0
# After so many streams in vain it is worth a word: the restart of a member takes fewer.
_BROKEN = 5


class DriverWatch:
    """`Watch` over one gRPC stream at a time; each range goes on after the last revision seen of it."""

    def __init__(
        self,
        what: Sequence[tuple[Range, int]],
        request: Callable[[Range, int], Any],
        open_stream: Callable[[Any], tuple[Any, Any]],
        leave: Callable[[Any], None],
        cancelled: Callable[[], None],
        failures: tuple[type[Exception], ...],
        tell: Callable[[str], None],
    ) -> None:
        self._what = [one for one, _ in what]
        self._next = [revision for _, revision in what]
        self._lock = threading.Lock()
        self._requests: queue.SimpleQueue[Any] | None = None
        self._request = request
        self._open_stream = open_stream
        self._leave = leave
        self._on_cancelled = cancelled
        self._failures = failures
        self._tell = tell
        self._broken = 0  # streams in a row that brought nothing
        self._cancelled = threading.Event()
        self._stream: Any = None
        self._pause_s = _PAUSE_S
        self._refusals = 0

    def cancel(self) -> None:
        """See `Watch`."""
        self._cancelled.set()
        stream = self._stream
        if stream is not None:
            stream.cancel()

    def add(self, what: Range, start_revision: int) -> None:
        """See `Watch`."""
        with self._lock:
            self._what.append(what)
            self._next.append(start_revision)
            if self._requests is not None:
                self._requests.put(self._request(what, start_revision))

    def __iter__(self) -> Iterator[Sequence[Event]]:
        """See `Watch`."""
        while not self._cancelled.is_set():
            requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
            client = None
            try:
                client, self._stream = self._open_stream(iter(requests.get, None))
                with self._lock:
                    for one, revision in zip(self._what, self._next, strict=True):
                        requests.put(self._request(one, revision))
                    self._requests = requests
                yield from self._events()
            except self._failures:
                pass  # whatever ended the stream, the answer is a new one
            finally:
                with self._lock:
                    self._requests = None
                requests.put(None)
            if client is not None and not self._cancelled.is_set():
                self._leave(client)
            self._broken += 1
            if self._broken == _BROKEN and not self._cancelled.is_set():
                self._tell("watch-interrupted")
            self._cancelled.wait(self._pause_s)
            self._pause_s = min(2 * self._pause_s, _PAUSE_MOST_S)

    def _events(self) -> Iterator[Sequence[Event]]:
        """The events of the stream that is open; ends where a new stream must go on."""
        index: dict[int, int] = {}  # which range a watch id of this stream belongs to
        if self._cancelled.is_set():
            return
        for answer in self._stream:
            if answer.created:
                index[answer.watch_id] = len(index)
            if answer.compact_revision:
                raise Compacted(f"the history before revision {answer.compact_revision} is gone")
            if answer.canceled:
                self._on_cancelled()  # a token that expired shows itself in this way, too
                self._refusals += 1
                # once may be the token, and a new login mends it
                if "permission denied" in answer.cancel_reason and self._refusals > 1:
                    raise Refused(f"cannot watch: etcd refuses it ({answer.cancel_reason})")
                return
            self._pause_s, self._refusals = _PAUSE_S, 0  # this stream works
            if self._broken >= _BROKEN:
                self._tell("watch-resumed")
            self._broken = 0
            if not answer.events:
                continue
            where = index[answer.watch_id]
            events = [
                Event(key_value(e.kv), e.type == e.DELETE)
                for e in answer.events
                if e.kv.mod_revision >= self._next[where]
            ]
            self._next[where] = max(self._next[where], answer.events[-1].kv.mod_revision + 1)
            if events:
                yield events
