"""What runs print: whole lines under a name, and a reader that does not read costs nothing but lines."""

import os
import re
import resource
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conch.core.output import Relay
from conch.log import Lines

NAME = "job 2026-01-01T00:00:00Z"
PREFIX = f"{NAME}: ".encode()
MOST = 4096


class Stage:
    """A relay between a run's pipe and a pipe of our own that takes the lines."""

    def __init__(self, label: str = NAME, *, takes: bool = True, backlog: int = 2000) -> None:
        self.out, self.sink = os.pipe()
        os.set_blocking(self.out, False)
        if not takes:
            os.set_blocking(self.sink, False)
            with pytest.raises(BlockingIOError):
                while True:
                    os.write(self.sink, b"#" * 4096)
            os.set_blocking(self.sink, True)
        self.lines = Lines(self.sink, backlog)
        self.relay = Relay(label, self.lines)
        self.run = os.dup(self.relay.write_end)
        self.relay.started()
        self.got = b""

    def prints(self, data: bytes) -> "Stage":
        """The run writes, the relay reads as it does; what comes out is kept."""
        while data:
            data = data[os.write(self.run, data[:60000]) :]
            while self.relay.read():
                self.take()
        return self

    def take(self) -> bytes:
        """All that has come out."""
        while True:
            self.lines.flush()
            try:
                data = os.read(self.out, 1 << 20)
            except BlockingIOError:
                return self.got
            if not data:
                return self.got
            self.got += data

    def ends(self) -> bytes:
        """The run's end of the pipe is closed and the run is over; all that came out."""
        os.close(self.run)
        self.run = -1
        self.relay.finish()
        return self.take()

    def close(self) -> None:
        if self.run >= 0:
            os.close(self.run)
        if not self.relay.closed:
            self.relay.finish()
        self.lines.close()
        os.close(self.out)
        os.close(self.sink)


@pytest.fixture
def stage() -> Iterator[Stage]:
    stage = Stage()
    yield stage
    stage.close()


def bodies(got: bytes, prefix: bytes = PREFIX) -> list[bytes]:
    """The lines without the name that each must have."""
    assert got.endswith(b"\n") or not got
    lines = got.split(b"\n")[:-1]
    for line in lines:
        assert line.startswith(prefix), line
        assert len(line) < MOST, len(line)
    return [line.removeprefix(prefix) for line in lines]


@pytest.mark.parametrize(
    ("written", "passed_on"),
    [
        (b"one\n", [b"one"]),
        (b"one\ntwo\nthree\n", [b"one", b"two", b"three"]),
        (b"\n\n", [b"", b""]),
        (b"a\r\nb\r", [b"a\r", b"b\r"]),
        (b"no end", [b"no end"]),
        (b"\n no end", [b"", b" no end"]),
        (b"\0\xff\x1b[0m\n\0", [b"\0\xff\x1b[0m", b"\0"]),
        ("ä€\n".encode(), ["ä€".encode()]),
        (b"", []),
    ],
)
def test_lines(stage: Stage, written: bytes, passed_on: list[bytes]) -> None:
    """Each comes whole and as it is, under the name; a last one without its end too."""
    assert bodies(stage.prints(written).ends()) == passed_on


def test_unfinished_line_waits_for_its_end(stage: Stage) -> None:
    """Or for that of the run."""
    assert stage.prints(b"one\ntw").take() == PREFIX + b"one\n"
    assert stage.prints(b"o\nthr").take() == PREFIX + b"one\n" + PREFIX + b"two\n"
    assert bodies(stage.ends()) == [b"one", b"two", b"thr"]


def test_many_small_writes(stage: Stage) -> None:
    """A byte at a time."""
    for byte in b"one\ntwo\n":
        stage.prints(bytes([byte]))
    assert bodies(stage.ends()) == [b"one", b"two"]


@pytest.mark.parametrize("size", [3499, 3500, 3501, 4096, 7000, 65536, 1_000_000])
@pytest.mark.parametrize("end", [b"\n", b""])
def test_long_line_goes_on_in_further_ones(stage: Stage, size: int, end: bytes) -> None:
    """None is longer than a pipe takes whole, each has the name, nothing is lost."""
    data = bytes(33 + i % 90 for i in range(size))
    found = bodies(stage.prints(data + end + b"next\n").ends())
    if end:
        assert found[-1] == b"next"
        found.pop()
        assert b"".join(found) == data
    else:
        assert b"".join(found) == data + b"next"
    assert all(found), "no empty line that the run did not print"


