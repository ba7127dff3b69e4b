"""The write-ahead log: what was promised is there after kills, full disks, failed syncs and damage, and only that."""

import errno
import os
import random
import re
import resource
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conch.cron import wal as module
from conch.cron import wal_files, wal_format
from conch.cron.wal import Record, Wal

LAST = b"the last record"


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


# In normal running


def test_records_come_back_in_order_with_numbers_from_one(opened: Opener) -> None:
    """Empty ones and large ones too, byte for byte."""
    wal = opened()
    values = [b"", b"x", bytes(range(256)), os.urandom(100_000), b"\0" * 5000, b""]
    assert [wal.append(value) for value in values] == [1, 2, 3, 4, 5, 6]
    assert list(wal.replay()) == [Record(i + 1, value) for i, value in enumerate(values)]
    assert wal.next_seq == 7


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


# Truncation


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


# Crashes and damage


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


def goes_on(opened: Opener, folder: Path, kept: list[Record]) -> None:
    """The next record gets a new number and both survive another restart, that finds no damage."""
    wal = opened(folder)
    seq = wal.append(b"next")
    assert seq > kept[-1].seq
    assert list(wal.replay()) == [*kept, Record(seq, b"next")]
    again = opened(folder)
    assert (list(again.replay()), again.damage, again.next_seq) == ([*kept, Record(seq, b"next")], "", seq + 1)


def test_last_record_cut_anywhere_is_dropped_silently(opened: Opener, tmp_path: Path) -> None:
    """A crash in the middle of a write is normal: those before are kept, and the log goes on."""
    data, start = three_records(opened, tmp_path / "original")
    for size in range(start, len(data)):
        folder = fresh(tmp_path, {SEGMENT: data[:size]})
        wal = opened(folder)
        assert (list(wal.replay()), wal.damage, files(folder, "*.damaged")) == (FIRST_TWO, "", []), size
        assert wal.next_seq == 3
        goes_on(opened, folder, FIRST_TWO)


def test_last_record_that_ends_in_zeros_before_its_head_is_dropped_silently(opened: Opener, tmp_path: Path) -> None:
    """A file that had grown when the machine crashed, but had no data yet."""
    data, start = three_records(opened, tmp_path / "original")
    for zeros in (1, 20, 5000):
        folder = fresh(tmp_path, {SEGMENT: data[:start] + bytes(zeros)})
        assert opened(folder).damage == ""
        goes_on(opened, folder, FIRST_TWO)


def test_long_record_cut_short_leaves_nothing_behind_a_shorter_one(opened: Opener, tmp_path: Path) -> None:
    """What is left of it is cut off before the next record is written over it."""
    wal = opened()
    wal.append(b"kept")
    wal.append(b"x" * 5000)
    path = files(tmp_path)[0]
    os.truncate(path, path.stat().st_size - 1)
    goes_on(opened, tmp_path, [Record(1, b"kept")])


def test_mark_beyond_what_is_left_hides_no_new_record(opened: Opener, tmp_path: Path) -> None:
    """Somebody cut the file: the mark still says that the numbers were used."""
    wal = opened()
    for _ in range(9):
        wal.append(b"x")
    wal.truncate(8)
    os.truncate(files(tmp_path)[0], 40 + 3 * 21)
    wal = opened()
    assert wal.append(b"new") == 9
    assert list(opened().replay()) == [Record(9, b"new")]


@pytest.mark.parametrize("change", [0x01, 0x80, 0xFF], ids=hex)
def test_flipped_bits_anywhere_in_the_last_record_drop_it_with_a_warning(
    opened: Opener, tmp_path: Path, change: int
) -> None:
    """It may have been promised, so this is damage; what was found is kept for people."""
    data, start = three_records(opened, tmp_path / "original")
    for at in range(start, len(data)):
        broken = bytearray(data)
        broken[at] ^= change
        folder = fresh(tmp_path, {SEGMENT: bytes(broken)})
        wal = opened(folder)
        assert list(wal.replay()) == FIRST_TWO, at
        assert wal.damage.startswith(f"{folder / SEGMENT} is damaged at byte {start}: ")
        assert wal.damage.endswith(f"; {len(data) - start} bytes were put aside as *.damaged")
        assert "\n" not in wal.damage
        assert [path.read_bytes() for path in files(folder, "*.damaged")] == [bytes(broken)]
        assert [stat.S_IMODE(path.stat().st_mode) for path in files(folder, "*.damaged")] == [0o600]
        assert wal.next_seq > 3
        goes_on(opened, folder, FIRST_TWO)


