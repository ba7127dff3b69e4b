"""A watch that resumes: events in order and none twice, whatever endpoints come and go."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence

from conch.etcd.answers import BadAnswer, covers
from conch.etcd.error_codes import DENIED, USER_EMPTY
from conch.etcd.store import Compacted, Event, Header, Range, Refused, StoreError, WentBack
from conch.etcd.timeline import Mark, Timeline
from conch.record import Record
from conch.static_typing import Any, Protocol

_PAUSE_S, _PAUSE_MOST_S = 0.05, 1.0
# After so many streams in vain it is worth a word: the restart of a member takes fewer.
_BROKEN = 5
# A stream that lived so long was not in vain, though it brought nothing.
_PROVEN_S = 1.0
# Should etcd's revision go back all the time, as behind a balancer between two of them.
_BACK_PAUSE_S = 0.1


class Answer(Record):
    """One answer on a watch's stream, as etcd means it."""

    watch_id: int
    created: bool
    canceled: bool
    cancel_reason: str
    compact_revision: int
    events: tuple[Event, ...]
    head: Header = Header(0, 0, 0)


class Stream(Protocol):
    """An open stream of answers over `client`."""

    client: Any

    def __iter__(self) -> Iterator[Answer]: ...
    def add(self, what: Range, revision: int) -> bool: ...  # False: it takes no more, open another
    def cancel(self) -> None: ...  # from any thread
    def close(self) -> None: ...


