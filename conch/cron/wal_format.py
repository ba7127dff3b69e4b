"""The bytes of the write-ahead log: encodes and checks segment headers and records. Pure, it touches no file.

A segment is a header and then records, whose numbers have no gaps. The header has two parts, each followed by a
checksum: the start, which never changes, and the mark, which is overwritten in place. A record is a head and its
data. The head has a checksum of its own: the length is then known to be right, so that a record cut short by a crash
is not mistaken for a damaged one with good ones behind it, nor the other way round.
"""

import struct
import zlib
from typing import NamedTuple

LARGEST_RECORD_BYTES = 16 << 20
MAGIC = b"conchwj1"  # its last character is the version of the format

START = struct.Struct(">8sQQ")  # the magic, the first number, the last good one before it
_MARK = struct.Struct(">Q")  # records up to this number are truncated
HEAD = struct.Struct(">IQI")  # the length, the number, the checksum of number and data
_CHECKSUM_BYTES = 4

MARK_OFFSET = START.size + _CHECKSUM_BYTES
HEADER_BYTES = MARK_OFFSET + _MARK.size + _CHECKSUM_BYTES
HEAD_BYTES = HEAD.size + _CHECKSUM_BYTES

TORN = "cut short"  # the one fault that is normal, at the end of the newest segment


class Header(NamedTuple):
    """The header of a segment: the last good record before it, and up to which record all are truncated.

    `mark` is 0 if that part is unreadable: truncated records are then seen again, which is harmless.
    """

    last_before: int
    mark: int


def sealed(data: bytes) -> bytes:
    """Append a checksum."""
    return data + zlib.crc32(data).to_bytes(_CHECKSUM_BYTES, "big")


def _is_sealed(data: bytes) -> bool:
    return data == sealed(data[:-_CHECKSUM_BYTES])


def encode_header(first: int, last_before: int, mark: int) -> bytes:
    """Encode the header of a segment whose first record is number `first`."""
    return sealed(START.pack(MAGIC, first, last_before)) + encode_mark(mark)


def encode_mark(mark: int) -> bytes:
    """Encode the part of a header at `MARK_OFFSET`."""
    return sealed(_MARK.pack(mark))


def decode_header(data: bytes, first: int) -> Header | None:
    """Decode the header of the segment named for record `first`; None if it is not one."""
    start, mark = data[:MARK_OFFSET], data[MARK_OFFSET:HEADER_BYTES]
    if len(data) < HEADER_BYTES or not _is_sealed(start):
        return None
    magic, number, last_before = START.unpack_from(start)
    if magic != MAGIC or number != first:
        return None
    return Header(last_before, _MARK.unpack_from(mark)[0] if _is_sealed(mark) else 0)


def _checksum(seq: int, data: bytes) -> int:
    return zlib.crc32(data, zlib.crc32(seq.to_bytes(8, "big")))


def encode_record(seq: int, data: bytes) -> bytes:
    """Encode record number `seq`."""
    return sealed(HEAD.pack(len(data), seq, _checksum(seq, data))) + data


def check_record(segment: bytes, offset: int, seq: int) -> tuple[int, str]:
    """Check that record `seq` stands at `offset`; return its size in bytes, and what is wrong with it (empty: nothing).

    Its data are the bytes from `offset + HEAD_BYTES` to `offset` plus its size.
    """
    head = segment[offset : offset + HEAD_BYTES]
    if len(head) < HEAD_BYTES:
        return 0, TORN
    length, number, checksum = HEAD.unpack_from(head)
    if not _is_sealed(head) or length > LARGEST_RECORD_BYTES or number != seq:
        return 0, f"no head of record {seq}"
    size = HEAD_BYTES + length
    if offset + size > len(segment):
        return 0, TORN
    intact = _checksum(seq, segment[offset + HEAD_BYTES : offset + size]) == checksum
    return size, "" if intact else f"wrong checksum of record {seq}"


def scan_records(segment: bytes, first: int, limit: int | None) -> tuple[int, int, str]:
    """Find where the good records end: the offset, the last good number, and what is wrong there.

    The fault is empty if all records are good up to number `limit`, or up to the end of the segment if that is None.
    """
    offset, seq = HEADER_BYTES, first
    while offset < len(segment) if limit is None else seq <= limit:
        size, fault = check_record(segment, offset, seq)
        if fault:
            # A file that grew before its data was written ends in zeros.
            return offset, seq - 1, fault if segment[offset:].strip(b"\0") else TORN
        offset, seq = offset + size, seq + 1
    return offset, seq - 1, ""
