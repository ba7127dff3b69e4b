"""Parts of the scheduler on a clock of their own, with ports of ours in place of the other parts."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from conch.core import clock
from conch.cron.wal import Wal
from tests.support.virtual_loop import Log, VirtualLoop


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> Iterator[VirtualLoop]:
    """The loop, whose time is CLOCK_BOOTTIME for all of conch."""
    loop = VirtualLoop()
    monkeypatch.setattr(clock, "now", loop.time)
    yield loop
    if loop.is_closed():
        return
    for task in asyncio.all_tasks(loop):
        task.cancel()
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()


@pytest.fixture
def log() -> Log:
    """What is logged."""
    return Log()


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
