"""Notices that etcd's revision went back: it was wiped, or restored from a backup.

A linearizable answer has at least the revision and the raft term that etcd was known to have when it was asked. (A
renewal's or a watch's header is that one member's own, which may lag; it proves nothing by being lower.) A term may
rarely look lower for an instant, in an election. A false alarm costs one listing; a missed one would cost all events.

The same answers bound the time at which a revision was written, on our own clock.
"""

import time

from conch.etcd.store import Header, Lease, RangeResult, TxnResult, TxnResults
from conch.record import Record
from conch.static_typing import Callable, TypeVar
from conch.threads import Lock

_Answer = TypeVar("_Answer")

Log = Callable[[str, str], None]

# The times of so many answers are kept, each at least so long after the one before.
_KEPT, _APART_S = 256, 0.1


def _now() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Mark(Record):
    """The newest revision and term known at some time; `turn` counts how often they went back before it."""

    revision: int
    term: int
    turn: int


class Timeline:
    """What one process knows of etcd's progress, and who must list again when that is undone. From any thread."""

    def __init__(self, log: Log = lambda _event, _text: None) -> None:
        """`log` is called with `revision-went-back` and a text, once each time."""
        self._log = log
        self._lock = Lock()
        self._followers: set[Callable[[], None]] = set()
        self.newest = Mark(0, 0, 0)
        # revisions, each with the times at which its request was sent and its answer arrived
        self._moments: list[tuple[int, float, float]] = []

    def follow(self, on_back: Callable[[], None]) -> None:
        """Call `on_back`, from any thread, whenever the revision goes back, until `unfollow`."""
        with self._lock:
            self._followers.add(on_back)

    def unfollow(self, on_back: Callable[[], None]) -> None:
        """Stop calling `on_back`."""
        with self._lock:
            self._followers.discard(on_back)

    def note_answer(self, answer: _Answer, before: Mark, sent_at: float | None = None) -> _Answer:
        """Note an answer to a request that was sent when `before` was the newest mark, and return the answer.

        `sent_at` is the time just before the request was sent (CLOCK_BOOTTIME, seconds).
        """
        if isinstance(answer, RangeResult | TxnResult | TxnResults):
            self._note(answer.header, before, linearizable=True)
            if sent_at is not None:
                self._remember(answer.header.revision, before, sent_at, _now())
        elif isinstance(answer, Lease):
            self._note(answer.header, before, linearizable=False)
        return answer

    def moments(self, revision: int) -> tuple[float | None, float | None]:
        """Return times (CLOCK_BOOTTIME, seconds) after and before which this revision was written; None: unknown.

        The request for a linearizable answer with a lower revision was sent before it; one that has it arrived after.
        """
        with self._lock:
            known = tuple(self._moments)
        return (
            max((sent_at for at, sent_at, _ in known if at < revision), default=None),
            min((heard_at for at, _, heard_at in known if at >= revision), default=None),
        )

    def _remember(self, revision: int, before: Mark, sent_at: float, heard_at: float) -> None:
        with self._lock:
            if before.turn == self.newest.turn and (not self._moments or sent_at >= self._moments[-1][1] + _APART_S):
                self._moments.append((revision, sent_at, heard_at))
                del self._moments[:-_KEPT]

    def note_event(self, revision: int, since: Mark) -> None:
        """Note an event at this revision, on a watch that was begun when `since` was the newest mark."""
        self._note(Header(revision, 0, 0), since, linearizable=False)

    def _note(self, header: Header, before: Mark, *, linearizable: bool) -> None:
        with self._lock:
            known = self.newest
            if before.turn != known.turn:
                return  # sent before the revision went back: it says nothing about etcd as it is now
            if not linearizable or (header.revision >= before.revision and header.term >= before.term):
                # a member's own term may be that of an election that nobody wins
                term = max(known.term, header.term) if linearizable else known.term
                self.newest = Mark(max(known.revision, header.revision), term, known.turn)
                return
            self.newest = Mark(header.revision, header.term, known.turn + 1)
            self._moments.clear()
            followers = list(self._followers)
        self._log(
            "revision-went-back",
            f"etcd was wiped or restored (revision {before.revision}, term {before.term}; "
            f"now {header.revision}, {header.term}): all is listed anew",
        )
        for on_back in followers:
            on_back()
