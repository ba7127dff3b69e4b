"""The zones of the IANA database: read from its files, and read again when the files change.

The database is the directory in `TZDIR` (as for the C library), else the system's, else the `tzdata` package. Each
zone in use is kept with the bytes that it was read from: it has changed if and only if these bytes have.
"""

import os
import struct
from bisect import bisect_left
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from hashlib import sha256
from importlib import resources
from io import BytesIO
from typing import NamedTuple
from zoneinfo import TZPATH, ZoneInfo, available_timezones

from conch.limits import is_short

_DAY_S = 86400
_EPOCH = datetime(1970, 1, 1)
# Zone files have some kilobytes.
_LARGEST_BYTES = 1 << 20
# The first line of `tzdata.zi`, as in "# version 2025b".
_VERSION_LINE = b"# version "


@dataclass(frozen=True, slots=True)
class _Loaded:
    data: bytes
    zone: ZoneInfo


class _EndingFile(BytesIO):
    """A file that raises at its end: without that, Python reads one whose last line is cut off for ever."""

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        if size is not None and len(data) < size:
            raise EOFError("the file is cut off")
        return data


_loaded: dict[str, _Loaded] = {}


def load(key: str) -> ZoneInfo | None:
    """Return the zone of this key, always the same object until `reload` finds it changed; `None` if there is none.

    Raises `OSError` if the system has no descriptor left to open its file.
    """
    known = _loaded.get(key)
    if known is None:
        known = _read(key)
        if known is None:
            return None
        known = _loaded.setdefault(key, known)
    return known.zone


def reload() -> list[str]:
    """Read the zones in use again; return the keys of those that changed. A zone whose file is gone stays as it was.

    Raises `OSError` as `load` does, with nothing changed.
    """
    found = {key: _read(key) for key in list(_loaded)}
    new = {key: read for key, read in found.items() if read is not None and read.data != _loaded[key].data}
    _loaded.update(new)
    if new:
        changes.cache_clear()
    return sorted(new)


class Scan(NamedTuple):
    """The result of a scan of the database: the keys of changed zones and its release; or the `problem` with it."""

    changed: list[str]
    version: str
    problem: str = ""


def scan() -> Scan:
    """Read the database again and use its zones from now on, if they changed. Raises nothing."""
    try:
        return Scan(reload(), version())
    except OSError as error:
        return Scan([], "", error.strerror or str(error))


def version() -> str:
    """Return the release of the database, for example `2025b`; if its files name none, a digest of them all.

    Raises `OSError` as `load` does.
    """
    for folder in _folders():
        if not os.path.isdir(folder):
            continue
        first = _file(os.path.join(folder, "tzdata.zi"))
        if first is not None and first.startswith(_VERSION_LINE):
            return _printable(first.partition(b"\n")[0].removeprefix(_VERSION_LINE))
        plain = _file(os.path.join(folder, "+VERSION"))
        return _printable(plain) if plain is not None else _digest()
    first = _packaged("tzdata.zi")
    return "" if first is None else _printable(first.partition(b"\n")[0].removeprefix(_VERSION_LINE))


def _printable(text: bytes) -> str:
    return text[:40].decode("ascii", "replace").strip()


def _digest() -> str:
    digest = sha256()
    for key in sorted(available_timezones()):
        data = _data(key)
        digest.update(b"%s %d\n" % (key.encode(), 0 if data is None else len(data)) + (data or b""))
    return f"sha256:{digest.hexdigest()[:16]}"


def _folders() -> tuple[str, ...]:
    folder = os.environ.get("TZDIR", "")
    return (folder,) if folder.startswith("/") else TZPATH


def _read(key: str) -> _Loaded | None:
    data = _data(key)
    if data is None:
        return None
    try:
        return _Loaded(data, ZoneInfo.from_file(_EndingFile(data), key=key))
    except (ValueError, LookupError, ArithmeticError, EOFError, struct.error):
        return None  # not a zone file, or only part of one


def _data(key: str) -> bytes | None:
    for folder in _folders():
        data = _file(os.path.join(folder, key))
        if data is not None:
            return data
    return _packaged(key)


def _packaged(key: str) -> bytes | None:
    *packages, name = key.split("/")
    try:
        return resources.files(".".join(["tzdata", "zoneinfo", *packages])).joinpath(name).read_bytes()
    except (ImportError, OSError, ValueError) as error:
        if is_short(error):
            raise
        return None  # it does not exist, or is a directory


def _file(path: str) -> bytes | None:
    try:
        with open(path, "rb") as file:
            return file.read(_LARGEST_BYTES)
    except (OSError, ValueError) as error:
        if is_short(error):
            raise
        return None  # it does not exist, is a directory, or has too long a name


# -- offsets, in seconds --------------------------------------------------------------------------------------------


def offset_at(zone: ZoneInfo, instant: int) -> int:
    """Return how far the clock of a zone is ahead of UTC at an instant in Unix seconds."""
    return _seconds(datetime.fromtimestamp(instant, zone).utcoffset())


def offsets_at(zone: ZoneInfo, local: int) -> tuple[int, int]:
    """Return both offsets that a local time may have: they differ where the clock shows it twice, or skips it.

    For a time shown twice, the offset of the earlier pass comes first; for a skipped one, the offset before the gap.
    """
    at = _EPOCH + timedelta(seconds=local)
    return _seconds(zone.utcoffset(at)), _seconds(zone.utcoffset(at.replace(fold=1)))


def year_of(instant: int) -> int:
    """Return the year of an instant, in UTC."""
    return datetime.fromtimestamp(instant, UTC).year


@lru_cache(maxsize=4096)
def changes(zone: ZoneInfo, year: int) -> tuple[tuple[int, int], ...]:
    """Return how a zone's offset changes in a year of UTC: the instant of each change, and the offset from then on.

    Compares offsets a day apart: no zone ever returned to an offset in less than six days.
    """
    at = (date(year, 1, 1) - _EPOCH.date()).days * _DAY_S - 1
    end = at + (366 if date(year, 12, 31).timetuple().tm_yday == 366 else 365) * _DAY_S
    found, offset = [], offset_at(zone, at)
    while at < end:
        following = min(at + _DAY_S, end)
        if offset_at(zone, following) != offset:
            instants, before = range(at + 1, following + 1), offset
            at = instants[bisect_left(instants, True, key=lambda instant, o=before: offset_at(zone, instant) != o)]  # type: ignore[misc]
            offset = offset_at(zone, at)
            found.append((at, offset))
        else:
            at = following
    return tuple(found)


def _seconds(offset: timedelta | None) -> int:
    assert offset is not None  # noqa: S101 -- a ZoneInfo always has one
    return offset.days * _DAY_S + offset.seconds
