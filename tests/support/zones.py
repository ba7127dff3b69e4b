"""A zone database of a test's own, as `TZDIR` names it."""

import struct
from pathlib import Path


def zone_file(offset_s: int) -> bytes:
    """Return the file of a zone with a constant offset from UTC (RFC 8536, version 2)."""

    def block() -> bytes:
        return (
            struct.pack(">4sc15x6l", b"TZif", b"2", 0, 0, 0, 0, 1, 4) + struct.pack(">lBB", offset_s, 0, 0) + b"ZZZ\0"
        )

    return block() + block() + b"\n\n"


class Zones:
    """A folder of zone files, each replaced in one step, as a package manager does."""

    def __init__(self, folder: Path, release: str = "2026a") -> None:
        self.folder = folder
        folder.mkdir()
        self.release(release)

    @property
    def env(self) -> dict[str, str]:
        return {"TZDIR": str(self.folder)}

    def write(self, name: str, data: bytes) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_name(path.name + ".new")
        new.write_bytes(data)
        new.replace(path)

    def release(self, name: str) -> None:
        self.write("tzdata.zi", f"# version {name}\nR d 1916 o - Jun 14 23s 1 S\n".encode())

    def zone(self, key: str, offset_s: int) -> None:
        self.write(key, zone_file(offset_s))