def test_garbage_in_place_of_the_last_record_never_becomes_a_record(opened: Opener, tmp_path: Path) -> None:
    """From every byte on to its end, and beyond it."""
    data, start = three_records(opened, tmp_path / "original")
    luck = random.Random(1)
    for at in range(start, len(data)):
        for more in (0, 1, 100):
            garbage = luck.randbytes(len(data) - at + more)
            folder = fresh(tmp_path, {SEGMENT: data[:at] + garbage})
            assert list(opened(folder).replay()) == FIRST_TWO, (at, more)
            goes_on(opened, folder, FIRST_TWO)


def test_length_beyond_what_is_sane_is_damage_not_a_record_cut_short(opened: Opener, tmp_path: Path) -> None:
    """Even with the right checksums: nobody wrote that."""
    data, start = three_records(opened, tmp_path / "original")
    head = wal_format.sealed(wal_format.HEAD.pack((16 << 20) + 1, 3, 0))
    wal = opened(fresh(tmp_path, {SEGMENT: data[:start] + head + b"x" * 100}))
    assert f"at byte {start}" in wal.damage
    assert list(wal.replay()) == FIRST_TWO


def test_flipped_bits_in_the_middle_never_look_like_a_cut(opened: Opener, tmp_path: Path) -> None:
    """Not even in a length: good records behind it would be lost without a word."""
    data, start = three_records(opened, tmp_path / "original")
    for at in range(40, start):
        broken = bytearray(data)
        broken[at] ^= 0x40
        wal = opened(fresh(tmp_path, {SEGMENT: bytes(broken)}))
        assert wal.damage, at
        assert list(wal.replay()) == FIRST_TWO[: 0 if at < 40 + 25 else 1]
        assert wal.append(b"new") > 3


def test_flipped_bits_in_a_header_put_the_segment_aside(opened: Opener, tmp_path: Path) -> None:
    """It could be anybody's file."""
    data, _ = three_records(opened, tmp_path / "original")
    for at in range(28):
        broken = bytearray(data)
        broken[at] ^= 2
        folder = fresh(tmp_path, {SEGMENT: bytes(broken)})
        wal = opened(folder)
        assert (seqs(wal), len(files(folder, "*.damaged"))) == ([], 1)
        assert "not a segment" in wal.damage
        assert wal.append(b"new") > 3


@pytest.mark.parametrize("foreign", [b"#!/bin/sh\n", b"x" * 10_000, b"conchwj2" + b"\0" * 100])
def test_foreign_file_under_our_name_is_damage_not_data(opened: Opener, tmp_path: Path, foreign: bytes) -> None:
    """Kept for people; a newest one shorter than a header is what a crash leaves."""
    (tmp_path / SEGMENT).write_bytes(foreign)
    wal = opened()
    assert seqs(wal) == []
    assert bool(wal.damage) == (len(foreign) >= 40)
    assert [path.read_bytes() for path in files(tmp_path, "*.damaged")] == ([foreign] if len(foreign) >= 40 else [])
    goes_on(opened, tmp_path, [Record(wal.append(b"x"), b"x")])


def test_segment_renamed_to_another_number_is_damage(opened: Opener, tmp_path: Path) -> None:
    """The header carries the number as well."""
    data, _ = three_records(opened, tmp_path / "original")
    wal = opened(fresh(tmp_path, {f"{9:020}.wal": data}))
    assert seqs(wal) == []
    assert "not a segment" in wal.damage
    assert wal.next_seq > 11


def test_segment_of_another_version_is_put_aside(opened: Opener, tmp_path: Path) -> None:
    """Though its checksums are right."""
    data, _ = three_records(opened, tmp_path / "original")
    other = wal_format.sealed(wal_format.START.pack(b"conchwj2", 1, 0)) + data[28:]
    wal = opened(fresh(tmp_path, {SEGMENT: other}))
    assert seqs(wal) == []
    assert "not a segment" in wal.damage


