"""What runs print, passed on line by line under a name, without ever making a run wait for our reader."""

import os

from conch.log import Lines

_READ_BYTES = 65536
_LINE_BYTES = 3500  # with its name below what a pipe takes whole


class Relay:
    """One output of one run: reads what is there, passes on whole lines.

    A line longer than 3,500 bytes goes on in further ones. Memory is bounded: what our own reader does not take in
    time is dropped, and how much is said.
    """

    def __init__(self, label: str, lines: Lines) -> None:
        """Raises `OSError` if there is no descriptor left; `write_end` is the run's."""
        self._out, self.write_end = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._out, False)
        self._name = f"{label}: ".encode("utf-8", "backslashreplace")
        self._lines = lines
        self._rest = b""
        self.closed = False

    def fileno(self) -> int:
        """The descriptor to poll until `closed`."""
        return self._out

    def started(self) -> None:
        """The run has its end of the pipe."""
        os.close(self.write_end)

    def read(self) -> bool:
        """Pass on what can be read now, at most 64 KiB; tell whether there was anything."""
        if self.closed:
            return False
        try:
            data = os.read(self._out, _READ_BYTES)
        except BlockingIOError:
            return False
        if not data:
            self.closed = True
            return False
        *whole, self._rest = (self._rest + data).split(b"\n")
        for line in whole:
            self._put(line)
        while len(self._rest) >= _LINE_BYTES:
            self._put(self._rest[:_LINE_BYTES])
            self._rest = self._rest[_LINE_BYTES:]
        return True

    def finish(self) -> None:
        """The run is over: pass on the rest, an unfinished line too. Others may hold the pipe open: not waited for."""
        for _ in range(16):  # no more than a pipe holds
            if not self.read():
                break
        if self._rest:
            self._put(self._rest)
            self._rest = b""
        os.close(self._out)
        self.closed = True

    def _put(self, line: bytes) -> None:
        for at in range(0, max(1, len(line)), _LINE_BYTES):
            self._lines.put(self._name + line[at : at + _LINE_BYTES], cheap=True)
