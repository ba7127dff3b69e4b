"""Log lines on stderr: one a transition, logfmt or JSON, never blocking."""

import json
import os
import select
import time
from collections import deque

Field = str | int | float | bool | None

_BACKLOG = 200
# A pipe that polls writable takes at least this much without blocking (POSIX's PIPE_BUF on Linux).
_LINE_BYTES = 4096


def escape(text: str) -> str:
    """Control characters and lone surrogates as backslash escapes, so that a line stays one line."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def logfmt(fields: dict[str, Field]) -> str:
    """`key=value` pairs; values with blanks, quotes or equals signs are quoted."""
    return " ".join(f"{key}={_logfmt_value(value)}" for key, value in fields.items())


def _logfmt_value(value: Field) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.3f}".rstrip("0").rstrip(".")
    text = escape("" if value is None else str(value).replace("\\", "\\\\"))
    if not text or any(c in ' "=' for c in text):
        return '"' + text.replace('"', '\\"') + '"'
    return text


class Log:
    """Writes events to a file descriptor that may be full or closed: lines wait, the oldest are dropped.

    Nothing here ever blocks or raises: a supervisor that waits for a reader of its log could not end its child.
    """

    def __init__(self, *, quiet: bool = False, form: str = "text", fd: int = 2) -> None:
        self._quiet = quiet
        self._json = form == "json"
        self._fd = fd
        self._backlog: deque[bytes] = deque(maxlen=_BACKLOG)
        self._dropped = 0

    def __call__(self, level: str, event: str, **fields: Field) -> None:
        """Log one event at `info`, `warning` or `error`; `info` is left out under `--quiet`, fields of None always."""
        if self._quiet and level == "info":
            return
        now = time.time()
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now % 1 * 1000):03d}Z"
        line: dict[str, Field] = {"ts": stamp, "level": level, "event": event}
        line.update((key, value) for key, value in fields.items() if value is not None)
        text = json.dumps(line) if self._json else logfmt(line)
        self._put(text.encode("utf-8", "backslashreplace"))

    def plain(self, message: str) -> None:
        """One line for people: why conch gave up."""
        if self._json:
            self("error", "error", msg=message)
        else:
            self._put(f"conch: {escape(message)}".encode("utf-8", "backslashreplace"))

    def _put(self, line: bytes) -> None:
        if len(self._backlog) == _BACKLOG:
            self._dropped += 1
        self._backlog.append(line[: _LINE_BYTES - 1] + b"\n")
        self.flush()

    def flush(self) -> None:
        """Write what can be written now."""
        poller = select.poll()
        try:
            poller.register(self._fd, select.POLLOUT)
            while self._backlog and any(event & select.POLLOUT for _, event in poller.poll(0)):
                if self._dropped:
                    note = f"conch: {self._dropped} log lines were dropped\n".encode()
                    self._dropped = 0
                    os.write(self._fd, note)
                    continue
                os.write(self._fd, self._backlog[0])
                self._backlog.popleft()
        except OSError:
            # stderr is closed or broken: there is nobody to tell
            self._backlog.clear()
