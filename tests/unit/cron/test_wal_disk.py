"""The write-ahead log on a failing disk: what could not be made durable is an error, and nothing else is lost."""

import errno
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from conch.cron.wal import Record, Wal
from tests.support.wal import Opener, content, failing, files, fresh, seqs


def test_write_that_fails_half_way_is_rolled_back(
    opened: Opener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record is not there, now or after a restart; later ones are, under new numbers."""
    wal = opened()
    wal.append(b"good")
    real = os.pwrite
    failing(monkeypatch, "pwrite", 1, errno.ENOSPC, lambda fd, data, offset: real(fd, data[: len(data) // 2], offset))
    with pytest.raises(OSError, match="cannot append to the journal: No space left") as caught:
        wal.append(b"half" * 1000)
    assert caught.value.errno == errno.ENOSPC
    monkeypatch.undo()
    assert list(opened(fresh(tmp_path, content(tmp_path))).replay()) == [Record(1, b"good")]
    assert wal.append(b"later") == 3
    expected = [Record(1, b"good"), Record(3, b"later")]
    assert list(wal.replay()) == expected
    again = opened()
    assert (list(again.replay()), again.damage, again.next_seq) == (expected, "", 4)


def test_short_writes_are_continued(opened: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel may take a part at a time."""
    wal = opened()
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: real(fd, data[:7], offset))
    wal.append(b"0123456789" * 10)
    assert [record.data for record in opened().replay()] == [b"0123456789" * 10]
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: 0)
    with pytest.raises(OSError, match="nothing was written"):
        wal.append(b"x")


@pytest.mark.parametrize("rolled_back", [True, False], ids=["rolled back", "not even cut"])
def test_failed_sync_is_never_made_good_by_a_later_one(
    opened: Opener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rolled_back: bool
) -> None:
    """The record raises and never shows; the log goes on in a new segment, even if the old one cannot be cut."""
    wal = opened()
    wal.append(b"good")
    failing(monkeypatch, "fdatasync", 1)
    if not rolled_back:
        failing(monkeypatch, "ftruncate", 1)
    with pytest.raises(OSError, match="cannot append"):
        wal.append(b"unsynced")
    monkeypatch.undo()
    assert (wal.next_seq, wal.segments) == (3, 2)
    assert list(wal.replay()) == [Record(1, b"good")]
    restarted = opened(fresh(tmp_path, content(tmp_path)))
    assert (list(restarted.replay()), restarted.damage, restarted.next_seq) == ([Record(1, b"good")], "", 3)
    assert wal.append(b"later") == 3
    expected = [Record(1, b"good"), Record(3, b"later")]
    assert list(wal.replay()) == expected
    again = opened()
    assert (list(again.replay()), again.damage) == (expected, "")
    assert (b"unsynced" in files(tmp_path)[0].read_bytes()) == (not rolled_back)


