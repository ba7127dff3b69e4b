"""What a host remembers of its runs across crashes."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from conch.cron.run_log import Entry, RunLog, ended
from conch.cron.values import Result
from conch.cron.wal import Wal

OK = Result("a", "ok", 0, 1.5, 0.25, 1)


class Told:
    """The lines of the log."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def __call__(self, level: str, event: str, **text: object) -> None:
        self.events.append(event)


def entry(run: str, tick: int = 1_700_000_000) -> Entry:
    return Entry(run, "j", tick, 5, 6, 7)


def test_runs_are_remembered_until_their_results_are_delivered(tmp_path: Path) -> None:
    """Across a crash: nothing is closed before the next log opens."""
    told = Told()
    first = RunLog(str(tmp_path), told)
    for run in ("a", "b", "c"):
        first.write(entry(run))
    first.write(ended(entry("b"), OK))
    first.write(ended(entry("c"), OK))
    first.delivered("c")
    assert first.backlog == 1
    second = RunLog(str(tmp_path), told)
    found = {one.run: one for one in second.entries}
    assert found["a"] == entry("a")
    assert found["b"].result == OK
    for run in found:  # one that stands behind an open one may be shown again
        second.delivered(run)
    assert second.entries == []
    assert RunLog(str(tmp_path), told).entries == []
    assert told.events == []


def test_long_run_does_not_keep_the_journal_of_all_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is still open is written anew, and the old segments go."""
    monkeypatch.setattr("conch.cron.run_log.Wal", lambda folder: Wal(folder, segment_bytes=2000))
    log = RunLog(str(tmp_path), Told())
    log.write(entry("long"))
    for number in range(300):
        log.write(entry(f"r{number}"))
        log.write(ended(entry(f"r{number}"), OK))
        log.delivered(f"r{number}")
        assert len(list(tmp_path.glob("*.wal"))) <= 6
    assert [one.run for one in RunLog(str(tmp_path), Told()).entries if one.result is None] == ["long"]


def test_disk_that_takes_nothing_is_said_once_and_the_runs_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From memory; and it is said when the disk works again."""
    told = Told()
    log = RunLog(str(tmp_path), told)
    log.write(entry("a"))
    real = os.pwrite

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    monkeypatch.setattr(os, "write", full)
    log.write(entry("b"))
    log.write(ended(entry("b"), OK))
    assert {one.run for one in log.entries} == {"a", "b"}
    assert told.events == ["journal-failed"]
    monkeypatch.undo()
    assert os.pwrite is real
    log.write(ended(entry("a"), OK))
    assert told.events == ["journal-failed", "journal-works"]
    log.delivered("b")
    log.delivered("a")
    assert log.backlog == 0


def test_journal_of_something_else_is_said_and_skipped(tmp_path: Path) -> None:
    """Records that are no runs do not stop a daemon."""
    wal = Wal(str(tmp_path))
    for data in (b"", b"{", b"[]", b'{"run": 1}', b"\xff", replace(entry("x")).encode()):
        wal.append(data)
    wal.close()
    told = Told()
    assert [one.run for one in RunLog(str(tmp_path), told).entries] == ["x"]
    assert told.events == ["journal-damaged"] * 5
