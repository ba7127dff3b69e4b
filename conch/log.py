"""Log lines on stderr: one per transition, logfmt or JSON, never blocking."""

import time

from conch.line_writer import BACKLOG_BYTES, MOST_BYTES, LineWriter

Field = str | int | float | bool | None


def escape(text: str) -> str:
    """Return text with control characters and lone surrogates as backslash escapes, so that a line stays one line."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def logfmt(fields: dict[str, Field]) -> str:
    """Return `key=value` pairs; values with blanks, quotes or equals signs are quoted."""
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


def _json(fields: dict[str, Field]) -> str:
    import json

    return json.dumps(fields)


def _shorten(line: dict[str, Field]) -> bool:
    """Cut the longest text by half, rather than the end of the line; return whether that was possible."""
    name, text = max(((n, v) for n, v in line.items() if isinstance(v, str)), key=lambda item: len(item[1]))
    line[name] = text[: len(text) // 2] + "…"
    return len(text) > 2


class Log:
    """Writes events to a file descriptor through a `LineWriter`."""

    def __init__(self, *, quiet: bool = False, form: str = "text", fd: int = 2, backlog: int = BACKLOG_BYTES) -> None:
        self._quiet = quiet
        self._json = form == "json"
        if self._json:
            import json  # noqa: F401 - loaded before the first line: it is slow to import
        self.lines = LineWriter(fd, backlog)

    def __call__(self, level: str, event: str, **fields: Field) -> None:
        """Log one event at `info`, `warning` or `error`; `info` is left out under `--quiet`, fields of None always."""
        if self._quiet and level == "info":
            return
        now = time.time()
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now % 1 * 1000):03d}Z"
        line: dict[str, Field] = {"ts": stamp, "level": level, "event": event}
        line.update((key, value) for key, value in fields.items() if value is not None)
        data = self._encode(line)
        while len(data) >= MOST_BYTES and _shorten(line):
            data = self._encode(line)
        self.lines.put(data)

    def _encode(self, line: dict[str, Field]) -> bytes:
        return (_json(line) if self._json else logfmt(line)).encode("utf-8", "backslashreplace")

    def plain(self, message: str) -> None:
        """Write one line for people: why conch gave up."""
        if self._json:
            self("error", "error", msg=message)
        else:
            self.lines.put(f"conch: {escape(message)}".encode("utf-8", "backslashreplace"))

    def flush(self) -> None:
        """Write what can be written now."""
        self.lines.flush()

    def close(self) -> None:
        """Close what was opened for writing; the descriptor itself stays open."""
        self.lines.close()
