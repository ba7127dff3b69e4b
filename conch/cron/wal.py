"""A write-ahead log: opaque records in a folder, each durable before `append` returns.

As in ARIES a record is synced before what it allows, and one sync serves all who wait for one (group commit). A
segment is a file named for its first sequence number; inside it, numbers have no gaps. Its header says which record
was the last good one before it: what an older segment has behind that one was never promised. So a segment in which
a write or sync failed is left for a new one, and nothing that counts ever stands behind garbage.
"""

import errno
import os
import re
import struct
import threading
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_RECORD_BYTES = 16 << 20
_MAGIC = b"conchwj1"  # its last character is the version of the format

# All three are followed by a checksum. A record's head has its own: the length is then known to be right, so that a
# record cut short by a crash is not mistaken for a damaged one with good ones behind it, nor the other way round.
_START = struct.Struct(">8sQQ")  # the magic, the first number, the last good one before it
_MARK = struct.Struct(">Q")  # records up to this number are removed; overwritten in place
_HEAD = struct.Struct(">IQI")  # the length, the number, the checksum of number and data
_SUM_BYTES = 4
_START_BYTES = _START.size + _SUM_BYTES
_HEADER_BYTES = _START_BYTES + _MARK.size + _SUM_BYTES
_HEAD_BYTES = _HEAD.size + _SUM_BYTES

_TORN = "cut short"  # the one fault that is normal, at the end of the newest segment

_SEGMENT = re.compile(r"\d{20}\.wal")
_ASIDE = re.compile(r"(\d{20})\.wal\.\d+\.damaged")  # with the offset at which it begins to be damaged


@dataclass(frozen=True, slots=True)
class Record:
    """What `append` was given, and the number that it returned."""

    seq: int
    data: bytes


@dataclass(slots=True)
class _Segment:
    """A file whose durable records end at offset `end`; `last` is the last record of this and all older ones."""

    path: Path
    end: int
    last: int


@dataclass(slots=True, eq=False)
class _Entry:
    """An append that waits for its number or its error."""

    data: bytes
    seq: int = 0
    error: OSError | None = None


