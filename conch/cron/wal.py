"""A write-ahead log: opaque records in a folder, each durable before `append` returns.

As in ARIES a record is synced before what it allows, and one sync serves all who wait for one (group commit). A
segment is a file named for its first sequence number; inside it, numbers have no gaps. Its header says which record
was the last good one before it: what an older segment has behind that one was never promised. So a segment in which
a write or sync failed is left for a new one, and nothing that counts ever stands behind garbage.
"""

import errno
import os
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from conch.cron.wal_files import Segment, load, sync_folder, write_all
from conch.cron.wal_format import (
    HEAD_BYTES,
    HEADER_BYTES,
    LARGEST_RECORD_BYTES,
    MARK_OFFSET,
    check_record,
    encode_header,
    encode_mark,
    encode_record,
)
from conch.cron.wal_recovery import Recovery


@dataclass(frozen=True, slots=True)
class Record:
    """What `append` got, and the number that it returned."""

    seq: int
    data: bytes


@dataclass(slots=True, eq=False)
class _PendingAppend:
    """An append that waits for its number or its error; `wake` is locked until it has one, or is to commit itself."""

    records: tuple[bytes, ...]
    wake: threading.Lock = field(default_factory=threading.Lock)
    seq: int = 0
    error: OSError | None = None


class Wal:
    """The log in `folder`, which exists and which the caller holds locked against other processes.

    `damage` is empty, or one line that says what was found damaged at opening and put aside as `*.damaged`; all
    records before it are kept. A last record cut short is what a crash leaves: no damage. Raises OSError if the
    folder cannot be read or put in order. All methods may be called from any thread.
    """

    def __init__(self, folder: str, *, segment_bytes: int = 4 << 20) -> None:
        self._folder = Path(folder)
        self._segment_bytes = segment_bytes
        self._changed = threading.Condition()  # never held while a record is written or synced
        self._queue: list[_PendingAppend] = []
        self._committing = False  # one of the callers writes and syncs for all who queued
        self._fd = -1  # of the newest segment
        self._must_rotate = True  # nothing more may be written to the newest segment
        recovered = Recovery(self._folder)
        self.damage = recovered.damage
        self._segments = recovered.segments
        self._last = recovered.last  # the newest durable record
        self._next = recovered.next
        self._mark = recovered.mark  # records up to this number are truncated
        try:
            if self._segments:
                self._reopen(self._segments[-1])
            if self._must_rotate:
                self._rotate()
        except BaseException:
            self._close_file()
            raise

    def _reopen(self, newest: Segment) -> None:
        """Open the newest segment, and continue in it if the next number follows its last one."""
        self._fd = os.open(newest.path, os.O_RDWR)
        os.ftruncate(self._fd, newest.end)
        # What a killed process had written but not synced counts from here on, so it must be durable.
        os.fsync(self._fd)
        self._next = max(self._next, newest.first)
        self._must_rotate = self._next != max(newest.first, newest.last + 1)

    @property
    def next_seq(self) -> int:
        """The number that the next record gets."""
        return self._next

    @property
    def segments(self) -> int:
        """How many files there are; the newest always stays."""
        return len(self._segments)

    def oldest(self) -> int:
        """Return the first number of the oldest segment, which is deleted once all its records are truncated."""
        return self._segments[0].first

    def replay(self, after: int = 0) -> Iterator[Record]:
        """Yield all records behind `after` that are durable when the iteration starts and not truncated, in order.

        Raises OSError if they cannot be read, also when they were damaged since opening.
        """
        with self._changed:
            found = [(segment, segment.end) for segment in self._segments]
        for segment, end in found:
            if segment.last <= max(after, self._mark):
                continue
            try:
                data = load(segment.path, end)
            except FileNotFoundError:
                if segment in self._segments:
                    raise
                continue  # truncated since
            offset, seq = HEADER_BYTES, segment.first
            while offset < end:
                size, fault = check_record(data, offset, seq)
                if fault:
                    raise OSError(errno.EIO, f"cannot read record {seq}: {fault}", str(segment.path))
                if seq > max(after, self._mark):
                    yield Record(seq, data[offset + HEAD_BYTES : offset + size])
                offset, seq = offset + size, seq + 1

    # -- appending ----------------------------------------------------------------------------------------

    def append(self, *records: bytes) -> int:
        """Add records and return the number of the first once all are durable; callers at the same time share a sync.

        OSError: they could not be made durable and are not in the log, nor are those that shared their sync; their
        numbers are not used again, and appends work when the fault is over. Only if the disk refused the rollback
        and a new segment too, until this process ended, may the next one see them. ValueError: one is over 16 MiB.
        """
        longest = max(map(len, records))
        if longest > LARGEST_RECORD_BYTES:
            raise ValueError(f"a record of {longest} bytes is too long")
        append = _PendingAppend(records)
        append.wake.acquire()
        with self._changed:
            if self._fd < 0:
                raise OSError(errno.EBADF, "cannot append to the journal: it is closed", str(self._folder))
            self._queue.append(append)
            must_wait, self._committing = self._committing, True
        if must_wait:
            append.wake.acquire()
        if not (append.seq or append.error):
            self._commit_for_all()
        if append.error:
            why = append.error.strerror or str(append.error)
            raise OSError(append.error.errno, f"cannot append to the journal: {why}", str(self._folder))
        return append.seq

    def _commit_for_all(self) -> None:
        """Commit what is queued and wake its callers, and the one that commits next; nobody waits for ever."""
        with self._changed:
            batch, self._queue = self._queue, []
        first, error = 0, OSError(errno.EINTR, "interrupted")
        try:
            first = self._commit([data for append in batch for data in append.records])
        except OSError as caught:
            error = caught
        finally:
            for append in batch:
                append.seq, append.error = (first, None) if first else (0, error)
                first += len(append.records) if first else 0
            with self._changed:
                self._committing = bool(self._queue)
                woken = [*batch, *self._queue[:1]]
                self._changed.notify_all()
            for append in woken:
                append.wake.release()

    def _commit(self, batch: list[bytes]) -> int:
        """Write the records and sync them; return the number of the first."""
        size = sum(HEAD_BYTES + len(data) for data in batch)
        end = self._segments[-1].end
        if self._must_rotate or (end > HEADER_BYTES and end + size > self._segment_bytes):
            self._rotate()
        segment, first = self._segments[-1], self._next
        self._next += len(batch)  # used up, also if this fails
        try:
            write_all(self._fd, b"".join(encode_record(first + i, data) for i, data in enumerate(batch)), segment.end)
            os.fdatasync(self._fd)
        except BaseException:
            self._roll_back()
            raise
        with self._changed:
            segment.end += size
            segment.last = self._last = first + len(batch) - 1
        return first

    def _roll_back(self) -> None:
        """Cut off what was not synced, and continue in a new segment.

        After a failed sync Linux may have dropped the data and call it clean: a later sync says nothing about it.
        """
        self._must_rotate = True
        with suppress(OSError):  # then the header of the new segment says that it does not count
            os.ftruncate(self._fd, self._segments[-1].end)
            os.fsync(self._fd)
        with suppress(OSError):  # then the next append tries again
            self._rotate()

    def _rotate(self) -> None:
        """Continue in a new segment, once it is durable. If that fails, every later append must try the same again.

        Only so is the header true of a file that a failed attempt left behind: no later record is in an older one.
        """
        self._must_rotate = True
        path = self._folder / f"{self._next:020}.wal"
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            write_all(fd, encode_header(self._next, self._last, self._mark), 0)
            os.fdatasync(fd)
            sync_folder(self._folder)
        except BaseException:
            os.close(fd)
            with suppress(OSError):
                path.unlink()
            raise
        with self._changed:
            self._close_file()
            self._fd = fd
            self._segments.append(Segment(path, HEADER_BYTES, self._last))
            self._must_rotate = False
            self._delete_truncated()

    # -- truncating and closing ---------------------------------------------------------------------------

    def truncate(self, upto: int) -> None:
        """Remove all durable records up to and including `upto`. Cheap: no sync, except of the folder for a file gone.

        They are not shown again in this process, nor after `close`, nor after a kill; if the machine crashes they
        may be. No OSError: what cannot be removed now is removed later.
        """
        with self._changed:
            upto = min(upto, self._last)  # records still to come are not removed beforehand
            if upto > self._mark and self._fd >= 0:
                self._mark = upto
                self._write_mark()
                self._delete_truncated()

    def _write_mark(self) -> None:
        """Write the mark into the newest segment; the next sync makes it durable."""
        with suppress(OSError):  # then truncated records are seen again, which is harmless
            write_all(self._fd, encode_mark(self._mark), MARK_OFFSET)

    def _delete_truncated(self) -> None:
        """Delete older segments that nobody needs, each durably before the next: a crash leaves no gap."""
        with suppress(OSError):  # then the next time
            for segment in self._segments[:-1]:
                if segment.last <= self._mark or segment.end == HEADER_BYTES:
                    segment.path.unlink(missing_ok=True)
                    sync_folder(self._folder)
                    self._segments.remove(segment)

    def close(self) -> None:
        """Wait for appends under way to finish, then close the file."""
        with self._changed:
            self._changed.wait_for(lambda: not self._committing and not self._queue)
            if self._fd >= 0:
                self._write_mark()
                with suppress(OSError):  # of the mark alone: records were synced before
                    os.fdatasync(self._fd)
                self._close_file()

    def _close_file(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
