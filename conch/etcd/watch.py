"""A watch that resumes: events in order and none twice, whatever endpoints come and go."""

import time

from conch import threads
from conch.enums import Enum
from conch.etcd.answers import BadAnswer, covers
from conch.etcd.backoff import Backoff
from conch.etcd.error_codes import DENIED, USER_EMPTY
from conch.etcd.store import Compacted, Event, Header, Range, Refused, StoreError, WentBack
from conch.etcd.timeline import Mark, Timeline
from conch.record import Record
from conch.static_typing import Any, Callable, Iterator, Protocol, Sequence

_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 1.0
# After so many useless streams in a row it is reported: the restart of a member takes fewer.
_REPORTED_AFTER = 5
# A stream that lived this long was useful, though it brought no event.
_PROVEN_S = 1.0
# A pause for an etcd whose revision goes back all the time, as behind a balancer between two clusters.
_WENT_BACK_PAUSE_S = 0.1


class Answer(Record):
    """One answer on a watch's stream, whichever driver read it."""

    watch_id: int
    created: bool
    canceled: bool
    cancel_reason: str
    compact_revision: int
    events: tuple[Event, ...]
    header: Header = Header(0, 0, 0)


class Stream(Protocol):
    """An open stream of answers over `client`."""

    client: Any

    def __iter__(self) -> Iterator[Answer]: ...
    def add(self, what: Range, revision: int) -> bool: ...  # False: it takes no more, open another
    def cancel(self) -> None: ...  # from any thread
    def close(self) -> None: ...


class WatchState(Enum):
    """The life of a watch."""

    STARTING = "starting"  # no stream has answered yet
    STREAMING = "streaming"  # the open stream has answered
    RESUMING = "resuming"  # a stream broke; the next one goes on after the last revision seen
    INTERRUPTED = "interrupted"  # so many streams were useless that it was reported
    ENDED = "ended"  # it was cancelled, abandoned, or has raised


_NEXT = {
    WatchState.STARTING: frozenset({WatchState.STREAMING, WatchState.RESUMING, WatchState.ENDED}),
    WatchState.STREAMING: frozenset({WatchState.RESUMING, WatchState.ENDED}),
    WatchState.RESUMING: frozenset({WatchState.STREAMING, WatchState.INTERRUPTED, WatchState.ENDED}),
    WatchState.INTERRUPTED: frozenset({WatchState.STREAMING, WatchState.ENDED}),
    WatchState.ENDED: frozenset[WatchState](),
}


class IllegalWatchState(Exception):
    """A watch was asked for what its state does not allow: a defect of conch."""


class _OpenStream:
    """A stream, and what is known of it while it is open."""

    def __init__(self, stream: Stream, opened_at: float, before: Mark) -> None:
        self.stream = stream
        self.opened_at = opened_at
        self.before = before  # the newest mark as it was asked for
        self.index: dict[int, int] = {}  # which range a watch id of this stream belongs to
        self.outgrown = False  # it was cancelled, to open one with more ranges


