"""The write-ahead log opened after a crash or damage: all records before the first bad one are kept."""

import errno
import os
import random
import re
import stat
from pathlib import Path
from typing import Any

import pytest

from conch.cron import wal_format
from conch.cron.wal import Record
from tests.support.wal import FIRST_TWO, LAST, SEGMENT, Opener, content, files, fresh, seqs, three_records


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
