"""HTTP/1.1 as etcd's JSON gateway speaks it, without a socket: requests to bytes, bytes of an answer to its parts.

Pure. Anything that is not such an answer raises `BadAnswer`.
"""

from conch.enums import Enum
from conch.etcd.answers import BadAnswer
from conch.record import Record
from conch.static_typing import Sequence

# No answer, line of a stream or chunk is larger.
LARGEST_BYTES = 64 << 20
_HEAD_BYTES = 65536

# A server in Go reads no more of a request once it answers, unless the connection is not to be used again.
CLOSE = b"Connection: close"
CHUNKED = b"Transfer-Encoding: chunked"


def content_length(body: bytes) -> bytes:
    """Return the header that announces this body."""
    return b"Content-Length: %d" % len(body)


def chunk(data: bytes) -> bytes:
    """Return `data` as a chunk of a request."""
    return b"%x\r\n%s\r\n" % (len(data), data)


def request(path: str, host: str, headers: Sequence[bytes], token: str | None, body: bytes) -> bytes:
    """Return the bytes of a POST; `headers` say how the body is framed.

    A member without a leader answers a request with `hasleader` immediately, instead of keeping us waiting.
    """
    lines = [b"POST %s HTTP/1.1" % path.encode(), b"Host: " + host.encode(), b"Grpc-Metadata-hasleader: true", *headers]
    if token is not None:
        lines.append(b"Authorization: " + token.encode("latin-1", "replace"))
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


class Head(Record):
    """An answer's status and its headers, their names in lower case."""

    status: int
    headers: dict[bytes, bytes]


class Expected(Enum):
    """What the next bytes of an answer are."""

    HEAD = "head"
    SIZED_DATA = "sized data"
    CHUNK_SIZE = "chunk size"
    CHUNK_DATA = "chunk data"
    CHUNK_END = "chunk end"
    TRAILERS = "trailers"
    NOTHING = "nothing"


_NEXT = {
    Expected.HEAD: frozenset({Expected.SIZED_DATA, Expected.CHUNK_SIZE, Expected.NOTHING}),
    Expected.SIZED_DATA: frozenset({Expected.NOTHING}),
    Expected.CHUNK_SIZE: frozenset({Expected.CHUNK_DATA, Expected.TRAILERS}),
    Expected.CHUNK_DATA: frozenset({Expected.CHUNK_END}),
    Expected.CHUNK_END: frozenset({Expected.CHUNK_SIZE}),
    Expected.TRAILERS: frozenset({Expected.NOTHING}),
    Expected.NOTHING: frozenset[Expected](),
}


class AnswerParser:
    """Reads one answer: `feed` it bytes as they arrive, then take the head, then data until it is `complete`."""

    def __init__(self) -> None:
        self.expected = Expected.HEAD
        self._buffer = bytearray()
        self._remaining = 0  # bytes of the body, or of the chunk, that are still to come

    @property
    def complete(self) -> bool:
        """Whether the whole answer was read."""
        return self.expected is Expected.NOTHING

    @property
    def surplus(self) -> bool:
        """Whether bytes arrived that are no part of the answer."""
        return self.complete and bool(self._buffer)

    def feed(self, data: bytes) -> None:
        """Add bytes that arrived."""
        self._buffer += data

    def head(self) -> Head | None:
        """Return status and headers; None: more bytes are needed."""
        text = self._until(b"\r\n\r\n", "headers without end")
        if text is None:
            return None
        first, *lines = text.split(b"\r\n")
        words = first.split(None, 2)
        speaks_http = len(words) > 1 and words[0].startswith(b"HTTP/1.") and len(words[1]) == 3 and words[1].isdigit()
        if not speaks_http:
            raise BadAnswer("it does not speak HTTP (does it want https?)")
        headers = {}
        for line in lines:
            name, _, value = line.partition(b":")
            headers[name.strip().lower()] = value.strip()
        self._expect_body(headers)
        return Head(int(words[1]), headers)

    def data(self) -> bytes:
        """Return the next bytes of the body; none: more must be fed, unless the answer is complete."""
        while True:
            match self.expected:
                case Expected.SIZED_DATA | Expected.CHUNK_DATA:
                    return self._take_data()
                case Expected.CHUNK_SIZE:
                    line = self._until(b"\r\n", "a line without end")
                    if line is None:
                        return b""
                    self._remaining = _size(line.partition(b";")[0], 16, "a chunk")
                    self._enter(Expected.CHUNK_DATA if self._remaining else Expected.TRAILERS)
                case Expected.CHUNK_END:
                    if len(self._buffer) < 2:
                        return b""
                    del self._buffer[:2]
                    self._enter(Expected.CHUNK_SIZE)
                case Expected.TRAILERS:
                    line = self._until(b"\r\n", "a line without end")
                    if line is None:
                        return b""
                    if not line:
                        self._enter(Expected.NOTHING)
                case _:
                    return b""

    def _enter(self, expected: Expected) -> None:
        if expected not in _NEXT[self.expected]:
            raise RuntimeError(f"an answer cannot go from {self.expected.value} to {expected.value}")
        self.expected = expected

    def _expect_body(self, headers: dict[bytes, bytes]) -> None:
        if headers.get(b"transfer-encoding", b"").lower() == b"chunked":
            self._enter(Expected.CHUNK_SIZE)
            return
        self._remaining = _size(headers.get(b"content-length", b""), 10, "an answer")
        self._enter(Expected.SIZED_DATA if self._remaining else Expected.NOTHING)

    def _take_data(self) -> bytes:
        data = bytes(self._buffer[: self._remaining])
        del self._buffer[: len(data)]
        self._remaining -= len(data)
        if not self._remaining:
            self._enter(Expected.NOTHING if self.expected is Expected.SIZED_DATA else Expected.CHUNK_END)
        return data

    def _until(self, mark: bytes, endless: str) -> bytes | None:
        """Take what stands before `mark`; None: it has not arrived yet."""
        end = self._buffer.find(mark)
        if end < 0:
            if len(self._buffer) > _HEAD_BYTES:
                raise BadAnswer(endless)
            return None
        text = bytes(self._buffer[:end])
        del self._buffer[: end + len(mark)]
        return text


def _size(digits: bytes, base: int, name: str) -> int:
    try:
        size = int(digits, base)
    except ValueError:
        raise BadAnswer(f"{name} of unknown length") from None
    if not 0 <= size <= LARGEST_BYTES:
        raise BadAnswer(f"{name} of odd length")
    return size
