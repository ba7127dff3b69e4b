"""The light driver's stream of watches, on lines of our own."""

from base64 import b64encode
from collections.abc import Callable, Iterator
from typing import Any

from conch.etcd.gateway_store import _Stream
from conch.etcd.store import Range

HEADER = {"revision": "5", "member_id": "1", "raft_term": "2"}
MADE = {"header": HEADER, "created": True}
REFUSED = {"header": HEADER, "watch_id": "-1", "created": True, "canceled": True}
KEY = {"key": b64encode(b"k").decode(), "create_revision": "5", "mod_revision": "5"}
EVENT = {"header": HEADER, "events": [{"kv": KEY}]}


class LineWriter:
    """What is answered; None is a silence."""

    def __init__(self, *lines: dict[str, Any] | None) -> None:
        self._lines = lines
        self.on_silence: Callable[[], None] = lambda: None
        self.silence_s: Callable[[], float] = lambda: 0.0
        self.requests = 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for line in self._lines:
            if line is None:
                self.on_silence()
            else:
                yield line

    def add(self, _request: bytes) -> bool:
        self.requests += 1
        return True


def kinds(lines: LineWriter) -> list[str]:
    client: Any = None
    stream: Any = lines
    found = _Stream(client, stream, 1, False, lambda: None)
    shown: list[str] = []
    for answer in found:
        if answer.created and not shown:
            found.add(Range(b"other"), 6)
        shown.append("canceled" if answer.canceled else "created" if answer.created else "events")
    return shown


def test_answer_to_a_probe_is_known_by_its_place() -> None:
    """Whatever comes between the two; and a watch that is refused is not taken for it."""
    assert kinds(LineWriter(MADE, MADE, None, EVENT, REFUSED, EVENT)) == ["created", "created", "events", "events"]
    assert kinds(LineWriter(MADE, None, MADE, EVENT, REFUSED, EVENT)) == ["created", "created", "events", "events"]
    assert kinds(LineWriter(MADE, None, REFUSED, REFUSED)) == ["created", "canceled"]