def test_crash_while_a_segment_is_made_is_no_damage(opened: Opener, tmp_path: Path) -> None:
    """At any size of its header, or with only zeros in it; its number is not used for an older record."""
    old, _ = three_records(opened, tmp_path / "original")
    wal = opened(tmp_path / "original", segment_bytes=1)
    wal.append(b"x")
    new = files(tmp_path / "original")[1].read_bytes()[:40]
    for header in [*(new[:size] for size in range(41)), bytes(20), bytes(40), bytes(4096)]:
        folder = fresh(tmp_path, {SEGMENT: old, f"{4:020}.wal": header})
        wal = opened(folder)
        assert (seqs(wal), wal.damage, wal.next_seq) == ([1, 2, 3], "", 4)
        goes_on(opened, folder, [*FIRST_TWO, Record(3, LAST)])
        alone = fresh(tmp_path, {f"{4:020}.wal": header})
        assert (opened(alone).append(b"x"), opened(alone).damage) == (4, "")


def test_damage_in_an_earlier_segment_keeps_all_before_it_and_puts_the_rest_aside(
    opened: Opener, tmp_path: Path
) -> None:
    """Of the segment and of all later ones; new numbers are higher than any that was ever used."""
    original = tmp_path / "original"
    original.mkdir()
    wal = opened(original, segment_bytes=150)
    for i in range(20):
        wal.append(b"%d" % i * 3)
    found = content(original)
    names = sorted(found)
    assert len(names) == 5
    victim = names[2]
    for at in range(len(found[victim])):
        if 28 <= at < 40:
            continue  # the mark
        broken = bytearray(found[victim])
        broken[at] ^= 8
        folder = fresh(tmp_path, {**found, victim: bytes(broken)})
        wal = opened(folder, segment_bytes=150)
        kept = seqs(wal)
        assert kept == list(range(1, len(kept) + 1))
        assert int(Path(victim).stem) - 1 <= len(kept) < int(Path(names[3]).stem) - 1
        assert victim in wal.damage
        aside = files(folder, "*.damaged")
        assert [path.read_bytes() for path in aside] == [bytes(broken), *(found[name] for name in names[3:])]
        total = int(re.findall(r"(\d+) bytes were put aside", wal.damage)[0])
        offset = int(re.findall(r"at byte (\d+)", wal.damage)[0])
        assert total == sum(path.stat().st_size for path in aside) - offset
        assert wal.next_seq > 20
        # Still so when nothing was appended, and when people have taken the damaged files away.
        assert opened(folder).damage == ""
        for path in aside:
            path.unlink()
        assert opened(folder).next_seq > 20
        goes_on(opened, folder, list(wal.replay()))


def test_older_segment_cut_short_or_gone_is_damage(opened: Opener, tmp_path: Path) -> None:
    """Only the newest one may end in the middle; records behind a gap are put aside."""
    original = tmp_path / "original"
    original.mkdir()
    wal = opened(original, segment_bytes=150)
    for i in range(20):
        wal.append(b"%d" % i * 3)
    found = content(original)
    names = sorted(found)
    victim = names[2]
    before = int(Path(victim).stem) - 1
    for size in (None, 0, 39, *range(40, len(found[victim]), 7)):
        folder = fresh(tmp_path, {k: v[:size] if k == victim else v for k, v in found.items() if size or k != victim})
        wal = opened(folder)
        kept = seqs(wal)
        assert kept == list(range(1, len(kept) + 1))
        assert before <= len(kept) < int(Path(names[3]).stem) - 1
        assert wal.damage
        assert wal.append(b"x") > 20
        assert opened(folder).damage == ""


def test_damage_in_what_is_truncated_does_not_matter(opened: Opener, tmp_path: Path) -> None:
    """A segment of which nothing is needed is removed unread."""
    wal = opened(segment_bytes=150)
    for _ in range(20):
        wal.append(b"x")
    found = content(tmp_path)
    wal.truncate(18)
    found[files(tmp_path)[-1].name] = files(tmp_path)[-1].read_bytes()  # with the mark
    found[min(found)] = b"garbage" * 20
    folder = fresh(tmp_path, found)
    wal = opened(folder)
    assert (wal.damage, seqs(wal)) == ("", [19, 20])
    assert wal.segments == len(files(folder)) == 1