class DriverWatch:
    """`Watch` over one stream at a time; each range goes on after the last revision seen of it.

    Only the thread that iterates changes the state. Other threads ask by `cancel` and `add`.
    """

    def __init__(
        self,
        what: Sequence[tuple[Range, int]],
        open_stream: Callable[[Sequence[tuple[Range, int]]], Stream],
        drop_connection: Callable[[Any], None],
        invalidate_token: Callable[[], None],
        failures: tuple[type[Exception], ...],
        report: Callable[[str], None],
        on_unavailable: Callable[[], None],
        timeline: Timeline,
        confirm: Callable[[Range], None],
    ) -> None:
        """`confirm` reads a range so that `timeline` checks etcd's revision; it may raise `StoreError`."""
        self.state = WatchState.STARTING
        self._what = [watched for watched, _ in what]
        self._next = [revision for _, revision in what]
        self._lock = threads.Lock()
        self._open_stream = open_stream
        self._drop_connection = drop_connection
        self._invalidate_token = invalidate_token
        self._failures = failures
        self._report = report
        self._on_unavailable = on_unavailable
        self._timeline = timeline
        self._confirm = confirm
        self._since = timeline.newest
        # listed before the revision went back, and begun after it
        self._outlived = self._since.turn > 0 and max(self._next) > self._since.revision + 1
        self._cancelled = threads.Event()
        self._current: _OpenStream | None = None
        self._useless = 0  # streams in a row that brought nothing, whatever they confirmed
        self._backoff = Backoff(_PAUSE_S, _LONGEST_PAUSE_S)
        self._refusals = 0  # since all ranges were confirmed on one stream

    # -- from any thread ------------------------------------------------------------------------------------

    def cancel(self) -> None:
        """See `Watch`."""
        self._cancelled.set()
        self._cancel_stream()

    def add(self, what: Range, start_revision: int) -> None:
        """See `Watch`."""
        with self._lock:
            self._what.append(what)
            self._next.append(start_revision)
            if self._current is not None:
                self._extend(self._current, what, start_revision)

    def _cancel_stream(self) -> None:
        with self._lock:
            if self._current is not None:
                self._current.stream.cancel()

    @staticmethod
    def _extend(current: _OpenStream, what: Range, revision: int) -> None:
        if not current.outgrown and not current.stream.add(what, revision):
            current.outgrown = True
            current.stream.cancel()

    # -- the thread that iterates ---------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Sequence[Event]]:
        """See `Watch`."""
        if self.state is not WatchState.STARTING:
            raise IllegalWatchState(f"a watch that is {self.state.value} cannot be iterated again")
        self._timeline.follow(self._cancel_stream)
        try:
            yield from self._all_events()
        finally:
            self._timeline.unfollow(self._cancel_stream)
            self._enter(WatchState.ENDED)

    def _all_events(self) -> Iterator[Sequence[Event]]:
        """Yield the events of one stream after the other; this is the whole life of a watch."""
        while not self._cancelled.is_set():
            self._check_timeline()
            current = None
            try:
                current = self._open()
                yield from self._events(current)
            except self._failures:
                pass  # whatever ended the stream, the answer is a new one
            finally:
                self._close(current)
            if current is not None and current.outgrown:
                continue
            self._check_timeline()
            if not self._cancelled.is_set():
                self._on_break(current)

    def _on_break(self, broken: _OpenStream | None) -> None:
        """Prepare for the next stream after one that ended, or (None) could not be opened."""
        if broken is not None:
            self._drop_connection(broken.stream.client)  # so that the next one goes to another member
            if time.monotonic() - broken.opened_at >= _PROVEN_S:
                self._prove()
        if self.state is not WatchState.RESUMING and self.state is not WatchState.INTERRUPTED:
            self._enter(WatchState.RESUMING)
        self._useless += 1
        if self._useless % _REPORTED_AFTER == 0 and not self._cancelled.is_set():
            if self.state is WatchState.RESUMING:
                self._enter(WatchState.INTERRUPTED)
                self._report("watch-interrupted")
            self._on_unavailable()
        self._cancelled.wait(self._backoff.next_s())

    def _on_answer(self) -> None:
        """Note that a stream answers as it should."""
        if self.state is WatchState.STREAMING:
            return
        was_interrupted = self.state is WatchState.INTERRUPTED
        self._enter(WatchState.STREAMING)
        if was_interrupted:
            self._report("watch-resumed")

    def _enter(self, state: WatchState) -> None:
        if state not in _NEXT[self.state]:
            raise IllegalWatchState(f"a watch cannot go from {self.state.value} to {state.value}")
        self.state = state

    def _prove(self) -> None:
        """Count the stream as useful: it works, or did."""
        self._backoff.reset()
        self._useless = 0

    def _check_timeline(self) -> None:
        """Raise `WentBack` if the listing behind this watch was undone: no event might ever come."""
        if self._outlived or self._timeline.newest.turn != self._since.turn:
            self._cancelled.wait(_WENT_BACK_PAUSE_S)
            raise WentBack("etcd's revision went back")

    # -- one stream -----------------------------------------------------------------------------------------

    def _open(self) -> _OpenStream:
        opened_at, before = time.monotonic(), self._timeline.newest
        with self._lock:
            watched = self._still_watched()
        current = _OpenStream(self._open_stream(watched), opened_at, before)
        with self._lock:
            self._current = current
            for what, revision in self._still_watched()[len(watched) :]:  # added meanwhile
                self._extend(current, what, revision)
            if self._cancelled.is_set():
                current.stream.cancel()
        return current

    def _still_watched(self) -> list[tuple[Range, int]]:
        return list(zip(self._what, self._next, strict=True))

    def _close(self, current: _OpenStream | None) -> None:
        with self._lock:
            self._current = None
        if current is not None:
            current.stream.close()

    def _events(self, current: _OpenStream) -> Iterator[Sequence[Event]]:
        """Yield the events of the open stream; return where a new stream must go on."""
        if self._cancelled.is_set():
            return
        for answer in current.stream:
            if answer.created and not answer.canceled:
                self._add_to_index(answer, current.index)
            if answer.compact_revision:
                self._raise_compacted(answer)
            if answer.canceled:
                self._on_refusal(answer)
                return
            if answer.created and not self._continues(answer.header, current.index[answer.watch_id], current.before):
                return
            if len(current.index) == len(self._what):
                # not before: a refusal of a later range would be the first one on each stream
                self._refusals = 0
            where = self._range_of(answer, current.index)
            self._on_answer()
            if where is not None:
                self._prove()
                events = self._new_events(answer, where)
                if events:
                    yield events

    def _add_to_index(self, answer: Answer, index: dict[int, int]) -> None:
        """Note to which range a new watch id belongs: etcd answers in the order of the requests."""
        if answer.watch_id in index or len(index) == len(self._what):
            raise BadAnswer("an odd answer: a watch that was not asked for")
        index[answer.watch_id] = len(index)

    def _raise_compacted(self, answer: Answer) -> None:
        if answer.compact_revision <= min(self._next):
            raise BadAnswer("an odd answer: a compaction of what was not asked for")
        raise Compacted(f"the history before revision {answer.compact_revision} is gone")

    def _on_refusal(self, answer: Answer) -> None:
        """Have the next stream log in anew; raise `Refused` if that did not help."""
        self._invalidate_token()  # a token that expired shows itself in this way, too
        self._refusals += 1
        denied = DENIED.is_in(answer.cancel_reason) or USER_EMPTY.is_in(answer.cancel_reason)
        if self._refusals > 1 and denied:  # the first refusal may be due to the token, and a new login mends it
            raise Refused(f"cannot watch: etcd refuses it ({answer.cancel_reason})")

    def _continues(self, header: Header, where: int, before: Mark) -> bool:
        """Return whether a new watch goes on from the last revision seen; etcd accepts future revisions silently.

        Raises `WentBack`.
        """
        if header.revision < max(before.revision, self._next[where] - 1) or header.term < before.term:
            try:
                self._confirm(self._what[where])  # the member may merely lag
            except StoreError:
                return False
        self._check_timeline()
        return True

    def _range_of(self, answer: Answer, index: dict[int, int]) -> int | None:
        """Return which range the answer's events belong to, None if it has none; `BadAnswer` if to none of ours."""
        if not answer.events:
            return None
        where = index.get(answer.watch_id)
        if where is None or not all(covers(self._what[where], event.kv.key) for event in answer.events):
            raise BadAnswer("an odd answer: events that were not asked for")
        revisions = [event.kv.mod_revision for event in answer.events]
        if revisions != sorted(revisions):
            raise BadAnswer("an odd answer: events out of order")
        return where

    def _new_events(self, answer: Answer, where: int) -> list[Event]:
        """Return the events that were not seen before, and go on after them."""
        newest = answer.events[-1].kv.mod_revision
        events = [event for event in answer.events if event.kv.mod_revision >= self._next[where]]
        self._timeline.note_event(newest, self._since)
        with self._lock:
            self._next[where] = max(self._next[where], newest + 1)
        return events
