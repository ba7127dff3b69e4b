"""HTTP without a socket: bytes in, parts of an answer out, however the bytes are cut."""

from collections.abc import Iterator
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conch.etcd.answers import BadAnswer
from conch.etcd.gateway_protocol import LARGEST_BYTES, AnswerParser, Expected, Head, chunk, request

SIZED = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-Odd : a:b \r\n\r\nhello"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n3\r\nhel\r\n2;x=y\r\nlo\r\n0\r\nTrailer: 1\r\n\r\n"
EMPTY = b"HTTP/1.0 204 Nothing\r\nContent-Length: 0\r\n\r\n"


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    """The data cut at these places."""
    ends = sorted({min(cut, len(data)) for cut in cuts} | {0, len(data)})
    return [data[start:end] for start, end in pairwise(ends)]


def read(*fed: bytes) -> tuple[Head | None, bytes, AnswerParser]:
    """What a parser makes of these bytes, fed as they are needed."""
    parser, more = AnswerParser(), iter(fed)
    head = None
    while head is None and feed(parser, more):
        head = parser.head()
    body = b""
    while head is not None and not parser.complete:
        data = parser.data()
        body += data
        if not data and not parser.complete and not feed(parser, more):
            break
    for rest in more:
        parser.feed(rest)
    return head, body, parser


def feed(parser: AnswerParser, more: Iterator[bytes]) -> bool:
    data = next(more, None)
    if data is not None:
        parser.feed(data)
    return data is not None


@given(st.sampled_from([SIZED, CHUNKED]), st.lists(st.integers(0, 120), max_size=8))
def test_answer_is_the_same_however_its_bytes_arrive(answer: bytes, cuts: list[int]) -> None:
    """Each part is waited for; nothing is left over."""
    head, body, parser = read(*pieces(answer, cuts))
    assert head is not None
    assert (head.status, body) == (200, b"hello")
    assert parser.complete
    assert not parser.surplus


def test_headers_are_read_by_their_names_in_lower_case() -> None:
    """Blanks around them do not count."""
    head, _, _ = read(SIZED)
    assert head is not None
    assert head.headers == {b"content-length": b"5", b"x-odd": b"a:b"}


def test_answer_without_a_body_is_complete_with_its_head() -> None:
    """No byte is waited for."""
    head, body, parser = read(EMPTY)
    assert head is not None
    assert (head.status, body, parser.expected) == (204, b"", Expected.NOTHING)


@pytest.mark.parametrize("answer", [SIZED, CHUNKED, EMPTY])
def test_bytes_after_an_answer_are_seen(answer: bytes) -> None:
    """Such a connection must not be used again."""
    _, body, parser = read(answer + b"H")
    assert body in (b"hello", b"")
    assert parser.surplus


@pytest.mark.parametrize("answer", [SIZED, CHUNKED])
def test_answer_that_is_cut_short_is_never_complete(answer: bytes) -> None:
    """Wherever it ends."""
    for end in range(len(answer)):
        assert not read(answer[:end])[2].complete


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"SSH-2.0-x\r\n\r\n", "does not speak HTTP"),
        (b"\x15\x03\x01\x00\x02\x02\r\n\r\n", "does not speak HTTP"),
        (b"HTTP/1.1 2000 x\r\n\r\n", "does not speak HTTP"),
        (b"HTTP/1.1\r\n\r\n", "does not speak HTTP"),
        (b"HTTP/1.1 200 OK\r\n\r\n", "an answer of unknown length"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", "an answer of odd length"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (LARGEST_BYTES + 1), "an answer of odd length"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n", "a chunk of unknown length"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n", "a chunk of odd length"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfffffffff\r\n", "a chunk of odd length"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1" * 70_000, "a line without end"),
        (b"HTTP/1.1 200 OK\r\n" + b"X" * 70_000, "headers without end"),
    ],
)
def test_bytes_that_no_gateway_sends_are_a_bad_answer(answer: bytes, message: str) -> None:
    """Each with its reason."""
    with pytest.raises(BadAnswer, match=message):
        read(answer)


@given(st.binary(max_size=200), st.lists(st.integers(0, 200), max_size=4))
def test_any_bytes_are_read_or_a_bad_answer(data: bytes, cuts: list[int]) -> None:
    """No other exception, after a good head, too."""
    for prefix in (b"", SIZED[:32], CHUNKED[:47], CHUNKED[:51]):
        try:
            read(*pieces(prefix + data, cuts))
        except BadAnswer as error:
            assert str(error)  # noqa: PT017 - it says why


def test_request_has_its_framing_and_its_token() -> None:
    """A member without a leader is to say so."""
    sent = request("/v3/watch", "[::1]:2379", (b"Transfer-Encoding: chunked",), "tök", chunk(b"{}" * 8))
    assert sent == (
        b"POST /v3/watch HTTP/1.1\r\nHost: [::1]:2379\r\nGrpc-Metadata-hasleader: true\r\n"
        b"Transfer-Encoding: chunked\r\nAuthorization: t\xf6k\r\n\r\n10\r\n{}{}{}{}{}{}{}{}\r\n"
    )
    assert b"Authorization" not in request("/", "h", (), None, b"")
