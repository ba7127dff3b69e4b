"""The log of this host's runs: which began and how they ended, kept on disk so that a crash does not lose it."""

import json
import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass, fields, replace
from typing import Any

from conch.core.origin import Origin, origin_of
from conch.cron.values import Result
from conch.cron.wal import Wal

# With more segments than this, open entries are written anew: one long run must not keep all that came after it.
_SEGMENTS = 3

Log = Callable[..., None]


@dataclass(frozen=True, slots=True)
class Entry:
    """A run: its tick, what it holds in etcd (revisions; the lease of its slot), and its result once it is over.

    `origin` is the supervisor that it runs under; None if an earlier release wrote the entry. `host` is the one in the
    keys of a tick that runs on every host.
    """

    run: str
    name: str
    tick: int
    rev: int
    run_rev: int | None = None
    slot: int | None = None
    result: Result | None = None
    origin: Origin | None = None
    host: str = ""

    def encode(self) -> bytes:
        """Encode it as one line of JSON."""
        data = {name: getattr(self, name) for name in _FIELDS}
        data["result"] = None if self.result is None else {name: getattr(self.result, name) for name in _RESULT_FIELDS}
        data["origin"] = None if self.origin is None else self.origin.fields()
        return json.dumps(data).encode()

    @classmethod
    def decode(cls, data: bytes) -> "Entry":
        """Decode an entry, perhaps of a later release. Raises `ValueError`, `TypeError` or `KeyError` if it is none."""
        read: dict[str, Any] = json.loads(data)
        if read["result"] is not None:
            read["result"] = Result(**{name: read["result"][name] for name in _RESULT_FIELDS if name in read["result"]})
        read["origin"] = origin_of(read.get("origin"))
        return cls(**{name: read[name] for name in _FIELDS if name in read})


_FIELDS = tuple(field.name for field in fields(Entry))
_RESULT_FIELDS = tuple(field.name for field in fields(Result))


class RunLog:
    """The runs that are not yet over and recorded in etcd. A write is durable when the call returns, from any thread.

    If the disk fails, runs go on: an error is logged, and results go to etcd from memory.
    """

    def __init__(self, folder: str, log: Log, here: Origin | None = None) -> None:
        """Open the log in this folder; `OSError` if that is impossible. New entries belong to the process `here`."""
        self._log = log
        self._here = here
        self._lock = threading.Lock()
        self._wal = Wal(folder)
        self._entries: dict[str, tuple[int, Entry]] = {}
        self._writing: list[int] = []  # marks of records that are being written
        self._failing = False
        if self._wal.damage:
            log("error", "journal-damaged", msg=self._wal.damage)
        for record in self._wal.replay():
            try:
                entry = Entry.decode(record.data)
            except (ValueError, TypeError, KeyError, RecursionError):
                log("error", "journal-damaged", msg=f"record {record.seq} is not a run")
                continue
            self._remember(record.seq, entry)

    def _remember(self, seq: int, entry: Entry) -> None:
        """Keep the entry as the newest of its run, unless the run is over and the entry says that it is not."""
        known = self._entries.get(entry.run)
        if known is None or known[1].result is None or entry.result is not None:
            self._entries[entry.run] = (seq, entry)

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
        """Return the runs that never ended and whose supervisor is dead: it ran in this boot, and runs no more.

        The caller holds the lock of the state directory, so the supervisor's keeper is dead, too. Entries of another
        boot are left out: this machine may be a copy of one that is alive.
        """
        return {
            entry.run
            for entry in self.entries
            if entry.result is None and (entry.origin is None or entry.origin == here or entry.origin.proved_dead(here))
        }

    def leave(self, but: Collection[str], here: Origin, log: Log, *, all_: bool) -> None:
        """Forget runs that never ended and belong to another conchd, which records their ends itself.

        Those are the runs of another machine; with `all_`, every run, because the state directory is a copy. Runs in
        `but` are kept.
        """
        foreign = [
            entry.run
            for entry in self.entries
            if entry.result is None
            and entry.run not in but
            and (all_ or (entry.origin is not None and not entry.origin.same_machine(here)))
        ]
        for run in foreign:
            self.delivered(run)
        if foreign:
            log("warning", "runs-left", runs=len(foreign), msg="they are another conchd's: it records how they ended")

    def write(self, *entries: Entry) -> bool:
        """Record that runs began, or that they ended; return whether that is on disk. A run that is over stays over."""
        with self._lock:
            new = [self._ours(entry) for entry in entries if not self._is_over(entry)]
        if not new:
            return True
        mark, seq, written = self._append(*new)
        with self._lock:
            self._writing.remove(mark)
            for at, entry in enumerate(new, seq):
                self._remember(at, entry)
        if self._wal.segments > _SEGMENTS:
            self._rewrite_open()
        return written

    def _ours(self, entry: Entry) -> Entry:
        return replace(entry, origin=self._here) if entry.origin is None else entry

    def _is_over(self, entry: Entry) -> bool:
        """Whether an entry says that a run began which is known to be over."""
        known = self._entries.get(entry.run)
        return known is not None and known[1].result is not None and entry.result is None

    def _append(self, *entries: Entry) -> tuple[int, int, bool]:
        """Append records; return a mark at or below their numbers, the first number, and whether they are on disk.

        The mark keeps the records from being truncated before their entries are known; the caller removes it.
        """
        with self._lock:
            mark = self._wal.next_seq
            self._writing.append(mark)
        try:
            seq = self._wal.append(*(entry.encode() for entry in entries))
        except OSError as error:
            if not self._failing:
                self._failing = True
                self._log(
                    "error", "journal-failed", msg=f"cannot write the journal: {error.strerror}; runs go on without it"
                )
            return mark, self._wal.next_seq, False
        if self._failing:
            self._failing = False
            self._log("warning", "journal-works", msg="the journal can be written again")
        return mark, seq, True

    def delivered(self, *runs: str) -> None:
        """Forget runs: their results are in etcd."""
        with self._lock:
            for run in runs:
                self._entries.pop(run, None)
        self._truncate()

    def _truncate(self) -> None:
        """Remove the records before the oldest that is needed."""
        with self._lock:
            low = min((*(seq for seq, _ in self._entries.values()), *self._writing), default=self._wal.next_seq)
        try:
            self._wal.truncate(low - 1)
        except OSError:
            pass  # after a restart the runs are seen again, and found delivered

    def _rewrite_open(self) -> None:
        """Write the open entries anew, so that the old segments can be deleted."""
        for entry in self.entries:
            with self._lock:
                if self._entries.get(entry.run, (0, None))[1] is not entry:
                    continue
            mark, seq, written = self._append(entry)
            with self._lock:
                self._writing.remove(mark)
                if written and self._entries.get(entry.run, (0, None))[1] is entry:
                    self._entries[entry.run] = (seq, entry)
        self._truncate()

    def close(self) -> None:
        """Close the log."""
        self._wal.close()


def ended(entry: Entry, result: Result) -> Entry:
    """Return the same run, with its result."""
    return replace(entry, result=result)
