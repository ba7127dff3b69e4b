"""Which runs of this host began and how they ended, in the journal: what a crash must not make us forget."""

import json
import threading
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from conch.core.origin import Origin, origin_of
from conch.cron.values import Result
from conch.cron.wal import Journal

# An entry that stays open must not keep all that was written after it.
_SEGMENTS = 3

Tell = Callable[..., None]


@dataclass(frozen=True, slots=True)
class Entry:
    """A run: its tick, what it holds in etcd (revisions; the lease of its slot), and its result once it is over.

    `origin` is the supervisor that it runs under; None in what an earlier release wrote.
    """

    run: str
    name: str
    tick: int
    rev: int
    run_rev: int | None = None
    slot: int | None = None
    result: Result | None = None
    origin: Origin | None = None

    def encode(self) -> bytes:
        """One line of JSON."""
        data = {name: getattr(self, name) for name in _FIELDS}
        data["result"] = None if self.result is None else asdict(self.result)
        data["origin"] = None if self.origin is None else self.origin.fields()
        return json.dumps(data).encode()

    @classmethod
    def decode(cls, data: bytes) -> "Entry":
        """What was encoded, by a later release perhaps; `ValueError`, `TypeError` or `KeyError` for anything else."""
        read: dict[str, Any] = json.loads(data)
        if read["result"] is not None:
            read["result"] = Result(**read["result"])
        read["origin"] = origin_of(read.get("origin"))
        return cls(**{name: read[name] for name in _FIELDS if name in read})


_FIELDS = tuple(field.name for field in fields(Entry))


class Ledger:
    """The runs that are not yet over and in etcd. What it takes is safe when the call returns, from any thread.

    A disk that takes nothing does not stop the runs: it is said loudly, and the ends go to etcd from memory.
    """

    def __init__(self, folder: str, tell: Tell, here: Origin | None = None) -> None:
        """Opens the journal in this folder; `OSError` if that cannot be. What is written is of the process `here`."""
        self._tell = tell
        self._here = here
        self._lock = threading.Lock()
        self._journal = Journal(folder)
        self._entries: dict[str, tuple[int, Entry]] = {}
        self._writing: list[int] = []  # marks of records that are being written
        self._failing = False
        if self._journal.damage:
            tell("error", "journal-damaged", msg=self._journal.damage)
        for record in self._journal.replay():
            try:
                entry = Entry.decode(record.data)
            except (ValueError, TypeError, KeyError, RecursionError):
                tell("error", "journal-damaged", msg=f"record {record.seq} is not a run")
                continue
            known = self._entries.get(entry.run)
            if known is None or known[1].result is None or entry.result is not None:
                self._entries[entry.run] = (record.seq, entry)

    @property
    def entries(self) -> list[Entry]:
        """The runs that began and are not yet over, or whose result is not yet in etcd."""
        with self._lock:
            return [entry for _, entry in self._entries.values()]

    @property
    def backlog(self) -> int:
        """How many results wait to be delivered."""
        return sum(entry.result is not None for entry in self.entries)

    def dead(self, here: Origin) -> set[str]:
        """The runs that never ended and whose supervisor is dead: it is one of this boot, and not there any more.

        Whoever asks holds the lock of the state directory, so its keeper is dead, too. What comes from another boot
        may be the journal of a machine that lives, of which this one is a copy.
        """
        return {
            entry.run
            for entry in self.entries
            if entry.result is None and (entry.origin is None or entry.origin == here or entry.origin.proved_dead(here))
        }

    def leave(self, but: Collection[str], here: Origin, tell: Tell, *, all_: bool) -> None:
        """Forget runs that never ended and are another conchd's, which concludes them itself.

        Those are the runs of another machine; all, if the state directory is a copy.
        """
        left = [
            entry.run
            for entry in self.entries
            if entry.result is None
            and entry.run not in but
            and (all_ or (entry.origin is not None and not entry.origin.same_machine(here)))
        ]
        for run in left:
            self.delivered(run)
        if left:
            tell("warning", "runs-left", runs=len(left), msg="they are another conchd's: it records how they ended")

    def write(self, entry: Entry) -> bool:
        """Take note of a run's beginning, or of its end; whether it is safe on disk. What is over stays over."""
        if entry.origin is None:
            entry = replace(entry, origin=self._here)
        with self._lock:
            known = self._entries.get(entry.run)
            if known is not None and known[1].result is not None and entry.result is None:
                return True
        mark, seq, written = self._append(entry)
        with self._lock:
            self._writing.remove(mark)
            known = self._entries.get(entry.run)
            if known is None or known[1].result is None or entry.result is not None:
                self._entries[entry.run] = (seq, entry)
        if self._journal.segments > _SEGMENTS:
            self._renew()
        return written

    def _append(self, entry: Entry) -> tuple[int, int, bool]:
        """A mark below which nothing of this is, the record's number, and whether it is safe.

        The mark keeps the record from being truncated before its entry is known.
        """
        with self._lock:
            mark = self._journal.next_seq
            self._writing.append(mark)
        try:
            seq = self._journal.append(entry.encode())
        except OSError as error:
            if not self._failing:
                self._failing = True
                self._tell(
                    "error", "journal-failed", msg=f"cannot write the journal: {error.strerror}; runs go on without it"
                )
            return mark, self._journal.next_seq, False
        if self._failing:
            self._failing = False
            self._tell("warning", "journal-works", msg="the journal can be written again")
        return mark, seq, True

    def delivered(self, run: str) -> None:
        """The result is in etcd: forget the run."""
        with self._lock:
            self._entries.pop(run, None)
            low = min((*(seq for seq, _ in self._entries.values()), *self._writing), default=self._journal.next_seq)
        try:
            self._journal.truncate(low - 1)
        except OSError:
            pass  # shown again after a restart, and found delivered then

    def _renew(self) -> None:
        """Write what is still open anew, so that the old segments can go."""
        for entry in self.entries:
            with self._lock:
                if self._entries.get(entry.run, (0, None))[1] is not entry:
                    continue
            mark, seq, written = self._append(entry)
            with self._lock:
                self._writing.remove(mark)
                if written and self._entries.get(entry.run, (0, None))[1] is entry:
                    self._entries[entry.run] = (seq, entry)
        self.delivered("")

    def close(self) -> None:
        """Close the journal."""
        self._journal.close()


def ended(entry: Entry, result: Result) -> Entry:
    """The same run, over."""
    return replace(entry, result=result)
