"""The end of what a run prints: its last 4 KiB, stdout and stderr in the order in which they were read."""

BYTES = 4096


class OutputTail:
    """Keeps the last bytes that are added, in bounded memory."""

    def __init__(self) -> None:
        self._data = b""

    def add(self, data: bytes) -> None:
        """Add what was read."""
        # one byte more than is kept tells whether the beginning is cut
        self._data = (self._data + data)[-BYTES - 1 :] if len(data) <= BYTES else data[-BYTES - 1 :]

    def text(self) -> str:
        """Return it as text of at most 4 KiB of UTF-8; a byte that is none of it is shown as U+FFFD.

        A character is never cut in half.
        """
        data = self._data
        if len(data) > BYTES:
            data = data[1:]
            begin = 0
            while begin < min(3, len(data)) and data[begin] & 0xC0 == 0x80:
                begin += 1  # the rest of a character whose beginning is cut
            data = data[begin:]
        # the replacement takes three bytes
        encoded = data.decode("utf-8", "replace").encode()
        return encoded[-BYTES:].decode("utf-8", "ignore")