def test_damage_that_comes_while_it_runs_is_an_error_of_replay(opened: Opener, tmp_path: Path) -> None:
    """Never an altered record."""
    data, _ = three_records(opened, tmp_path / "original")
    path = tmp_path / "original" / SEGMENT
    wal = opened(tmp_path / "original")
    path.write_bytes(data[:-1] + b"X")
    replay = wal.replay()
    assert [next(replay), next(replay)] == FIRST_TWO
    with pytest.raises(OSError, match="cannot read record 3: wrong checksum"):
        next(replay)
    path.unlink()
    with pytest.raises(FileNotFoundError):
        next(wal.replay())


def test_damage_twice_in_one_segment_keeps_both_files(opened: Opener, tmp_path: Path) -> None:
    """The second damage, in what was kept at the first, does not overwrite what was put aside."""
    data, _ = three_records(opened, tmp_path / "original")
    folder = fresh(tmp_path, {SEGMENT: data[:-1] + b"X"})
    assert opened(folder).damage
    kept = (folder / SEGMENT).read_bytes()
    (folder / SEGMENT).write_bytes(kept[:-1] + b"X")
    wal = opened(folder)
    assert wal.damage
    assert seqs(wal) == [1]
    assert len(files(folder, f"{SEGMENT}*.damaged")) == 2


