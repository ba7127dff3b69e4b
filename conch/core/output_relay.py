"""Relaying the output of runs line by line under a name, within a budget that all runs share."""

import os
import select
from collections import deque

from conch.core.output_tail import OutputTail
from conch.line_writer import MOST_BYTES, LineWriter, whole_characters
from conch.static_typing import Iterable, Iterator

# A read costs as much of the budget as a page, however little it brings.
_READ_BYTES, _READ_COST = 16384, 2048
_LINE_BYTES = 3500  # with its name, less than a pipe takes in one write
# The pause between two reads of one pipe, unless it has more immediately.
_TURN_S = 0.01
# Bytes relayed per second, names included, and in one burst after a quiet time. It takes less than a tenth of a core.
_BYTES_A_SECOND, _BURST_BYTES = 12 << 20, 512 << 10
# conch does not wait for a reader of its own output that took nothing for this long.
_STALLED_S = 1.0


class Relay:
    """One output of one run: reads what is available, passes on complete lines.

    A line longer than 3,500 bytes is split, never inside a UTF-8 character. Memory is bounded: output that finds no
    room is dropped, and the amount is reported.
    """

    def __init__(self, label: str, lines: LineWriter, tail: OutputTail | None = None) -> None:
        """Open the pipe; `write_end` is for the run. Raises `OSError` if there is no descriptor left.

        `tail` gets all that is read.
        """
        self._out, self.write_end = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._out, False)
        self._name = f"{label}: ".encode("utf-8", "backslashreplace")
        self.lines = lines
        self._tail = tail
        self.passed = 0  # bytes, with names
        self._rest = b""
        self.closed = False

    def fileno(self) -> int:
        """Return the descriptor to poll until `closed`."""
        return self._out

    def belongs_to(self, uid: int, gid: int) -> None:
        """Make this user own the pipe: nobody else may open it by its name (/dev/stdout)."""
        try:
            os.fchown(self.write_end, uid, gid)
        except OSError:
            pass  # a conchd without CAP_CHOWN; the descriptor itself still works

    def started(self) -> None:
        """Close our copy of the write end: the run has its own now."""
        os.close(self.write_end)

    def read(self) -> int:
        """Pass on what can be read now, at most 16 KiB; return the number of bytes."""
        if self.closed:
            return 0
        try:
            data = os.read(self._out, _READ_BYTES)
        except BlockingIOError:
            return 0
        if not data:
            self.closed = True
            return 0
        if self._tail is not None:
            self._tail.add(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > _LINE_BYTES:
            *pieces, self._rest = _pieces(self._rest)
            lines += pieces
        self._put(lines)
        return len(data)

    def finish(self) -> None:
        """Pass on the rest, also an unfinished line. Processes that still hold the pipe open are not waited for."""
        for _ in range(64):  # no more than a pipe holds
            if not self.read():
                break
        if self._rest:
            self._put([self._rest])
            self._rest = b""
        os.close(self._out)
        self.closed = True

    def _put(self, lines: list[bytes]) -> None:
        if not lines:
            return
        if max(map(len, lines)) > _LINE_BYTES:
            lines = [piece for line in lines for piece in _pieces(line)]
        text = self._name + (b"\n" + self._name).join(lines) + b"\n"
        self.passed += len(text)
        start = 0
        while start < len(text):  # as many lines at a time as a pipe takes in one write
            end = text.rindex(b"\n", start, start + MOST_BYTES)
            self.lines.put(text[start:end], cheap=True)
            start = end + 1


def _pieces(line: bytes) -> Iterator[bytes]:
    at = 0
    while len(line) - at > _LINE_BYTES:
        end = whole_characters(line, at + _LINE_BYTES)
        yield line[at:end]
        at = end
    yield line[at:]


class Outputs:
    """The outputs of all runs, read in turns: a run that prints without end is slowed by its own pipe alone.

    A pipe that was read is not read again until the next turn, 10 ms later, unless it has more and the budget allows
    it. Pipes that were quiet until now come first, then those that waited longest. While our own reader is slow,
    nothing is read that it could not take; once it has taken nothing for a second, lines are dropped.
    """

    def __init__(self, poller: select.poll) -> None:
        """Register the descriptors to wait for with `poller`."""
        self._poller = poller
        self._quiet: dict[int, Relay] = {}  # polled
        self._waiting: deque[Relay] = deque()  # to be read as soon as the budget allows for it
        self._resting: list[Relay] = []  # until the next turn
        self._budget = float(_BURST_BYTES)
        self._refilled_at = self._turn_at = 0.0
        self._taken: dict[LineWriter, tuple[int, float]] = {}  # by slow readers: how much so far, no more since when

    def add(self, relay: Relay) -> None:
        """Relay this output from now on."""
        self._quiet[relay.fileno()] = relay
        self._poller.register(relay, select.POLLIN)

    def finish(self, relay: Relay) -> None:
        """Relay the rest of an output whose run is over."""
        if self._quiet.pop(relay.fileno(), None) is not None:
            self._poller.unregister(relay)
        before = relay.passed
        relay.finish()
        self._budget = max(-_BURST_BYTES, self._budget - (relay.passed - before))

    @property
    def wake_at(self) -> float | None:
        """When `pass_on` has something to do even if no descriptor is ready (CLOCK_BOOTTIME)."""
        return self._turn_at if self._waiting or self._resting else None

    def pass_on(self, ready: Iterable[int], now: float) -> None:
        """Read the outputs that are ready, and those whose turn has come."""
        self._budget = min(_BURST_BYTES, self._budget + (now - self._refilled_at) * _BYTES_A_SECOND)
        self._refilled_at = now
        for fd in ready:
            relay = self._quiet.pop(fd, None)
            if relay is not None:
                self._poller.unregister(fd)
                self._waiting.appendleft(relay)
        if now >= self._turn_at:
            self._waiting += self._resting
            self._resting.clear()
            self._turn_at = now + _TURN_S
        while self._waiting and self._budget > 0:
            self._read(self._waiting.popleft(), now)

    def _read(self, relay: Relay, now: float) -> None:
        if self._must_wait(relay.lines, now):
            self._resting.append(relay)
            return
        before = relay.passed
        count = relay.read()
        self._budget -= _READ_COST + relay.passed - before
        if count == _READ_BYTES:
            self._waiting.append(relay)
        elif count:
            self._resting.append(relay)
        elif not relay.closed:
            self.add(relay)

    def _must_wait(self, lines: LineWriter, now: float) -> bool:
        """Whether our reader still has to take what was written, and does take it."""
        if not lines.crowded:
            self._taken.pop(lines, None)
            return False
        taken, since = self._taken.get(lines, (-1, now))
        if taken != lines.taken:
            self._taken[lines] = lines.taken, now
            return True
        return now - since < _STALLED_S