class Journal:
    """The log in `folder`, which exists and which the caller holds locked against other processes.

    `damage` is empty, or one line that says what was found damaged at opening and put aside as `*.damaged`; all
    records before it are kept. A last record cut short is what a crash leaves: no damage. Raises OSError if the
    folder cannot be read or put in order. All methods may be called from any thread.
    """

    def __init__(self, folder: str, *, segment_bytes: int = 4 << 20) -> None:
        self.damage = ""
        self._folder = Path(folder)
        self._segment_bytes = segment_bytes
        self._changed = threading.Condition()  # never held while a record is written or synced
        self._queue: list[_Entry] = []
        self._busy = False  # somebody leads: writes and syncs for all who queued
        self._segments: list[_Segment] = []
        self._fd = -1  # of the newest segment
        self._spoiled = True  # nothing more may be written to it
        self._last = 0  # the newest durable record
        self._next = 1
        self._mark = 0
        try:
            self._recover()
            if self._spoiled:
                self._roll()
        except BaseException:
            self._close_file()
            raise

    @property
    def next_seq(self) -> int:
        """The number that the next record gets."""
        return self._next

    @property
    def segments(self) -> int:
        """How many files there are; the newest always stays."""
        return len(self._segments)

    def oldest(self) -> int:
        """The first number of the oldest segment, which goes once all in it is truncated."""
        return _first(self._segments[0].path)

    def replay(self, after: int = 0) -> Iterator[Record]:
        """All records behind `after` that are durable when the iteration starts and not truncated, in order.

        Raises OSError if they cannot be read, also when they were damaged since opening.
        """
        with self._changed:
            found = [(segment, segment.end) for segment in self._segments]
        for segment, end in found:
            if segment.last <= max(after, self._mark):
                continue
            try:
                data = _load(segment.path, end)
            except FileNotFoundError:
                if segment in self._segments:
                    raise
                continue  # truncated since
            offset, seq = _HEADER_BYTES, _first(segment.path)
            while offset < end:
                size, why = _check(data, offset, seq)
                if why:
                    raise OSError(errno.EIO, f"cannot read record {seq}: {why}", str(segment.path))
                if seq > max(after, self._mark):
                    yield Record(seq, data[offset + _HEAD_BYTES : offset + size])
                offset, seq = offset + size, seq + 1

    def append(self, data: bytes) -> int:
        """Add a record and return its number once it is durable; callers at the same time share a sync.

        OSError: it could not be made durable and is not in the journal, nor are those that shared its sync; their
        numbers are not used again, and appends work when the fault is over. Only if the disk refused the rollback
        and a new segment too, until this process ended, may the next one see it. ValueError: it is over 16 MiB.
        """
        if len(data) > _RECORD_BYTES:
            raise ValueError(f"a record of {len(data)} bytes is too long")
        entry = _Entry(data)
        batch: list[_Entry] = []
        with self._changed:
            if self._fd < 0:
                raise OSError(errno.EBADF, "cannot append to the journal: it is closed", str(self._folder))
            self._queue.append(entry)
            self._changed.wait_for(lambda: entry.seq or entry.error or not self._busy)
            if not (entry.seq or entry.error):
                self._busy = True
                batch, self._queue = self._queue, []
        if batch:
            self._lead(batch)
        if entry.error:
            why = entry.error.strerror or str(entry.error)
            raise OSError(entry.error.errno, f"cannot append to the journal: {why}", str(self._folder))
        return entry.seq

    def _lead(self, batch: list[_Entry]) -> None:
        """Commit for all; whatever happens, nobody waits for ever."""
        first, error = 0, OSError(errno.EINTR, "interrupted")
        try:
            first = self._commit([entry.data for entry in batch])
        except OSError as caught:
            error = caught
        finally:
            with self._changed:
                for number, entry in enumerate(batch):
                    entry.seq, entry.error = (first + number, None) if first else (0, error)
                self._busy = False
                self._changed.notify_all()

    def _commit(self, batch: list[bytes]) -> int:
        """Write the records and sync them; the number of the first."""
        size = sum(_HEAD_BYTES + len(data) for data in batch)
        end = self._segments[-1].end
        if self._spoiled or (end > _HEADER_BYTES and end + size > self._segment_bytes):
            self._roll()
        segment, first = self._segments[-1], self._next
        self._next += len(batch)  # used up, also if this fails
        try:
            _write(self._fd, b"".join(_encode(first + i, data) for i, data in enumerate(batch)), segment.end)
            os.fdatasync(self._fd)
        except BaseException:
            self._roll_back()
            raise
        with self._changed:
            segment.end += size
            segment.last = self._last = first + len(batch) - 1
        return first

    def _roll_back(self) -> None:
        """Take away what was not synced, and go on elsewhere.

        After a failed sync Linux may have dropped the data and call it clean: a later sync says nothing about it.
        """
        self._spoiled = True
        with suppress(OSError):  # then the header of the new segment says that it does not count
            os.ftruncate(self._fd, self._segments[-1].end)
            os.fsync(self._fd)
        with suppress(OSError):  # then the next append tries again
            self._roll()

    def _roll(self) -> None:
        """Go on in a new segment, once that is durable. If it fails, all that comes next must try the same again.

        Only so is the header true of a file that a failed attempt left behind: no later record is in an older one.
        """
        self._spoiled = True
        path = self._folder / f"{self._next:020}.wal"
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            _write(fd, _sealed(_START.pack(_MAGIC, self._next, self._last)) + _sealed(_MARK.pack(self._mark)), 0)
            os.fdatasync(fd)
            self._sync_folder()
        except BaseException:
            os.close(fd)
            with suppress(OSError):
                path.unlink()
            raise
        with self._changed:
            self._close_file()
            self._fd = fd
            self._segments.append(_Segment(path, _HEADER_BYTES, self._last))
            self._spoiled = False
            self._drop()

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
                self._drop()

    def _write_mark(self) -> None:
        """Into the newest segment, for the next sync to take along."""
        with suppress(OSError):  # then removed records are seen again, which is harmless
            _write(self._fd, _sealed(_MARK.pack(self._mark)), _START_BYTES)

    def _drop(self) -> None:
        """Delete older segments that nobody needs, each durably before the next: a crash leaves no gap."""
        with suppress(OSError):  # then the next time
            for segment in self._segments[:-1]:
                if segment.last <= self._mark or segment.end == _HEADER_BYTES:
                    segment.path.unlink(missing_ok=True)
                    self._sync_folder()
                    self._segments.remove(segment)

    def close(self) -> None:
        """Let appends under way end, and give back the file."""
        with self._changed:
            self._changed.wait_for(lambda: not self._busy and not self._queue)
            if self._fd >= 0:
                self._write_mark()
                with suppress(OSError):  # of the mark alone: records were synced before
                    os.fdatasync(self._fd)
                self._close_file()

    def _close_file(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _sync_folder(self) -> None:
        fd = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def _recover(self) -> None:
        """Take up what is there, and open the newest segment if it can go on."""
        for path in self._folder.iterdir():
            if match := _ASIDE.fullmatch(path.name):
                self._skip(int(match[1]), path)
        paths = sorted(path for path in self._folder.iterdir() if _SEGMENT.fullmatch(path.name))
        starts = [_parse(_load(path, _HEADER_BYTES), _first(path)) for path in paths]
        self._mark = max((start[1] for start in starts if start), default=0)
        self._next = max(self._next, self._mark + 1)
        aside = 0
        for path, start, after in zip(paths, starts, [*starts[1:], None], strict=False):
            limit = after[0] if after else None
            if limit is not None and limit <= self._mark:
                path.unlink()
            else:
                aside += self._take(path, limit, good=start is not None, newest=path == paths[-1])
        if self.damage:
            self.damage += f"; {aside} bytes were put aside as *.damaged"
        self._sync_folder()
        self._next = max(self._next, self._last + 1)
        if self._segments:
            newest = self._segments[-1]
            self._fd = os.open(newest.path, os.O_RDWR)
            os.ftruncate(self._fd, newest.end)
            # What a killed process had written but not synced counts from here on, so it must be durable.
            os.fsync(self._fd)
            self._next = max(self._next, _first(newest.path))
            self._spoiled = self._next != max(_first(newest.path), newest.last + 1)

    def _take(self, path: Path, limit: int | None, *, good: bool, newest: bool) -> int:
        """Take up a segment as far as it is good, and put aside the rest and all later ones; how many bytes that is.

        `limit` is the last record that counts in it, as the next segment says; `good`: its header is.
        """
        data, first = _load(path), _first(path)
        end, why = 0, "not a segment"
        if not good and newest and (len(data) < _HEADER_BYTES or not data.strip(b"\0")):
            # A crash while it was made: there is nothing in it, but its number was reached.
            path.unlink()
            self._next = max(self._next, first)
            return 0
        if good and not self.damage:
            end, last, why = _scan(data, first, limit)
            self._last = last if last >= first else self._last
            self._segments.append(_Segment(path, end, self._last))
            if not why or (newest and why == _TORN):
                return 0
        self.damage = self.damage or f"{path} is damaged at byte {end}: {why}"
        self._skip(first, path)
        aside = path.with_name(f"{path.name}.{end}.damaged")
        if end:
            _save(aside, data)  # what is good stays under its own name
        else:
            path.rename(aside)
        return len(data) - end

    def _skip(self, first: int, path: Path) -> None:
        """Use no number that may have been used in this damaged file: it has room for only so many."""
        self._next = max(self._next, first + path.stat().st_size // _HEAD_BYTES + 1)


def _first(path: Path) -> int:
    return int(path.stem)


def _load(path: Path, size: int = -1) -> bytes:
    with path.open("rb") as file:
        return file.read(size)


def _save(path: Path, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        _write(fd, data, 0)
        os.fsync(fd)
    finally:
        os.close(fd)


def _write(fd: int, data: bytes, offset: int) -> None:
    """Write all of it, or raise OSError."""
    while data:
        done = os.pwrite(fd, data, offset)
        if not done:
            raise OSError(errno.EIO, "nothing was written")
        data, offset = data[done:], offset + done


def _sealed(data: bytes) -> bytes:
    return data + zlib.crc32(data).to_bytes(_SUM_BYTES, "big")


def _is_sealed(data: bytes) -> bool:
    return data == _sealed(data[:-_SUM_BYTES])


def _parse(header: bytes, first: int) -> tuple[int, int] | None:
    """The last record before the segment and the mark, 0 if unreadable; None if this is not a segment's header."""
    start, mark = header[:_START_BYTES], header[_START_BYTES:]
    if len(header) < _HEADER_BYTES or not _is_sealed(start):
        return None
    magic, number, last = _START.unpack_from(start)
    if magic != _MAGIC or number != first:
        return None
    return last, _MARK.unpack_from(mark)[0] if _is_sealed(mark) else 0


def _sum(seq: int, data: bytes) -> int:
    return zlib.crc32(data, zlib.crc32(seq.to_bytes(8, "big")))


def _encode(seq: int, data: bytes) -> bytes:
    return _sealed(_HEAD.pack(len(data), seq, _sum(seq, data))) + data


def _check(data: bytes, offset: int, seq: int) -> tuple[int, str]:
    """How many bytes record `seq` takes, and empty or why it is not good."""
    head = data[offset : offset + _HEAD_BYTES]
    if len(head) < _HEAD_BYTES:
        return 0, _TORN
    length, number, checksum = _HEAD.unpack_from(head)
    if not _is_sealed(head) or length > _RECORD_BYTES or number != seq:
        return 0, f"no head of record {seq}"
    size = _HEAD_BYTES + length
    if offset + size > len(data):
        return 0, _TORN
    good = _sum(seq, data[offset + _HEAD_BYTES : offset + size]) == checksum
    return size, "" if good else f"wrong checksum of record {seq}"


def _scan(data: bytes, first: int, limit: int | None) -> tuple[int, int, str]:
    """Where the good records end, the last one's number, and why not all are good up to `limit` or the end."""
    offset, seq = _HEADER_BYTES, first
    while offset < len(data) if limit is None else seq <= limit:
        size, why = _check(data, offset, seq)
        if why:
            # Zeros up to the end are a file that had grown before its data came.
            return offset, seq - 1, why if data[offset:].strip(b"\0") else _TORN
        offset, seq = offset + size, seq + 1
    return offset, seq - 1, ""
