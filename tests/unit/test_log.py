"""Log lines: their formats, their length, and readers that do not read."""

import json
import os
import shlex
import socket
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conch.log import Log, escape, logfmt


def test_logfmt_quotes_and_escapes() -> None:
    """Any value stays on one line."""
    line = logfmt({"a": 1, "b": "x y", "c": 'q"=', "d": "\x1b\n", "e": 0.5, "f": True, "g": "", "h": 2.0, "i": "a\\b"})
    assert line == 'a=1 b="x y" c="q\\"=" d=\\x1b\\n e=0.5 f=true g="" h=2 i=a\\\\b'


@given(st.text())
def test_escaped_text_is_one_printable_line(text: str) -> None:
    """Control characters and lone surrogates are escaped too."""
    assert escape(text).isprintable()
    escape(text).encode()


def test_log_does_not_block_on_a_full_pipe_and_reports_dropped_lines() -> None:
    """A supervisor that waited for a reader could not end its child."""
    read, write = os.pipe()
    log = Log(fd=write)
    for i in range(20000):
        log("info", "event", number=i)
    os.set_blocking(read, False)
    text = b""
    while True:
        try:
            text += os.read(read, 65536)
        except BlockingIOError:
            before = len(text)
            log.flush()
            try:
                text += os.read(read, 65536)
            except BlockingIOError:
                pass
            if len(text) == before:
                break
    assert b"number=0\n" in text
    assert b"number=19999\n" in text
    assert b"lines were dropped" in text
    os.close(read)
    log("info", "nobody reads")  # a broken pipe is no error
    log.close()
    os.close(write)


def test_log_does_not_block_on_a_terminal_that_nobody_reads() -> None:
    """A terminal accepts part of a line; the rest follows when there is room, and no line is torn."""
    master, slave = os.openpty()
    log = Log(fd=slave)
    for i in range(300):
        log("info", "event", number=i, text="x" * 300)
    os.set_blocking(master, False)
    text = b""
    for _ in range(1000):
        try:
            text += os.read(master, 65536)
        except BlockingIOError:
            log.flush()
            time.sleep(0.001)
    lines = text.replace(b"\r\n", b"\n").splitlines()
    assert all(line.startswith((b"ts=", b"conch: ")) for line in lines)
    assert b"number=0 " in lines[0]
    assert b"number=299 " in lines[-1]
    log.close()
    os.close(master)
    os.close(slave)


def test_log_ignores_a_closed_descriptor() -> None:
    """Users may run conch with `2>&-`."""
    Log(fd=9999)("error", "event")


@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.parametrize("character", ["x", "ä", "€", "😀", "\x1b", '"'])
def test_long_text_is_shortened_and_its_line_stays_complete(form: str, character: str) -> None:
    """The line is at most 4 KiB and still has all fields, valid UTF-8 and valid JSON."""
    left, right = socket.socketpair()
    log = Log(form=form, fd=right.fileno())
    log("error", "run-end", run="job", reason=character * 5000, msg="short", code=7)
    log.close()
    right.close()
    data = left.makefile("rb").read()
    left.close()
    assert len(data) <= 4096
    assert data.count(b"\n") == 1
    line = json.loads(data) if form == "json" else dict(part.split("=", 1) for part in shlex.split(data.decode()))
    assert (line["run"], line["msg"], str(line["code"])) == ("job", "short", "7")
    assert line["reason"].endswith("…")


def test_quiet_log_keeps_warnings() -> None:
    """`--quiet` suppresses only info lines."""
    left, right = socket.socketpair()
    log = Log(quiet=True, fd=right.fileno())
    log("info", "a")
    log("warning", "b", none=None)
    log("error", "c")
    log.close()
    right.close()
    text = left.makefile().read()
    assert [line.split()[2] for line in text.splitlines()] == ["event=b", "event=c"]
    assert "none" not in text
    left.close()
