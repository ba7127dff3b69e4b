"""Finds the lines of a TOML text on which its keys stand, for messages; `tomllib` does not tell them."""

import tomllib
from collections.abc import Iterator, Mapping
from typing import Any

Path = tuple[str, ...]


def lines_of(text: str) -> dict[Path, int]:
    """Return the line, from 1, of each table and key of a valid TOML text, by the keys that lead to it.

    A statement may go over several lines. As the text is valid, it ends where what was read of it is valid, too.
    """
    found: dict[Path, int] = {}
    table: Path = ()
    statement, began = "", 0
    for number, line in enumerate(text.split("\n"), start=1):
        if not statement:
            began = number
        statement += line + "\n"
        try:
            data = tomllib.loads(statement)
        except tomllib.TOMLDecodeError:
            continue
        is_header = statement.lstrip().startswith("[")
        if is_header:
            table = _deepest(data)
        for path in [table] if is_header else [table + key for key in _paths(data)]:
            for depth in range(1, len(path) + 1):
                found.setdefault(path[:depth], began)
        statement = ""
    return found


def _deepest(data: Any) -> Path:
    """Return the keys of a header, `[a.b]` or `[[a.b]]`."""
    path: Path = ()
    while isinstance(data, dict | list) and data:
        if isinstance(data, list):
            data = data[0]
            continue
        key = next(iter(data))
        path, data = (*path, key), data[key]
    return path


def _paths(data: Mapping[str, Any]) -> Iterator[Path]:
    for key, value in data.items():
        yield (key,)
        if isinstance(value, dict):
            yield from ((key, *inner) for inner in _paths(value))
