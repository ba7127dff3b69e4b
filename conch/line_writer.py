"""Writes whole lines to a file descriptor that may be full or closed; nothing here blocks or raises."""

import os
import select
import stat

from conch.static_typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections import deque
else:
    try:
        from _collections import deque
    except ImportError:  # nobody promises this name
        from collections import deque

BACKLOG_BYTES = 256 * 1024
# A pipe takes so many bytes in one piece or not at all (PIPE_BUF on Linux): lines of several writers do not mix.
MOST_BYTES = 4096


def whole_characters(data: bytes, end: int) -> int:
    """Return where to cut bytes so that no character of UTF-8 is cut in two: `end` (4 or more), or up to 3 less.

    Bytes that are not UTF-8 are cut at `end`.
    """
    if end >= len(data):
        return len(data)
    for back in range(4):
        byte = data[end - back]
        if byte & 0xC0 != 0x80:  # the first byte of a character, which says how many it has
            length = 4 if byte >= 0xF0 else 3 if byte >= 0xE0 else 2 if byte >= 0xC0 else 1
            return end - back if back < length else end
    return end


class LineWriter:
    """Writes whole lines to a file descriptor that may be full or closed: `backlog` bytes wait, more are dropped.

    Nothing here ever blocks or raises: a supervisor that waits for a reader could not end its child.
    `taken` is how many bytes were written.
    """

    def __init__(self, fd: int, backlog: int = BACKLOG_BYTES) -> None:
        self.fd = fd
        self._most = backlog
        self._writer: _Writer | None = None
        self._backlog: deque[bytes] = deque()
        self._waiting = 0  # bytes of the backlog
        self._partial = b""
        self._dropped = 0  # lines older than the backlog
        self._missing = 0  # lines newer than the backlog
        self.taken = 0

    def fileno(self) -> int:
        """The descriptor to poll for writing while `pending`."""
        if self._writer is None:
            self._writer = _Writer(self.fd)
        return self._writer.fileno()

    @property
    def pending(self) -> bool:
        """Whether lines wait."""
        return bool(self._partial or self._backlog)

    @property
    def crowded(self) -> bool:
        """Whether a sixteenth of the backlog is used, so that what can wait elsewhere should."""
        return self._waiting > self._most // 16

    def put(self, line: bytes, *, cheap: bool = False) -> None:
        """Write a line, or several in one piece, cut at 4 KiB.

        If the backlog is full, its oldest lines are dropped, or these if they are `cheap`.
        """
        data = line[: whole_characters(line, MOST_BYTES - 1)] + b"\n"
        while self._backlog and self._waiting + len(data) > self._most:
            if cheap:
                self._missing += data.count(b"\n")
                return
            oldest = self._backlog.popleft()
            self._dropped += oldest.count(b"\n")
            self._waiting -= len(oldest)
        if self._missing:  # their place is here, after the backlog
            note, self._missing = _note(self._missing), 0
            self._backlog.append(note)
            self._waiting += len(note)
        self._backlog.append(data)
        self._waiting += len(data)
        self.flush()

    def flush(self) -> None:
        """Write what can be written now."""
        try:
            while self._partial or self._backlog or self._missing:
                if not self._partial and not self._backlog and self._missing:
                    self._partial, self._missing = _note(self._missing), 0
                elif not self._partial and self._dropped:
                    self._partial, self._dropped = _note(self._dropped), 0
                elif not self._partial:
                    self._partial = self._backlog.popleft()
                    self._waiting -= len(self._partial)
                written = self._write(self._partial)
                self._partial = self._partial[written:]
                self.taken += written
        except BlockingIOError:
            pass  # full: tried again with the next line or in the next turn of the loop
        except OSError:
            # stderr is closed or broken: nobody can read a message
            self._partial = b""
            self._backlog.clear()
            self._waiting = self._missing = 0

    def _write(self, data: bytes) -> int:
        """Write without waiting; raise `BlockingIOError` if nothing can be written now."""
        if self._writer is None:
            self._writer = _Writer(self.fd)
        return self._writer.write(data)

    def close(self) -> None:
        """Close what was opened for writing; the descriptor itself stays open."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def _note(count: int) -> bytes:
    return f"conch: {count} lines were dropped\n".encode()


class _Writer:
    """Writes without ever waiting, and without changing anything for others who share the descriptor.

    O_NONBLOCK belongs to the open file, which the child shares: so a terminal or pipe is opened anew.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._own: int | None = None
        self._may_block = False
        self._socket: Any = None
        mode = os.fstat(fd).st_mode
        if stat.S_ISSOCK(mode):
            from conch.plain_socket import socket  # late: stderr is rarely one

            self._socket, self._no_wait = socket.socket(fileno=os.dup(fd)), socket.MSG_DONTWAIT
        elif stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
            try:
                self._own = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
            except OSError:
                self._may_block = True  # of another user, or no /proc

    def fileno(self) -> int:
        """The descriptor that is written to."""
        if self._socket is not None:
            return int(self._socket.fileno())
        return self._fd if self._own is None else self._own

    def write(self, data: bytes) -> int:
        """Return how many bytes were written; raise `BlockingIOError` if nothing can be written now."""
        if self._socket is not None:
            return int(self._socket.send(data, self._no_wait))
        if self._may_block:
            poller = select.poll()
            poller.register(self._fd, select.POLLOUT)
            if not poller.poll(0):
                raise BlockingIOError
            data = data[:MOST_BYTES]  # a pipe that polls as writable has room for so much
        return os.write(self._fd if self._own is None else self._own, data)

    def close(self) -> None:
        """Close what was opened."""
        if self._socket is not None:
            self._socket.close()
        if self._own is not None:
            os.close(self._own)
