"""What a write-ahead log finds in its folder when it is opened, after a clean close or after a crash.

Recovery keeps all records before the first bad one, and puts the rest aside as `*.damaged`. It never allows a number
that may have been used before.
"""

import re
from pathlib import Path

from conch.cron.wal_files import Segment, first_of, load, save, sync_folder
from conch.cron.wal_format import HEAD_BYTES, HEADER_BYTES, TORN, decode_header, scan_records

_SEGMENT = re.compile(r"\d{20}\.wal")
_DAMAGED = re.compile(r"(\d{20})\.wal\.\d+\.damaged")  # with the offset at which the damage begins


class Recovery:
    """Puts a folder in order, and says where the log continues. Raises OSError if that is not possible.

    `segments` are the good ones, oldest first; `last` is the newest durable record, `next` the number that the next
    one gets; records up to `mark` are truncated. `damage` is empty, or one line that says what was put aside.
    """

    def __init__(self, folder: Path) -> None:
        self.segments: list[Segment] = []
        self.last = 0
        self.next = 1
        self.mark = 0
        self.damage = ""
        self._recover(folder)

    def _recover(self, folder: Path) -> None:
        for path in folder.iterdir():
            if match := _DAMAGED.fullmatch(path.name):
                self._skip_numbers(int(match[1]), path)
        paths = sorted(path for path in folder.iterdir() if _SEGMENT.fullmatch(path.name))
        headers = [decode_header(load(path, HEADER_BYTES), first_of(path)) for path in paths]
        self.mark = max((header.mark for header in headers if header), default=0)
        self.next = max(self.next, self.mark + 1)
        damaged_bytes = 0
        for path, header, following in zip(paths, headers, [*headers[1:], None], strict=False):
            limit = following.last_before if following else None
            if limit is not None and limit <= self.mark:
                path.unlink()
            else:
                newest = path == paths[-1]
                damaged_bytes += self._recover_segment(path, limit, has_header=header is not None, newest=newest)
        if self.damage:
            self.damage += f"; {damaged_bytes} bytes were put aside as *.damaged"
        sync_folder(folder)
        self.next = max(self.next, self.last + 1)

    def _recover_segment(self, path: Path, limit: int | None, *, has_header: bool, newest: bool) -> int:
        """Keep a segment as far as it is good; put aside the rest and all later ones. Returns how many bytes that is.

        `limit` is the last record that counts in it, as the next segment says; `has_header`: its header is good.
        """
        data, first = load(path), first_of(path)
        end, fault = 0, "not a segment"
        if not has_header and newest and (len(data) < HEADER_BYTES or not data.strip(b"\0")):
            # A crash while it was made: there is nothing in it, but its number was reached.
            path.unlink()
            self.next = max(self.next, first)
            return 0
        if has_header and not self.damage:
            end, last, fault = scan_records(data, first, limit)
            self.last = last if last >= first else self.last
            self.segments.append(Segment(path, end, self.last))
            if not fault or (newest and fault == TORN):
                return 0
        self.damage = self.damage or f"{path} is damaged at byte {end}: {fault}"
        self._skip_numbers(first, path)
        aside = path.with_name(f"{path.name}.{end}.damaged")
        if end:
            save(aside, data)  # the good part stays under its own name
        else:
            path.rename(aside)
        return len(data) - end

    def _skip_numbers(self, first: int, path: Path) -> None:
        """Use no number that may have been used in this damaged file: it has room for only so many."""
        self.next = max(self.next, first + path.stat().st_size // HEAD_BYTES + 1)
