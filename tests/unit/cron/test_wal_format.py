"""The bytes of the write-ahead log, without any file: what is encoded is decoded, and damage is never a record."""

import pytest

from conch.cron.wal_format import (
    HEAD,
    HEAD_BYTES,
    HEADER_BYTES,
    LARGEST_RECORD_BYTES,
    MARK_OFFSET,
    TORN,
    Header,
    check_record,
    decode_header,
    encode_header,
    encode_mark,
    encode_record,
    scan_records,
    sealed,
)

HEADER = encode_header(7, 6, 3)
RECORDS = [encode_record(7, b"seven"), encode_record(8, b""), encode_record(9, b"nine" * 10)]
SEGMENT = HEADER + b"".join(RECORDS)


def test_header_comes_back_with_its_mark() -> None:
    """The mark is overwritten in place, and the start stays as it is."""
    assert len(HEADER) == HEADER_BYTES
    assert decode_header(HEADER, 7) == Header(last_before=6, mark=3)
    assert decode_header(HEADER[:MARK_OFFSET] + encode_mark(5) + b"records", 7) == Header(last_before=6, mark=5)


@pytest.mark.parametrize("at", range(HEADER_BYTES))
def test_flipped_bit_in_a_header_makes_it_none_or_loses_its_mark(at: int) -> None:
    """Without its mark a header counts: truncated records are then seen again, which is harmless."""
    damaged = HEADER[:at] + bytes([HEADER[at] ^ 1]) + HEADER[at + 1 :]
    assert decode_header(damaged, 7) == (None if at < MARK_OFFSET else Header(last_before=6, mark=0))


def test_header_of_another_segment_or_cut_short_is_none() -> None:
    """A renamed file is not a segment."""
    assert decode_header(HEADER, 8) is None
    assert all(decode_header(HEADER[:size], 7) is None for size in range(HEADER_BYTES))


def test_scan_finds_where_the_good_records_end() -> None:
    """At the end of the segment, or at the last record that counts."""
    assert scan_records(SEGMENT, 7, None) == (len(SEGMENT), 9, "")
    assert scan_records(SEGMENT, 7, 8) == (len(SEGMENT) - len(RECORDS[2]), 8, "")
    assert scan_records(HEADER, 7, None) == (HEADER_BYTES, 6, "")
    assert scan_records(SEGMENT, 7, 10) == (len(SEGMENT), 9, TORN)


@pytest.mark.parametrize("size", range(len(RECORDS[2])))
def test_record_cut_anywhere_is_torn(size: int) -> None:
    """The records before it stay, and zeros behind the cut change nothing."""
    end = len(SEGMENT) - len(RECORDS[2])
    if size:
        assert scan_records(SEGMENT[: end + size], 7, None) == (end, 8, TORN)
    assert scan_records(SEGMENT[:end] + b"\0" * 50, 7, None) == (end, 8, TORN)


@pytest.mark.parametrize("at", range(len(RECORDS[0])))
def test_flipped_bit_in_a_record_is_damage_and_not_a_cut(at: int) -> None:
    """The checksum of the head keeps a wrong length from being taken for a record cut short."""
    offset = HEADER_BYTES + at
    damaged = SEGMENT[:offset] + bytes([SEGMENT[offset] ^ 1]) + SEGMENT[offset + 1 :]
    fault = "no head of record 7" if at < HEAD_BYTES else "wrong checksum of record 7"
    assert scan_records(damaged, 7, None) == (HEADER_BYTES, 6, fault)


def test_record_under_another_number_or_of_insane_length_is_no_record() -> None:
    """However good its checksums are."""
    assert check_record(RECORDS[0], 0, 8) == (0, "no head of record 8")
    head = sealed(HEAD.pack(LARGEST_RECORD_BYTES + 1, 7, 0))
    assert check_record(head, 0, 7) == (0, "no head of record 7")
