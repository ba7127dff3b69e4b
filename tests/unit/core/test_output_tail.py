"""The end of what a run prints: bounded, valid UTF-8, no half characters."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conch.core.output_tail import BYTES, OutputTail


def tail_of(*chunks: bytes) -> str:
    tail = OutputTail()
    for chunk in chunks:
        tail.add(chunk)
    return tail.text()


@pytest.mark.parametrize(
    ("chunks", "text"),
    [
        ([], ""),
        ([b"a", b"b\n"], "ab\n"),
        ([b"x" * BYTES], "x" * BYTES),
        ([b"y" + b"x" * BYTES], "x" * BYTES),
        ([b"y" * 10**6, b"x" * (BYTES - 1)], "y" + "x" * (BYTES - 1)),
        (["é".encode() * BYTES], "é" * (BYTES // 2)),
        (["é".encode() * BYTES + b"x"], "é" * (BYTES // 2 - 1) + "x"),
        ([b"\xff\x00a"], "\ufffd\0a"),
        ([b"\xc3", b"\xa9"], "é"),
        ([b"\xff" * 2 * BYTES], "\ufffd" * (BYTES // 3)),
        ([b"\x80" * 2 * BYTES + b"end"], "\ufffd" * ((BYTES - 3) // 3) + "end"),
    ],
)
def test_what_is_kept(chunks: list[bytes], text: str) -> None:
    """The last 4 KiB, wherever the chunks end."""
    assert tail_of(*chunks) == text


@given(st.lists(st.binary(max_size=3000), max_size=6))
def test_any_bytes_become_a_bounded_text(chunks: list[bytes]) -> None:
    """It is what the whole output would end with, and never longer than 4 KiB."""
    text = tail_of(*chunks)
    assert len(text.encode()) <= BYTES
    whole = b"".join(chunks)
    if len(whole) <= BYTES and len(whole.decode("utf-8", "replace").encode()) <= BYTES:
        assert text == whole.decode("utf-8", "replace")
    elif len(whole) > BYTES and whole.isascii():
        assert text == whole[-BYTES:].decode()


def test_memory_is_bounded() -> None:
    """However much is printed."""
    tail = OutputTail()
    for _ in range(1000):
        tail.add(b"x" * 16384)
    assert len(tail._data) == BYTES + 1
