"""The files of the write-ahead log: a segment, and how its bytes are read, written and made durable."""

import errno
import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(slots=True)
class Segment:
    """A file whose durable records end at offset `end`; `last` is the last record of this and all older ones."""

    path: Path
    end: int
    last: int

    @property
    def first(self) -> int:
        """The number of its first record, by which it is named."""
        return first_of(self.path)


def first_of(path: Path) -> int:
    """Return the number of the first record of the segment at `path`."""
    return int(path.stem)


def load(path: Path, size: int = -1) -> bytes:
    """Read a file, or its first `size` bytes."""
    with path.open("rb") as file:
        return file.read(size)


def save(path: Path, data: bytes) -> None:
    """Write a file durably; its entry in the folder is not synced."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        write_all(fd, data, 0)
        os.fsync(fd)
    finally:
        os.close(fd)


def write_all(fd: int, data: bytes, offset: int) -> None:
    """Write all of `data` at `offset`, or raise OSError."""
    while data:
        written = os.pwrite(fd, data, offset)
        if not written:
            raise OSError(errno.EIO, "nothing was written")
        data, offset = data[written:], offset + written


def sync_folder(folder: Path) -> None:
    """Make durable which files are in the folder."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
