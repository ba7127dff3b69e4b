"""The write-ahead log, opened on damaged and foreign files."""

import struct
import tempfile
import zlib
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from conch.cron.wal import Wal
from tests.support.fuzz import torn


def filled(folder: Path, records: list[bytes]) -> dict[str, bytes]:
    """Return the files of a log with these records."""
    journal = Wal(str(folder), segment_bytes=120)
    for record in records:
        journal.append(record)
    journal.close()
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def opened_with(files: dict[str, bytes]) -> tuple[list[bytes], str]:
    """Open a log on these files; return its records and damage. One more record must survive a restart."""
    with tempfile.TemporaryDirectory() as name:
        for file, data in files.items():
            (Path(name) / file).write_bytes(data)
        journal = Wal(name, segment_bytes=120)
        found = list(journal.replay())
        seqs = [record.seq for record in found]
        assert seqs == sorted(set(seqs))
        seq = journal.append(b"one more")
        assert seq > max(seqs, default=0)
        journal.close()
        again = Wal(name, segment_bytes=120)
        assert list(again.replay()) == [*found, type(found[0])(seq, b"one more")] if found else list(again.replay())
        again.close()
        return [record.data for record in found], journal.damage


RECORDS = st.lists(st.binary(max_size=50), min_size=1, max_size=6)


@settings(max_examples=60)
@given(st.dictionaries(st.integers(1, 10**19).map("{:020}.wal".format), st.binary(max_size=200), max_size=3))
def test_journal_of_any_files(files: dict[str, bytes]) -> None:
    """The log opens, finds no record, sets unreadable files aside and accepts new records."""
    found, _ = opened_with(files)
    assert found == []


@settings(max_examples=60)
@given(RECORDS, st.data())
def test_journal_with_damage(records: list[bytes], data: st.DataObject) -> None:
    """Wherever bytes were changed, removed or inserted, replay returns a prefix of the records."""
    with tempfile.TemporaryDirectory() as name:
        files = filled(Path(name), records)
    victim = data.draw(st.sampled_from(sorted(files)))
    files[victim] = data.draw(torn(files[victim]))
    found, _ = opened_with(files)
    assert found == records[: len(found)]


@settings(max_examples=60)
@given(RECORDS, st.binary(max_size=80), st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1))
def test_journal_with_a_tail(records: list[bytes], tail: bytes, length: int, number: int) -> None:
    """Data behind the last record costs none of the records, not even a well-formed head of another."""
    head = struct.pack(">IQI", length, number, zlib.crc32(tail))
    with tempfile.TemporaryDirectory() as name:
        files = filled(Path(name), records)
    newest = sorted(files)[-1]
    for more in (tail, head + zlib.crc32(head).to_bytes(4, "big") + tail):
        found, _ = opened_with({**files, newest: files[newest] + more})
        assert found[: len(records)] == records
