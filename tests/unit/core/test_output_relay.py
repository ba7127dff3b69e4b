"""What runs print: whole lines under a name, and a reader that does not read costs nothing but lines."""

import os
import re
import resource
import select
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conch.core.output_relay import Outputs, Relay
from conch.line_writer import LineWriter, whole_characters

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
        self.lines = LineWriter(self.sink, backlog)
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


def test_line_of_just_the_length_is_one(stage: Stage) -> None:
    """Also where its end comes later."""
    stage.prints(b"x" * 3500)
    stage.prints(b"\n")
    assert bodies(stage.ends()) == [b"x" * 3500]


@pytest.mark.parametrize("character", ["ä", "€", "𝄞"])
@pytest.mark.parametrize("ahead", range(4))
@pytest.mark.parametrize("end", ["\n", ""])
def test_no_character_is_cut_in_two(stage: Stage, character: str, ahead: int, end: str) -> None:
    """Wherever in a character a line has to go on in the next, each is valid, and as long as it can be."""
    text = "x" * ahead + character * 5000
    data = (text + end).encode()
    for at in range(0, len(data), 7001):  # it comes in pieces that are cut anywhere
        stage.prints(data[at : at + 7001])
    found = [line.decode() for line in bodies(stage.ends())]
    assert "".join(found) == text
    assert all(3500 - 4 < len(line.encode()) <= 3500 for line in found[:-1])


@given(st.text(), st.integers(4, 40))
def test_cut_of_a_text_is_valid(text: str, end: int) -> None:
    """Both parts are, and less than a character is missing."""
    data = text.encode("utf-8", "replace")
    cut = whole_characters(data, end)
    assert data[:cut].decode() + data[cut:].decode() == data.decode()
    assert min(end, len(data)) - 4 < cut <= end


@given(st.binary(max_size=50), st.integers(4, 40))
def test_cut_of_any_bytes_is_near_the_end(data: bytes, end: int) -> None:
    """Progress is certain: at most three bytes are left for the next."""
    assert min(end, len(data)) - 3 <= whole_characters(data, end) <= end


@pytest.mark.parametrize("byte", [b"\x80", b"\xff", b"\xc3"])
def test_what_is_no_text_is_cut_where_it_must_be(stage: Stage, byte: bytes) -> None:
    """Nothing of it is changed or lost."""
    assert b"".join(bodies(stage.prints(byte * 10_000 + b"\n").ends())) == byte * 10_000


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
    assert os.write(stage.run, b"x\n" * 32768) == 65536
    assert stage.relay.read() == 16384
    assert len(stage.take()) <= 8192 * (len(PREFIX) + 2)


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


def test_what_was_dropped_is_told_where_it_is_missing() -> None:
    """Between the lines before it and those after it, not before all that waited."""
    stage = Stage(takes=False, backlog=10_000)
    for number in range(200):
        os.write(stage.run, f"{number:099}\n".encode())
        stage.relay.read()
    stage.take()
    stage.prints(b"last\n")
    got = stage.ends().lstrip(b"#")
    stage.close()
    expected = 0
    for line in got.splitlines():
        if dropped := re.fullmatch(rb"conch: (\d+) lines were dropped", line):
            expected += int(dropped[1])
        elif line != PREFIX + b"last":
            assert int(line.removeprefix(PREFIX)) == expected
            expected += 1
    assert expected == 200


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


# -- all of them together ---------------------------------------------------------------------------------

TURN_S = 0.01


