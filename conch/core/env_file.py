"""Files of variables, as systemd's `EnvironmentFile=` reads them."""

import os
import stat

from conch.static_typing import Iterable, Iterator

# More than any environment may have.
_MOST_BYTES = 1 << 20
_BLANKS = " \t"


class BadEnvironmentFile(Exception):
    """A file that cannot be used; the message names it and says why."""


def read_env_files(paths: Iterable[str]) -> dict[str, str]:
    """Read the variables in these files; a later one counts more. Raises `BadEnvironmentFile`.

    A path that begins with `-` need not exist. What is no regular file, or too large, is refused: nothing here waits.
    """
    found: dict[str, str] = {}
    for path in paths:
        try:
            found.update(parse_env(_read(path.removeprefix("-"))))
        except OSError as error:
            if path.startswith("-") and isinstance(error, FileNotFoundError):
                continue
            raise BadEnvironmentFile(f"cannot read {path.removeprefix('-')}: {error.strerror or error}") from None
    return found


def _read(path: str) -> str:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError("it is no regular file")
        data = b""
        while len(data) <= _MOST_BYTES and (more := os.read(fd, 65536)):
            data += more
    finally:
        os.close(fd)
    if len(data) > _MOST_BYTES:
        raise OSError(f"it has more than {_MOST_BYTES} bytes")
    if b"\0" in data:
        raise OSError("a NUL is in it")
    return data.decode("utf-8", "surrogateescape")


def parse_env(text: str) -> dict[str, str]:
    """Return the variables of a text. Lines without `=`, and names that are none, are left out, as systemd does.

    A line that begins with `#` or `;` is a comment. A value may have parts in single or double quotes; a backslash
    before the end of a line continues it. Nothing is expanded.
    """
    found = {}
    for line in _lines(text):
        name, separator, value = line.partition("=")
        name = name.strip(_BLANKS)
        if separator and _is_name(name):
            found[name] = _value(value)
    return found


def _is_name(name: str) -> bool:
    return name.isascii() and name.replace("_", "a").isalnum() and not name[0].isdigit()


def _lines(text: str) -> Iterator[str]:
    """Yield the lines that are no comments; one goes on after a backslash, and within quotes."""
    line, quote = "", ""
    for part in text.split("\n"):
        if not line and part.lstrip(_BLANKS)[:1] in ("", "#", ";"):
            continue
        line += part
        quote = _open_quote(part, quote)
        if quote:
            line += "\n"
        elif _ends_with_backslash(part):
            line = line[:-1]
        else:
            yield line
            line = ""
    if line:
        yield line


def _ends_with_backslash(part: str) -> bool:
    return (len(part) - len(part.rstrip("\\"))) % 2 == 1


def _open_quote(part: str, quote: str) -> str:
    """Return the quote that is still open after this part of a line; empty if none is."""
    at, value_began = 0, bool(quote)
    while at < len(part):
        character = part[at]
        if not quote and not value_began:
            value_began = character == "="
        elif character == "\\" and quote != "'":
            at += 1
        elif quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        at += 1
    return quote


def _value(text: str) -> str:
    """Return a value without its quotes, escapes and surrounding blanks."""
    text = text.strip(_BLANKS)
    value, quote, at = "", "", 0
    while at < len(text):
        character, following = text[at], text[at + 1 : at + 2]
        if character == "\\" and quote != "'" and following:
            # within double quotes a backslash stays before what needs none
            value += following if quote != '"' or following in '"\\$`\n' else character + following
            at += 1
        elif character == quote:
            quote = ""
        elif not quote and character in "'\"":
            quote = character
        else:
            value += character
        at += 1
    return value
