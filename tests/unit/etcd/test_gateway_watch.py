"""A stream of watches over the gateway, on lines of our own."""

from base64 import b64encode
from collections.abc import Callable, Iterator
from typing import Any

from conch.etcd.gateway_watch import WatchStream
from conch.etcd.store import Range

HEADER = {"revision": "5", "member_id": "1", "raft_term": "2"}
MADE = {"header": HEADER, "created": True}
REFUSED = {"header": HEADER, "watch_id": "-1", "created": True, "canceled": True}
KEY = {"key": b64encode(b"k").decode(), "create_revision": "5", "mod_revision": "5"}
EVENT = {"header": HEADER, "events": [{"kv": KEY}]}


class Lines:
    """What is answered; None is a silence."""

    def __init__(self, *lines: dict[str, Any] | None) -> None:
        self._lines = lines
        self.requests = 0

    def answers(self, _silence_s: Callable[[], float], on_silence: Callable[[], None]) -> Iterator[dict[str, Any]]:
        for line in self._lines:
            if line is None:
                on_silence()
            else:
                yield line

    def add(self, _request: bytes) -> bool:
        self.requests += 1
        return True


def kinds(lines: Lines) -> list[str]:
    client: Any = None
    stream: Any = lines
    found = WatchStream(client, stream, 1, False, lambda: None)
    shown: list[str] = []
    for answer in found:
        if answer.created and not shown:
            found.add(Range(b"other"), 6)
        shown.append("canceled" if answer.canceled else "created" if answer.created else "events")
    return shown


def test_answer_to_a_probe_is_known_by_its_place() -> None:
    """Whatever comes between the two; and a watch that is refused is not taken for it."""
    assert kinds(Lines(MADE, MADE, None, EVENT, REFUSED, EVENT)) == ["created", "created", "events", "events"]
    assert kinds(Lines(MADE, None, MADE, EVENT, REFUSED, EVENT)) == ["created", "created", "events", "events"]
    assert kinds(Lines(MADE, None, REFUSED, REFUSED)) == ["created", "canceled"]
