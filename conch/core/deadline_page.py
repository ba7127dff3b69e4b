"""The newest deadline of each hold, in memory that supervisor and keeper share."""

import mmap
import struct
import zlib

from conch.core.messages import Renewed


class DeadlinePage:
    """The newest deadline of each hold in shared memory, written by the keeper and read by the supervisor.

    A checksum shows the reader a half-finished write: it then keeps the deadline it had, which is older and so safe.
    Hold `number` has place `number % places`; the numbers of holds at one time must not share one.
    """

    _FORM = struct.Struct("=qd")
    _SUM = struct.Struct("=I")
    _BYTES = _FORM.size + _SUM.size

    def __init__(self, places: int = 1) -> None:
        self.places = places
        self._page = mmap.mmap(-1, places * self._BYTES)

    def publish(self, renewed: Renewed) -> None:
        """Publish the deadline for the reader to find."""
        record = self._FORM.pack(renewed.number, renewed.deadline)
        at = renewed.number % self.places * self._BYTES
        self._page[at : at + self._BYTES] = record + self._SUM.pack(zlib.crc32(record))

    def read(self, place: int = 0) -> Renewed | None:
        """Return the newest deadline of a place, None if there is none or it is just being written."""
        at = place * self._BYTES
        data = bytes(self._page[at : at + self._BYTES])
        record, checksum = data[: self._FORM.size], data[self._FORM.size :]
        if self._SUM.unpack(checksum)[0] != zlib.crc32(record):
            return None
        number, deadline = self._FORM.unpack(record)
        return Renewed(number, deadline)
