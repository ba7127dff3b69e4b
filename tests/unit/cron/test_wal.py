"""The write-ahead log in normal running: numbers, segments, replay and truncation."""

import os
import stat
from pathlib import Path
from typing import Any

import pytest

from conch.cron import wal as module
from conch.cron import wal_files
from conch.cron.wal import Record, Wal
from tests.support.wal import Opener, content, failing, files, fresh, seqs


def test_records_come_back_in_order_with_numbers_from_one(opened: Opener) -> None:
    """Empty ones and large ones too, byte for byte."""
    wal = opened()
    values = [b"", b"x", bytes(range(256)), os.urandom(100_000), b"\0" * 5000, b""]
    assert [wal.append(value) for value in values] == [1, 2, 3, 4, 5, 6]
    assert list(wal.replay()) == [Record(i + 1, value) for i, value in enumerate(values)]
    assert wal.next_seq == 7


def test_records_of_one_append_have_successive_numbers_and_one_sync(
    opened: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    wal = opened()
    syncs: list[int] = []
    monkeypatch.setattr(os, "fdatasync", syncs.append)
    assert wal.append(b"one") == 1
    assert wal.append(b"two", b"", b"three") == 2
    assert wal.append(b"four") == 5
    assert len(syncs) == 3
    assert [record.data for record in wal.replay()] == [b"one", b"two", b"", b"three", b"four"]


def test_empty_log_has_no_records_and_one_segment(opened: Opener, tmp_path: Path) -> None:
    """That only the user may read."""
    wal = opened()
    assert seqs(wal) == []
    assert (wal.next_seq, wal.segments, wal.oldest(), wal.damage) == (1, 1, 1, "")
    assert [stat.S_IMODE(path.stat().st_mode) for path in files(tmp_path)] == [0o600]


@pytest.mark.parametrize("clean", [True, False], ids=["closed", "killed"])
@pytest.mark.parametrize("segment_bytes", [4 << 20, 100], ids=["one segment", "many segments"])
def test_restart_goes_on_where_the_log_ended(opened: Opener, clean: bool, segment_bytes: int) -> None:
    """Whether closed or not, all durable records are there and the numbers go on without a gap."""
    expected: list[Record] = []
    for round_number in range(4):
        wal = opened(segment_bytes=segment_bytes)
        assert wal.damage == ""
        assert list(wal.replay()) == expected
        for i in range(round_number * 3):
            data = b"%d" % i * 20
            expected.append(Record(wal.append(data), data))
        if clean:
            wal.close()
    assert [record.seq for record in expected] == list(range(1, 19))
    assert list(opened().replay()) == expected


def test_replay_after_a_number_shows_only_later_ones(opened: Opener) -> None:
    """Over several segments; the number itself is left out."""
    wal = opened(segment_bytes=150)
    for i in range(20):
        wal.append(b"%d" % i)
    assert wal.segments > 3
    for after in range(22):
        assert seqs(wal, after) == list(range(after + 1, 21))


def test_segments_rotate_at_their_size_and_replay_spans_them(opened: Opener, tmp_path: Path) -> None:
    """No segment is larger than asked, except for a single record that is; each is named for its first number."""
    wal = opened(segment_bytes=1000)
    sizes = [10] * 100 + [5000, 5000] + [300] * 10
    for size in sizes:
        wal.append(b"x" * size)
    assert [len(record.data) for record in wal.replay()] == sizes
    assert wal.segments == len(files(tmp_path)) > 5
    large = [path for path in files(tmp_path) if path.stat().st_size > 1000]
    assert [int(path.stem) for path in large] == [101, 102]
    assert [int(path.stem) for path in files(tmp_path)][:2] == [1, 1 + (1000 - 40) // 30]


def test_too_long_a_record_is_refused(opened: Opener) -> None:
    """A record of 16 MiB is taken, a longer one is not, and uses up no number."""
    wal = opened()
    with pytest.raises(ValueError, match="too long"):
        wal.append(b"x" * ((16 << 20) + 1))
    assert wal.append(b"x" * (16 << 20)) == 1
    assert [len(record.data) for record in opened().replay()] == [16 << 20]


def test_closed_log_takes_nothing(opened: Opener) -> None:
    """An append raises OSError; what is there can be read, and closing twice is fine."""
    wal = opened()
    wal.append(b"x")
    wal.close()
    wal.close()
    wal.truncate(1)
    with pytest.raises(OSError, match="it is closed"):
        wal.append(b"y")
    assert seqs(wal) == [1]


def test_folder_that_is_not_there_is_an_os_error(tmp_path: Path) -> None:
    """As is one that cannot be read."""
    with pytest.raises(FileNotFoundError):
        Wal(str(tmp_path / "none"))
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        Wal(str(tmp_path / "file"))


def test_opening_that_fails_leaves_no_file_open(
    opened: Opener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does an append that does."""
    wal = opened(segment_bytes=60)
    wal.append(b"x" * 30)
    before = len(os.listdir("/proc/self/fd"))
    (tmp_path / "new").mkdir()
    for name, folder in (("fsync", tmp_path), ("ftruncate", tmp_path), ("fdatasync", tmp_path / "new")):
        failing(monkeypatch, name, 1)
        with pytest.raises(OSError, match="Input/output"):
            Wal(str(folder))
        monkeypatch.undo()
    failing(monkeypatch, "fdatasync", 1)
    with pytest.raises(OSError, match="Input/output"):
        wal.append(b"x" * 30)
    assert len(os.listdir("/proc/self/fd")) == before


def test_other_files_in_the_folder_are_let_be(opened: Opener, tmp_path: Path) -> None:
    """Names that are not ours are neither data nor damage."""
    for name in ("lock", "1.wal", "notes.wal", "x.damaged"):
        (tmp_path / name).write_bytes(b"theirs")
    opened().append(b"x")
    wal = opened()
    assert (wal.damage, seqs(wal)) == ("", [1])
    assert (tmp_path / "notes.wal").read_bytes() == b"theirs"


@pytest.mark.parametrize("segment_bytes", [4 << 20, 150], ids=["one segment", "many segments"])
def test_truncation_removes_up_to_and_with_the_number(opened: Opener, segment_bytes: int) -> None:
    """The next one stays; in this process, after a kill and after closing."""
    wal = opened(segment_bytes=segment_bytes)
    for i in range(20):
        wal.append(b"%d" % i)
    for upto in (0, 1, 2, 7, 7, 3, 19):
        wal.truncate(upto)
        kept = list(range(max(upto, 7 if upto == 3 else 0) + 1, 21))
        assert seqs(wal) == kept
        assert seqs(opened(segment_bytes=segment_bytes)) == kept
        wal = opened(segment_bytes=segment_bytes)
    wal.truncate(20)
    wal.close()
    assert seqs(opened()) == []


def test_truncation_deletes_whole_segments_but_the_newest(opened: Opener, tmp_path: Path) -> None:
    """And none of which a record is still needed."""
    wal = opened(segment_bytes=150)
    for i in range(20):
        wal.append(b"%d" % i)
    firsts = [int(path.stem) for path in files(tmp_path)]
    for upto in range(1, 21):
        wal.truncate(upto)
        # A segment goes when the next one's first record is the first that is needed, or before it.
        kept = [first for first, after in zip(firsts, [*firsts[1:], 99], strict=True) if after > upto + 1]
        assert [int(path.stem) for path in files(tmp_path)] == kept
        assert (wal.segments, wal.oldest()) == (len(kept), kept[0])


def test_truncation_of_records_still_to_come_does_not_swallow_them(opened: Opener) -> None:
    """They are not there yet, so they are not removed."""
    wal = opened()
    wal.append(b"x")
    wal.truncate(1000)
    assert wal.append(b"y") == 2
    assert seqs(wal) == [2]
    assert seqs(opened()) == [2]


def test_truncation_syncs_no_file(opened: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    """So it is cheap to call after every delivery; only the folder is synced when a segment goes."""
    wal = opened(segment_bytes=150)
    for i in range(20):
        wal.append(b"%d" % i)
    before = wal.segments
    calls: list[str] = []
    for name in ("fdatasync", "fsync", "unlink"):
        real = getattr(os, name)

        def call(*args: Any, name: str = name, real: Any = real) -> None:
            calls.append(name)
            real(*args)

        monkeypatch.setattr(os, name, call)
    for upto in (1, 2, 3):
        wal.truncate(upto)
    assert calls == []
    wal.truncate(20)
    # One by one, so that a crash leaves no gap that would look like damage.
    assert calls == ["unlink", "fsync"] * (before - 1)
    assert wal.segments == 1 < before
    monkeypatch.undo()


def test_segment_that_cannot_be_deleted_is_deleted_the_next_time(
    opened: Opener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Truncation itself succeeds: nothing of it shows."""
    wal = opened(segment_bytes=100)
    for _ in range(4):
        wal.append(b"x" * 40)
    failing(monkeypatch, "unlink", 1)
    wal.truncate(3)
    assert (seqs(wal), wal.segments) == ([4], 4)
    assert seqs(opened(fresh(tmp_path, content(tmp_path)))) == [4]
    wal.truncate(4)
    assert wal.segments == len(files(tmp_path)) == 1


def test_numbers_are_not_used_again_after_all_was_truncated(opened: Opener) -> None:
    """Not even over many restarts without a record."""
    wal = opened(segment_bytes=100)
    for expected in range(1, 30):
        assert wal.append(b"x" * 30) == expected
        wal.truncate(expected)
        wal.close()
        opened().close()
        wal = opened(segment_bytes=100)
        assert (seqs(wal), wal.next_seq, wal.damage) == ([], expected + 1, "")
    assert wal.segments == 1


def test_truncation_while_others_replay_and_append(opened: Opener) -> None:
    """A replay shows what was there, without what goes meanwhile, and raises nothing."""
    wal = opened(segment_bytes=200)
    for _ in range(50):
        wal.append(b"x" * 30)
    replay = wal.replay()
    got = [next(replay).seq]
    wal.truncate(25)
    wal.append(b"new")
    got += [record.seq for record in replay]
    assert got == [1, *range(26, 51)]


def test_segment_deleted_while_replay_is_about_to_read_it(opened: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    """Truncated by another thread just then: its records are gone, and that is no error."""
    wal = opened(segment_bytes=100)
    for _ in range(4):
        wal.append(b"x" * 40)
    real = wal_files.load

    def load(path: Path, size: int = -1) -> bytes:
        wal.truncate(2)
        return real(path, size)

    monkeypatch.setattr(module, "load", load)
    assert seqs(wal) == [3, 4]


def test_mark_that_cannot_be_written_or_read_shows_records_again_and_no_damage(
    opened: Opener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Records seen twice do no harm; in this process they stay away all the same."""
    wal = opened()
    for _ in range(3):
        wal.append(b"x")
    failing(monkeypatch, "pwrite", 1)
    wal.truncate(1)
    monkeypatch.undo()
    assert seqs(wal) == [2, 3]
    folder = fresh(tmp_path, content(tmp_path))
    assert seqs(opened(folder)) == [1, 2, 3]
    closed = opened(folder)
    failing(monkeypatch, "pwrite", 1)
    closed.truncate(1)
    monkeypatch.undo()
    closed.close()
    assert seqs(opened(folder)) == [2, 3]
    wal.truncate(2)
    data = bytearray(files(tmp_path)[0].read_bytes())
    for at in range(28, 40):
        broken = data[:]
        broken[at] ^= 4
        again = opened(fresh(tmp_path, {"0" * 19 + "1.wal": bytes(broken)}))
        assert (seqs(again), again.damage, again.next_seq) == ([1, 2, 3], "", 4)