@pytest.mark.parametrize("name", ["fsync", "rename", "open", "pwrite", "fdatasync"])
def test_crash_in_the_middle_of_putting_aside_loses_nothing(
    opened: Opener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Opening fails at any step; the next opening has the same records, and numbers that are new."""
    original = tmp_path / "original"
    original.mkdir()
    wal = opened(original, segment_bytes=150)
    for i in range(20):
        wal.append(b"%d" % i * 3)
    found = content(original)
    victim = sorted(found)[2]
    found[victim] = found[victim][:-1] + b"X"
    expected = seqs(opened(fresh(tmp_path, found)))
    for step in range(20):
        folder = fresh(tmp_path, found)
        real = getattr(os, name)
        left = [step]

        def crash(*args: Any, real: Any = real, left: list[int] = left, **options: Any) -> Any:
            left[0] -= 1
            if left[0] == -1:
                raise OSError(errno.EIO, "crash")
            return real(*args, **options)

        monkeypatch.setattr(os, name, crash)
        try:
            opened(folder)
        except OSError:
            monkeypatch.undo()
        monkeypatch.undo()
        wal = opened(folder)
        assert seqs(wal) == expected
        assert wal.next_seq > 20
        assert victim in {path.name[:24] for path in files(folder, "*.damaged")}
        if left[0] >= 0:
            break
    else:
        pytest.fail("it was never done")


# Failing disks


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


# Durability


class Disk:
    """What a machine that loses power would find: of a file what was last synced, of a folder its names then."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.files: dict[int, bytes] = {}
        self.names: dict[str, int] = {}
        self.failures = 0
        for name in ("fsync", "fdatasync"):
            monkeypatch.setattr(os, name, self.sync)

    def sync(self, fd: int) -> None:
        if self.failures > 0:
            self.failures -= 1
            raise OSError(errno.EIO, "no sync")
        path = Path(os.readlink(f"/proc/self/fd/{fd}"))
        if path == self.folder:
            self.names = {child.name: child.stat().st_ino for child in path.iterdir()}
        elif path.parent == self.folder:
            self.files[os.fstat(fd).st_ino] = path.read_bytes()

    def after_power_loss(self, parent: Path) -> Path:
        return fresh(parent, {name: self.files.get(inode, b"") for name, inode in self.names.items()})


def test_power_loss_after_any_append_loses_nothing_that_was_promised(
    opened: Opener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files and folder are synced before append returns, over rotations, truncations, failures and restarts."""
    folder = fresh(tmp_path, {})
    disk = Disk(folder, monkeypatch)
    wal = opened(folder, segment_bytes=200)
    promised: dict[int, bytes] = {}
    truncated = 0
    for i in range(60):
        if i % 7 == 3:
            disk.failures = i % 3 + 1
        data = b"%d" % i * 10
        try:
            promised[wal.append(data)] = data
        except OSError:
            pass
        disk.failures = 0
        if i % 10 == 5:
            truncated = max(promised) - 3
            wal.truncate(truncated)
        if i % 20 == 11:
            wal = opened(folder, segment_bytes=200)
        restarted = opened(disk.after_power_loss(tmp_path))
        found = {record.seq: record.data for record in restarted.replay()}
        assert restarted.damage == ""
        assert {k: v for k, v in promised.items() if k > truncated} == {k: v for k, v in found.items() if k > truncated}
        assert found.items() <= promised.items()
        assert restarted.next_seq > max(promised)


def test_clean_close_makes_the_truncation_durable(
    opened: Opener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that not even a later power loss shows the records again."""
    folder = fresh(tmp_path, {})
    disk = Disk(folder, monkeypatch)
    wal = opened(folder)
    for _ in range(3):
        wal.append(b"x")
    wal.truncate(2)
    assert seqs(opened(disk.after_power_loss(tmp_path))) == [1, 2, 3]
    wal.close()
    assert seqs(opened(disk.after_power_loss(tmp_path))) == [3]


def test_what_a_killed_process_had_not_synced_is_durable_before_it_is_shown(
    opened: Opener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is in the kernel's memory, so replay shows it: then it may not go away any more."""
    data, _ = three_records(opened, tmp_path / "original")
    folder = fresh(tmp_path, {SEGMENT: data})
    disk = Disk(folder, monkeypatch)
    assert seqs(opened(folder)) == [1, 2, 3]
    assert seqs(opened(disk.after_power_loss(tmp_path))) == [1, 2, 3]


def test_power_loss_after_damage_was_put_aside_loses_nothing(
    opened: Opener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither what is kept nor what people may want to see."""
    data, _ = three_records(opened, tmp_path / "original")
    folder = fresh(tmp_path, {SEGMENT: data[:-1] + b"X"})
    disk = Disk(folder, monkeypatch)
    wal = opened(folder)
    found = disk.after_power_loss(tmp_path)
    assert [path.read_bytes() for path in files(found, "*.damaged")] == [data[:-1] + b"X"]
    restarted = opened(found)
    assert (list(restarted.replay()), restarted.damage) == (FIRST_TWO, "")
    assert restarted.next_seq == wal.next_seq > 3


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_killed_process_leaves_all_that_it_had_promised(tmp_path: Path, seed: int) -> None:
    """SIGKILL at a random moment, several times on the same log; every number it printed is in the replay."""
    luck = random.Random(seed)
    script = """
import sys, threading
from conch.cron.wal import Wal
wal = Wal(sys.argv[1], segment_bytes=2000)
assert not wal.damage, wal.damage
def work():
    while True:
        sys.stdout.write(f"{wal.append(b'x' * 200)}\\n")
        sys.stdout.flush()
for _ in range(3):
    threading.Thread(target=work).start()
"""
    printed: list[int] = []
    for _ in range(3):
        with subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            lines = [child.stdout.readline() for _ in range(luck.randrange(1, 150))]
            child.send_signal(signal.SIGKILL)
            lines += child.stdout.readlines()
        assert child.returncode == -signal.SIGKILL
        printed += [int(line) for line in lines if line.endswith(b"\n")]
        wal = Wal(str(tmp_path))
        found = seqs(wal)
        wal.close()
        assert wal.damage == ""
        assert set(printed) <= set(found)
        assert len(set(printed)) == len(printed)
        assert found == sorted(set(found))
        assert wal.next_seq > max(found)


# Many threads


def test_threads_share_syncs_and_each_gets_its_own_number(opened: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight threads with 50 appends each: all are there, in fewer syncs than records."""
    wal = opened(segment_bytes=3000)
    syncs: list[int] = []
    real = os.fdatasync

    def counted(fd: int) -> None:
        syncs.append(fd)
        real(fd)

    monkeypatch.setattr(os, "fdatasync", counted)
    got: list[tuple[int, bytes]] = []

    def work(name: int) -> None:
        for i in range(50):
            data = b"%d-%d" % (name, i)
            got.append((wal.append(data), data))

    threads = [threading.Thread(target=work, args=(name,)) for name in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(seq for seq, _ in got) == list(range(1, 401))
    assert [Record(seq, data) for seq, data in sorted(got)] == list(wal.replay()) == list(opened().replay())
    assert 0 < len(syncs) < 400


@pytest.mark.parametrize("fails", [False, True], ids=["good sync", "failed sync"])
def test_all_who_came_during_a_sync_share_the_next_one(
    opened: Opener, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    """One more for all seven; if it fails, it fails for all of them, and for none before."""
    wal = opened()
    entered, go_on = threading.Event(), threading.Event()
    syncs: list[int] = []
    real = os.fdatasync

    def gated(fd: int) -> None:
        syncs.append(fd)
        if len(syncs) == 1:
            entered.set()
            go_on.wait()
        elif len(syncs) == 2 and fails:
            raise OSError(errno.EIO, "no sync")
        real(fd)

    monkeypatch.setattr(os, "fdatasync", gated)
    outcomes: list[int | None] = []

    def work() -> None:
        try:
            outcomes.append(wal.append(b"x"))
        except OSError:
            outcomes.append(None)

    threads = [threading.Thread(target=work) for _ in range(8)]
    threads[0].start()
    entered.wait()
    for thread in threads[1:]:
        thread.start()
    while len(wal._queue) < 7:
        threading.Event().wait(0.001)
    # Nobody shows or removes what is not durable yet, and both can be asked for meanwhile.
    wal.truncate(100)
    assert seqs(wal) == []
    go_on.set()
    for thread in threads:
        thread.join()
    kept = [1] if fails else list(range(1, 9))
    assert sorted(seq for seq in outcomes if seq is not None) == kept
    assert len(outcomes) == 8
    assert len(syncs) == (3 if fails else 2)  # the third is of the new segment
    assert seqs(wal) == seqs(opened()) == kept
    assert wal.append(b"later") == 9


def test_close_waits_for_appends_under_way(opened: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    """They end as they would have."""
    wal = opened()
    entered, go_on = threading.Event(), threading.Event()
    real = os.fdatasync

    def gated(fd: int) -> None:
        entered.set()
        go_on.wait()
        real(fd)

    monkeypatch.setattr(os, "fdatasync", gated)
    got: list[int] = []
    threads = [threading.Thread(target=lambda: got.append(wal.append(b"x"))) for _ in range(3)]
    threads[0].start()
    entered.wait()
    for thread in threads[1:]:
        thread.start()
    while len(wal._queue) < 2:
        threading.Event().wait(0.001)
    closer = threading.Thread(target=wal.close)
    closer.start()
    go_on.set()
    for thread in [*threads, closer]:
        thread.join()
    assert sorted(got) == [1, 2, 3]
    assert seqs(opened()) == [1, 2, 3]


# All together


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["append"] * 4 + ["truncate", "restart", "kill"]),
        st.integers(0, 120),
        st.sampled_from(["", "", "", "pwrite", "half", "fdatasync", "ftruncate", "roll", "unlink"]),
    ),
    max_size=30,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(STEPS)
def test_any_life_of_a_log(tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int, str]]) -> None:
    """Appends on a failing disk, truncations, restarts and kills: always exactly what was promised and not removed."""
    folder = tmp_path_factory.mktemp("life")
    wals = [Wal(str(folder), segment_bytes=150)]
    promised: dict[int, bytes] = {}
    highest = removed = 0
    real = os.pwrite
    for step, amount, fault in steps:
        wal = wals[-1]
        if step == "append":
            with pytest.MonkeyPatch.context() as patch:
                if fault in ("fdatasync", "ftruncate"):
                    failing(patch, "fdatasync", 1)
                if fault in ("half", "ftruncate"):
                    half = amount // 2
                    failing(patch, "pwrite", 1, errno.ENOSPC, lambda fd, data, at, n=half: real(fd, data[:n], at))
                if fault == "ftruncate":
                    failing(patch, "ftruncate", 1)
                if fault in ("pwrite", "roll"):
                    failing(patch, "pwrite", 2 if fault == "roll" else 1)
                if fault == "unlink":
                    failing(patch, "fdatasync", 2)
                    failing(patch, "unlink", 5)
                expected = wal.next_seq
                data = bytes([amount]) * amount
                try:
                    seq = wal.append(data)
                except OSError:
                    assert fault
                else:
                    assert seq >= expected
                    assert fault or seq == expected
                    assert seq > highest
                    promised[seq] = data
                    highest = seq
        elif step == "truncate":
            wal.truncate(amount // 4)
            removed = max(removed, min(amount // 4, highest))
        else:
            if step == "restart":
                wal.close()
            wals.append(Wal(str(folder), segment_bytes=150))
            wal = wals[-1]
        assert {r.seq: r.data for r in wal.replay()} == {k: v for k, v in promised.items() if k > removed}
        assert wal.damage == ""
        assert wal.next_seq > highest
    for wal in wals:
        wal.close()