class DriverWatch:
    """`Watch` over one stream at a time; each range goes on after the last revision seen of it."""

    def __init__(
        self,
        what: Sequence[tuple[Range, int]],
        open_stream: Callable[[Sequence[tuple[Range, int]]], Stream],
        leave: Callable[[Any], None],
        cancelled: Callable[[], None],
        failures: tuple[type[Exception], ...],
        tell: Callable[[str], None],
        blind: Callable[[], None],
        timeline: Timeline,
        confirm: Callable[[Range], None],
    ) -> None:
        """`confirm` reads a range for `timeline` to judge, and may raise `StoreError`."""
        self._what = [one for one, _ in what]
        self._next = [revision for _, revision in what]
        self._lock = threading.Lock()
        self._open_stream = open_stream
        self._leave = leave
        self._on_cancelled = cancelled
        self._failures = failures
        self._tell = tell
        self._blind = blind
        self._timeline = timeline
        self._confirm = confirm
        self._since = timeline.newest
        # listed before the revision went back, and begun after it
        self._outlived = self._since.turn > 0 and max(self._next) > self._since.revision + 1
        self._broken = 0  # streams in a row that brought nothing, whatever they promised
        self._interrupted = False  # and that was told
        self._cancelled = threading.Event()
        self._stream: Stream | None = None
        self._outgrown = False  # the stream was ended to open one with more ranges
        self._pause_s = _PAUSE_S
        self._refusals = 0

    def cancel(self) -> None:
        """See `Watch`."""
        self._cancelled.set()
        self._end_stream()

    def add(self, what: Range, start_revision: int) -> None:
        """See `Watch`."""
        with self._lock:
            self._what.append(what)
            self._next.append(start_revision)
            if self._stream is None:
                return
            if not self._stream.add(what, start_revision):
                self._outgrown = True
                self._stream.cancel()

    def _end_stream(self) -> None:
        with self._lock:
            if self._stream is not None:
                self._stream.cancel()

    def _check_timeline(self) -> None:
        """Raise if what was listed for this watch has been undone: it might never hear of anything again."""
        if self._outlived or self._timeline.newest.turn != self._since.turn:
            self._cancelled.wait(_BACK_PAUSE_S)
            raise WentBack("etcd's revision went back")

    def __iter__(self) -> Iterator[Sequence[Event]]:
        """See `Watch`."""
        self._timeline.follow(self._end_stream)
        try:
            yield from self._all_events()
        finally:
            self._timeline.leave(self._end_stream)

    def _all_events(self) -> Iterator[Sequence[Event]]:
        while not self._cancelled.is_set():
            self._check_timeline()
            stream, opened_at, before = None, time.monotonic(), self._timeline.newest
            try:
                stream = self._open()
                yield from self._events(stream, before)
            except self._failures:
                pass  # whatever ended the stream, the answer is a new one
            finally:
                with self._lock:
                    self._stream = None
                    outgrown, self._outgrown = self._outgrown, False
                if stream is not None:
                    stream.close()
            if outgrown:
                continue
            self._check_timeline()
            if stream is not None and not self._cancelled.is_set():
                self._leave(stream.client)
                if time.monotonic() - opened_at >= _PROVEN_S:
                    self._prove()
            self._broken += 1
            if self._broken % _BROKEN == 0 and not self._cancelled.is_set():
                if not self._interrupted:
                    self._interrupted = True
                    self._tell("watch-interrupted")
                self._blind()
            self._cancelled.wait(self._pause_s)
            self._pause_s = min(2 * self._pause_s, _PAUSE_MOST_S)

    def _prove(self) -> None:
        """Take the stream for one that works, or did."""
        self._pause_s, self._broken = _PAUSE_S, 0

    def _open(self) -> Stream:
        with self._lock:
            wanted = list(zip(self._what, self._next, strict=True))
        stream = self._open_stream(wanted)
        with self._lock:
            self._stream = stream
            for what, revision in list(zip(self._what, self._next, strict=True))[len(wanted) :]:
                if not stream.add(what, revision):
                    self._outgrown = True
                    stream.cancel()
                    break
            if self._cancelled.is_set():
                stream.cancel()
        return stream

    def _goes_on(self, head: Header, where: int, before: Mark) -> bool:
        """Whether a watch made now goes on from where it was; etcd takes revisions to come without a word.

        Raises `WentBack`.
        """
        if head.revision < max(before.revision, self._next[where] - 1) or head.term < before.term:
            try:
                self._confirm(self._what[where])  # it may be a member that lags
            except StoreError:
                return False
        self._check_timeline()
        return True

    def _events(self, stream: Stream, before: Mark) -> Iterator[Sequence[Event]]:
        """The events of the stream that is open; ends where a new stream must go on."""
        index: dict[int, int] = {}  # which range a watch id of this stream belongs to
        if self._cancelled.is_set():
            return
        for answer in stream:
            if answer.created and not answer.canceled:
                if answer.watch_id in index or len(index) == len(self._what):
                    raise BadAnswer("an odd answer: a watch that was not asked for")
                index[answer.watch_id] = len(index)
            if answer.compact_revision:
                if answer.compact_revision <= min(self._next):
                    raise BadAnswer("an odd answer: a compaction of what was not asked for")
                raise Compacted(f"the history before revision {answer.compact_revision} is gone")
            if answer.canceled:
                self._on_cancelled()  # a token that expired shows itself in this way, too
                self._refusals += 1
                # once may be the token, and a new login mends it
                if self._refusals > 1 and (DENIED.told(answer.cancel_reason) or USER_EMPTY.told(answer.cancel_reason)):
                    raise Refused(f"cannot watch: etcd refuses it ({answer.cancel_reason})")
                return
            if answer.created and not self._goes_on(answer.head, index[answer.watch_id], before):
                return
            self._refusals = 0
            where = self._place(answer, index)
            if self._interrupted:
                self._interrupted = False
                self._tell("watch-resumed")
            if where is None:
                continue
            self._prove()
            events = [one for one in answer.events if one.kv.mod_revision >= self._next[where]]
            self._timeline.seen(answer.events[-1].kv.mod_revision, self._since)
            with self._lock:
                self._next[where] = max(self._next[where], answer.events[-1].kv.mod_revision + 1)
            if events:
                yield events

    def _place(self, answer: Answer, index: dict[int, int]) -> int | None:
        """Which range an answer's events are of, None if it has none; `BadAnswer` if they are of no such range."""
        if not answer.events:
            return None
        where = index.get(answer.watch_id)
        if where is None or not all(covers(self._what[where], one.kv.key) for one in answer.events):
            raise BadAnswer("an odd answer: events that were not asked for")
        revisions = [one.kv.mod_revision for one in answer.events]
        if revisions != sorted(revisions):
            raise BadAnswer("an odd answer: events out of order")
        return where