def test_longest_name_is_followed_by_its_lines() -> None:
    """Names have up to 128 characters."""
    label = "n" * 128 + " 2026-01-01T00:00:00Z"
    stage = Stage(label)
    assert b"".join(bodies(stage.prints(b"x" * 10_000 + b"\n").ends(), f"{label}: ".encode())) == b"x" * 10_000
    stage.close()


@given(st.lists(st.binary(max_size=9000), max_size=6))
def test_whatever_is_written_comes_out(chunks: list[bytes]) -> None:
    """Joined without names and cuts it is what was written, but for the end of an unfinished line."""
    stage = Stage()
    for chunk in chunks:
        stage.prints(chunk)
    found = bodies(stage.ends())
    stage.close()
    written = b"".join(chunks)
    assert b"".join(found) == written.replace(b"\n", b"")
    if all(len(line) < 3500 for line in written.split(b"\n")):
        assert found == written.removesuffix(b"\n").split(b"\n") if written else found == []


def test_write_end_is_the_runs_alone() -> None:
    """The end of the run is the end of the file: the parent has closed its copy."""
    stage = Stage()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(stage.relay.write_end)
    os.close(stage.run)
    stage.run = -1
    assert not stage.relay.read()
    assert stage.relay.closed
    stage.close()


def test_nothing_to_read_is_not_the_end(stage: Stage) -> None:
    """It returns at once, and the relay stays open."""
    assert not stage.relay.read()
    assert not stage.relay.closed


def test_one_read_is_bounded(stage: Stage) -> None:
    """One run that prints much must not keep the others from their turn."""
    os.set_blocking(stage.run, False)
    os.write(stage.run, b"x\n" * 32768)
    assert stage.relay.read()
    assert not stage.relay.read()
    assert len(stage.take()) <= 32768 * (len(PREFIX) + 2)


def test_pipe_held_open_by_another_is_not_waited_for(stage: Stage) -> None:
    """A process that outlives the run may have the other end; the descriptor is given back."""
    stage.prints(b"one\ntwo")
    fd = stage.relay.fileno()
    stage.relay.finish()
    assert bodies(stage.take()) == [b"one", b"two"]
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    assert not stage.relay.read()


def test_finish_takes_what_a_pipe_holds() -> None:
    """All that the run had written when it ended is passed on."""
    stage = Stage(backlog=1 << 20)
    os.set_blocking(stage.run, False)
    written = 0
    with pytest.raises(BlockingIOError):
        while True:
            written += os.write(stage.run, b"0123456\n" * 64)
    assert b"".join(bodies(stage.ends())) == b"0123456" * (written // 8)
    stage.close()


def test_reader_that_does_not_read() -> None:
    """The run is never blocked, memory is bounded, and how much was dropped is said when it reads again."""
    stage = Stage(takes=False, backlog=100_000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    line = b"y" * 1000 + b"\n"
    for _ in range(50_000):
        os.write(stage.run, line)  # would block for ever if nobody read
        stage.relay.read()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000  # KiB, of 50 MB
    assert stage.lines.pending
    got = stage.take().lstrip(b"#")
    kept = got.count(PREFIX)
    assert kept <= 101
    stage.prints(b"last\n")
    got = stage.ends().lstrip(b"#")
    stage.close()
    assert got.endswith(PREFIX + b"last\n")
    dropped = sum(int(n) for n in re.findall(rb"^conch: (\d+) lines were dropped$", got, re.M))
    assert dropped + kept == 50_000
    for one in got.splitlines():
        assert one.startswith((PREFIX, b"conch: ")), "a line that is not whole"


def test_reader_that_is_gone() -> None:
    """Nothing is raised and nothing kept."""
    stage = Stage()
    os.close(stage.out)
    for _ in range(100):
        os.write(stage.run, b"z" * 1000 + b"\n")
        stage.relay.read()
    assert not stage.lines.pending
    stage.out = os.open(os.devnull, os.O_RDONLY)
    stage.close()


def test_two_runs_do_not_mix_within_a_line() -> None:
    """Parts of lines wait until they are whole."""
    stage = Stage("a")
    other = Relay("b", stage.lines)
    run = os.dup(other.write_end)
    other.started()
    for _ in range(50):
        stage.prints(b"aaa")
        os.write(run, b"bbb")
        other.read()
        stage.prints(b"a\n")
        os.write(run, b"b\n")
        other.read()
    os.close(run)
    other.finish()
    assert sorted(stage.ends().splitlines()) == [b"a: aaaa"] * 50 + [b"b: bbbb"] * 50
    stage.close()


def test_no_descriptor_is_left(stage: Stage) -> None:
    """A thousand relays, one after the other."""
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(1000):
        relay = Relay("x", stage.lines)
        relay.started()
        relay.finish()
    assert len(os.listdir("/proc/self/fd")) == before
