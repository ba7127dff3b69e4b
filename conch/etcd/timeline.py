"""Notices that etcd's revision went back: it was wiped, or restored from a backup.

A linearizable answer has at least the revision and the raft term that etcd was known to have when it was asked. (A
renewal's or a watch's header is that one member's own, which may lag; it proves nothing by being lower.) A term may
rarely look lower for a moment, in an election; a false alarm costs one listing, a missed one would make us deaf.
"""

import threading
from collections.abc import Callable

from conch.etcd.store import Head, Lease, RangeResult, TxnResult
from conch.hints import TypeVar
from conch.record import Record

_Answer = TypeVar("_Answer")

Tell = Callable[[str, str], None]


class Mark(Record):
    """The newest revision and term known at a moment; `turn` counts how often they went back before it."""

    revision: int
    term: int
    turn: int


class Timeline:
    """What one process knows of etcd's progress, and who must list anew when that is undone. From any thread."""

    def __init__(self, tell: Tell = lambda _event, _text: None) -> None:
        """`tell` hears `revision-went-back` with a text, once each time."""
        self._tell = tell
        self._lock = threading.Lock()
        self._followers: set[Callable[[], None]] = set()
        self.newest = Mark(0, 0, 0)

    def follow(self, on_back: Callable[[], None]) -> None:
        """Have this called, from any thread, whenever the revision goes back, until `leave`."""
        with self._lock:
            self._followers.add(on_back)

    def leave(self, on_back: Callable[[], None]) -> None:
        """Call it no more."""
        with self._lock:
            self._followers.discard(on_back)

    def heard(self, answer: _Answer, before: Mark) -> _Answer:
        """Take note of an answer to what was asked when `before` was the newest, and return it."""
        if isinstance(answer, RangeResult | TxnResult):
            self._note(answer.head, before, linearizable=True)
        elif isinstance(answer, Lease):
            self._note(answer.head, before, linearizable=False)
        return answer

    def seen(self, revision: int, since: Mark) -> None:
        """Take note of an event at this revision, on a watch that was begun when `since` was the newest."""
        self._note(Head(revision, 0, 0), since, linearizable=False)

    def _note(self, head: Head, before: Mark, *, linearizable: bool) -> None:
        with self._lock:
            known = self.newest
            if before.turn != known.turn:
                return  # asked before it went back: it says nothing of what is now
            if not linearizable or (head.revision >= before.revision and head.term >= before.term):
                # a member's own term may be that of an election which nobody wins
                term = max(known.term, head.term) if linearizable else known.term
                self.newest = Mark(max(known.revision, head.revision), term, known.turn)
                return
            self.newest = Mark(head.revision, head.term, known.turn + 1)
            followers = list(self._followers)
        self._tell(
            "revision-went-back",
            f"etcd was wiped or restored (revision {before.revision}, term {before.term}; "
            f"now {head.revision}, {head.term}): all is listed anew",
        )
        for on_back in followers:
            on_back()
