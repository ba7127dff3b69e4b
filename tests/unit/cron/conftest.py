"""Fixtures of the tests of conch/cron."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from conch.cron.wal import Wal


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Callable[..., Wal]]:
    """Opens wals in a folder and closes them in the end; until then, those before are as if killed."""
    wals: list[Wal] = []

    def open_one(folder: Path | None = None, **options: int) -> Wal:
        wals.append(Wal(str(folder or tmp_path), **options))
        return wals[-1]

    yield open_one
    for wal in wals:
        wal.close()
