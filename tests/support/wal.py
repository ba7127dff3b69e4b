"""Helpers of the tests of the write-ahead log."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conch.cron.wal import Record, Wal

LAST = b"the last record"


Opener = Callable[..., Wal]


def seqs(wal: Wal, after: int = 0) -> list[int]:
    return [record.seq for record in wal.replay(after)]


def files(folder: Path, kind: str = "*.wal") -> list[Path]:
    return sorted(folder.glob(kind))


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def fresh(parent: Path, found: dict[str, bytes]) -> Path:
    """A new folder with these files."""
    folder = parent / f"copy{len(list(parent.iterdir()))}"
    folder.mkdir()
    for name, data in found.items():
        (folder / name).write_bytes(data)
    return folder


def failing(
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    times: int,
    code: int = errno.EIO,
    first: Callable[..., object] | None = None,
) -> list[int]:
    """Make the next `times` calls of a function of `os` fail, after `first` did a part; how many are left of them."""
    real = getattr(os, name)
    left = [times]

    def call(*args: Any, **options: Any) -> Any:
        if left[0] > 0:
            left[0] -= 1
            if first is not None:
                first(*args)
            raise OSError(code, os.strerror(code))
        return real(*args, **options)

    monkeypatch.setattr(os, name, call)
    return left


def three_records(opened: Opener, folder: Path) -> tuple[bytes, int]:
    """The file of a log with three records, and where the last of them starts."""
    folder.mkdir()
    wal = opened(folder)
    wal.append(b"first")
    wal.append(b"\0second")
    start = files(folder)[0].stat().st_size
    wal.append(LAST)
    return files(folder)[0].read_bytes(), start


FIRST_TWO = [Record(1, b"first"), Record(2, b"\0second")]


SEGMENT = f"{1:020}.wal"
