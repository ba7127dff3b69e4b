"""The newest deadline of each hold, in memory that supervisor and keeper share."""

import marshal
import mmap
from binascii import crc32

from conch.core.messages import Renewed


class DeadlinePage:
    """The newest deadline of each hold in shared memory, written by the keeper and read by the supervisor.

    A checksum shows the reader a half-finished write: it then keeps the deadline it had, which is older and so safe.
    Hold `number` has place `number % places`; the numbers of holds at one time must not share one.
    """

    # a number below 2**63 and a time take at most 28 bytes
    _RECORD_BYTES, _SUM_BYTES = 32, 4
    _BYTES = _RECORD_BYTES + _SUM_BYTES

    def __init__(self, places: int = 1) -> None:
        self.places = places
        self._page = mmap.mmap(-1, places * self._BYTES)

    def publish(self, renewed: Renewed) -> None:
        """Publish the deadline for the reader to find."""
        record = marshal.dumps((renewed.number, renewed.deadline)).ljust(self._RECORD_BYTES, b"\0")
        at = renewed.number % self.places * self._BYTES
        self._page[at : at + self._BYTES] = record + crc32(record).to_bytes(self._SUM_BYTES)

    def read(self, place: int = 0) -> Renewed | None:
        """Return the newest deadline of a place, None if there is none or it is just being written."""
        at = place * self._BYTES
        data = bytes(self._page[at : at + self._BYTES])
        record, checksum = data[: self._RECORD_BYTES], data[self._RECORD_BYTES :]
        if int.from_bytes(checksum) != crc32(record):
            return None
        number, deadline = marshal.loads(record)  # noqa: S302 - written by this very program
        return Renewed(number, deadline)