class Floor:
    """Runs that print, `Outputs` that reads them, at moments that the test makes up, and a reader of its lines."""

    def __init__(self, *, reads: bool = True) -> None:
        self.out, self.sink = os.pipe()
        os.set_blocking(self.out, False)
        self.reads = reads
        self.lines = LineWriter(self.sink, 4 << 20)
        self.poller = select.poll()
        self.outputs = Outputs(self.poller)
        self.relays: dict[str, Relay] = {}
        self.runs: dict[str, int] = {}
        self.got: list[bytes] = []
        self.now = 1000.0

    def add(self, *names: str) -> None:
        for name in names:
            self.relays[name] = Relay(name, self.lines)
            self.runs[name] = os.dup(self.relays[name].write_end)
            os.set_blocking(self.runs[name], False)
            self.relays[name].started()
            self.outputs.add(self.relays[name])

    def floods(self, *names: str, line: bytes = b"y\n") -> None:
        """These print as much as their pipes take."""
        for name in names:
            try:
                while os.write(self.runs[name], line * (4096 // len(line))):
                    pass
            except BlockingIOError:
                pass

    def polled(self) -> list[int]:
        """The descriptors that would wake the daemon now."""
        return [fd for fd, _ in self.poller.poll(0)]

    def turn(self, later_s: float = TURN_S) -> list[bytes]:
        """Time passes and the daemon has its turn; the lines that our reader got."""
        self.now += later_s
        self.outputs.pass_on(self.polled(), self.now)
        self.lines.flush()
        return self.read() if self.reads else []

    def read(self) -> list[bytes]:
        got = b""
        try:
            while data := os.read(self.out, 1 << 20):
                got += data
                self.lines.flush()
        except BlockingIOError:
            pass
        assert got.endswith(b"\n") or not got
        self.got += got.splitlines()
        return got.splitlines()

    def count(self, name: str) -> int:
        """How many lines of a run our reader got."""
        return sum(line.startswith(f"{name}: ".encode()) for line in self.got)

    def finish(self, name: str) -> None:
        os.close(self.runs.pop(name))
        self.outputs.finish(self.relays.pop(name))

    def close(self) -> None:
        for name in list(self.runs):
            self.finish(name)
        self.lines.close()
        os.close(self.out)
        os.close(self.sink)


@pytest.fixture
def floor() -> Iterator[Floor]:
    floor = Floor()
    yield floor
    floor.close()


NOISY = [f"n{i}" for i in range(10)]


def test_noisy_runs_share_a_budget(floor: Floor) -> None:
    """However much they print: so much a second, each its share, and the rest stays in their pipes."""
    floor.add(*NOISY)
    for _ in range(100):
        floor.floods(*NOISY)
        floor.turn()
    for _ in range(100):  # of the second second alone: at the start more passes at once
        floor.floods(*NOISY)
        before = len(floor.got)
        floor.turn()
        assert sum(map(len, floor.got[before:])) < 1 << 20, "a turn is short"
    counts = [floor.count(name) for name in NOISY]
    assert max(counts) < 2 * min(counts)
    assert sum(map(len, floor.got)) < 30 << 20
    assert not [line for line in floor.got if b"dropped" in line]


def test_pipe_that_was_read_is_not_polled_before_the_next_turn(floor: Floor) -> None:
    """One that prints a little, again and again, does not wake the daemon each time."""
    floor.add("chatty")
    os.write(floor.runs["chatty"], b"one\n")
    assert floor.turn() == [b"chatty: one"]
    os.write(floor.runs["chatty"], b"two\n")
    assert not floor.polled()
    assert floor.turn(0.0) == []
    assert floor.outputs.wake_at == pytest.approx(floor.now + TURN_S)
    assert floor.turn() == [b"chatty: two"]
    assert floor.turn() == []
    assert floor.outputs.wake_at is None, "nothing printed, nothing to do"
    os.write(floor.runs["chatty"], b"three\n")
    assert floor.polled()


def test_quiet_run_comes_before_noisy_ones(floor: Floor) -> None:
    """Its line is passed on at the next turn, before theirs."""
    floor.add("quiet", *NOISY)
    for _ in range(50):
        floor.floods(*NOISY)
        floor.turn()
    os.write(floor.runs["quiet"], b"word\n")
    assert floor.turn()[0] == b"quiet: word"


def test_budget_that_is_used_up_wakes_nobody_in_vain(floor: Floor) -> None:
    """Between turns the daemon sleeps."""
    floor.add(*NOISY)
    floor.floods(*NOISY)
    floor.turn()
    floor.floods(*NOISY)
    assert not floor.polled()
    assert floor.outputs.wake_at is not None
    assert floor.outputs.wake_at >= floor.now + TURN_S


def test_slow_reader_slows_the_runs() -> None:
    """What it takes later is not dropped: the pipe is not read meanwhile."""
    floor = Floor(reads=False)
    floor.add("n")
    for _ in range(50):
        floor.floods("n")
        floor.turn()
    for _ in range(300):
        floor.floods("n")
        floor.turn()
        os.read(floor.out, 4096)  # a little at a time, without end
    with pytest.raises(BlockingIOError):
        os.write(floor.runs["n"], b"y\n" * 4096)
    got = b"".join(iter(lambda: b"\n".join(floor.read()), b""))
    assert b"dropped" not in got
    floor.close()


def test_reader_that_takes_nothing_is_not_waited_for() -> None:
    """After a second the runs go on, and lines are dropped; when it reads again, they are slowed again."""
    floor = Floor(reads=False)
    floor.add("n")
    for _ in range(50):
        floor.floods("n")
        floor.turn()
    with pytest.raises(BlockingIOError):
        os.write(floor.runs["n"], b"y\n" * 4096)
    before = floor.relays["n"].passed
    for _ in range(200):
        floor.floods("n")
        floor.turn()
    assert floor.relays["n"].passed - before > 8 << 20, "the run went on"
    assert [line for line in floor.read() if b"lines were dropped" in line]
    floor.close()


def test_last_words_of_noisy_runs_are_whole(floor: Floor) -> None:
    """What their pipes held when they ended is passed on, budget or not; what comes next waits a little for it."""
    floor.add(*NOISY)
    line = b"0123456789" * 5 + b"\n"
    for _ in range(3):
        floor.floods(*NOISY, line=line)
        floor.turn()
    for name in NOISY:
        floor.floods(name, line=line)
        relay, before = floor.relays[name], floor.relays[name].passed
        floor.finish(name)
        assert relay.passed - before >= 60_000
    floor.read()
    assert not [line for line in floor.got if b"dropped" in line]
    assert all(line.endswith(b": " + b"0123456789" * 5) for line in floor.got)
    floor.add("next")
    os.write(floor.runs["next"], b"word\n")
    assert any(floor.turn() == [b"next: word"] for _ in range(10))


def test_run_that_ends_while_it_waits_for_its_turn(floor: Floor) -> None:
    """Its descriptor, which may be another's by then, is not read any more."""
    floor.add("a", "b")
    floor.floods("a", "b")
    floor.turn()
    floor.finish("a")
    floor.add("c")
    os.write(floor.runs["c"], b"word\n")
    for _ in range(20):
        floor.turn()
    assert floor.got.count(b"c: word") == 1