def test_garbage_that_cannot_be_cut_is_no_damage_and_hides_nothing(
    opened: Opener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A half-written record stays in the old segment; no later one stands behind it."""
    wal = opened()
    wal.append(b"good")
    real = os.pwrite
    failing(monkeypatch, "pwrite", 1, errno.EIO, lambda fd, data, offset: real(fd, data[:30], offset))
    failing(monkeypatch, "ftruncate", 1)
    with pytest.raises(OSError, match="cannot append"):
        wal.append(b"half" * 1000)
    monkeypatch.undo()
    wal.append(b"later")
    assert b"half" in files(tmp_path)[0].read_bytes()
    again = opened()
    assert ([record.data for record in again.replay()], again.damage) == ([b"good", b"later"], "")


def test_disk_that_refuses_everything_for_a_while(
    opened: Opener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every append raises meanwhile, and no files pile up; then it works again."""
    wal = opened()
    wal.append(b"good")
    for name in ("fdatasync", "fsync", "ftruncate", "pwrite"):
        failing(monkeypatch, name, 10**6, errno.ENOSPC)
    for _ in range(10):
        with pytest.raises(OSError, match="cannot append"):
            wal.append(b"lost")
        assert seqs(wal) == [1]
    monkeypatch.undo()
    seq = wal.append(b"later")
    assert seq > 1
    assert len(files(tmp_path)) == wal.segments == 2
    again = opened()
    assert (seqs(again), again.damage, again.next_seq) == ([1, seq], "", seq + 1)


def test_empty_segments_of_failed_appends_do_not_pile_up(
    opened: Opener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A record that never fits leaves the one before it and an empty one, also over restarts."""
    wal = opened()
    wal.append(b"good")
    for failed in range(5):
        if failed > 2:
            wal = opened()
            assert (seqs(wal), wal.damage) == ([1], "")
        failing(monkeypatch, "fdatasync", 1)
        with pytest.raises(OSError, match="cannot append"):
            wal.append(b"bad")
        monkeypatch.undo()
        assert wal.next_seq == 3 + failed
        assert len(files(tmp_path)) == wal.segments == 2
    assert opened().next_seq == 7
    assert wal.append(b"later") == 7
    assert seqs(opened()) == [1, 7]


def test_truncation_survives_the_empty_segment_that_noted_it(opened: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mark goes from one segment to the next."""
    wal = opened()
    wal.append(b"x")
    wal.append(b"y")
    for _ in range(2):
        failing(monkeypatch, "fdatasync", 1)
        with pytest.raises(OSError, match="cannot append"):
            wal.append(b"bad")
        monkeypatch.undo()
        wal.truncate(1)
    assert seqs(opened()) == [2]


@pytest.mark.parametrize("name", ["open", "pwrite", "fdatasync", "fsync"])
def test_segment_that_cannot_be_made_fails_only_that_append(
    opened: Opener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """At rotation; all before and after it is there, even if the half-made file could not be removed."""
    for removable in (True, False):
        folder = fresh(tmp_path, {})
        wal = opened(folder, segment_bytes=120)
        wal.append(b"x" * 30)
        failing(monkeypatch, name, 1, errno.ENOSPC)
        if not removable:
            failing(monkeypatch, "unlink", 1)
        with pytest.raises(OSError, match="cannot append"):
            wal.append(b"y" * 30)
        monkeypatch.undo()
        assert list(opened(fresh(tmp_path, content(folder))).replay()) == [Record(1, b"x" * 30)]
        assert wal.append(b"small") == 2
        assert wal.append(b"z" * 30) == 3
        again = opened(folder)
        assert ([record.data for record in again.replay()], again.damage) == ([b"x" * 30, b"small", b"z" * 30], "")


def test_file_size_limit_of_the_process_is_an_error_and_can_be_lifted(tmp_path: Path) -> None:
    """EFBIG from the real kernel: half a record is written, then taken away."""
    script = """
import resource, sys
from conch.cron.wal import Wal
wal = Wal(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, resource.RLIM_INFINITY))
print(wal.append(b"a" * 3000))
for _ in range(3):
    try:
        print(wal.append(b"b" * 6000))
    except OSError as error:
        print(error.errno)
print(wal.append(b"c" * 3000))
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print(wal.append(b"d" * 6000))
print(*[(record.seq, record.data[:1].decode()) for record in wal.replay()])
"""
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True)
    big = str(errno.EFBIG)
    assert done.stdout.splitlines() == ["1", big, big, big, "5", "6", "(1, 'a') (5, 'c') (6, 'd')"]
    wal = Wal(str(tmp_path))
    assert (seqs(wal), wal.damage, wal.next_seq) == ([1, 5, 6], "", 7)
    wal.close()
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


def test_anything_but_an_os_error_leaves_nobody_waiting(opened: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as Ctrl-C in the middle of a sync: it goes through, and the log goes on without that record."""
    wal = opened()

    def interrupt(fd: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fdatasync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        wal.append(b"x")
    monkeypatch.undo()
    assert wal.append(b"y") == 2
    assert seqs(wal) == [2]
