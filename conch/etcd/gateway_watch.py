"""A watch's stream over etcd's JSON gateway, which finds out whether a silent stream still works."""

from conch.enums import Enum
from conch.etcd import gateway_codec as codec
from conch.etcd.answers import BadAnswer
from conch.etcd.gateway_http import SILENCE_S, Gateway, Stream
from conch.etcd.store import Range
from conch.etcd.watch import Answer
from conch.static_typing import Callable, Iterator
from conch.threads import Lock

# A stream that was asked whether it still works has this long to answer.
ALIVE_S = 1.5
# Who watches for deletions alone is a keeper: its renewals notice a silent member sooner than the stream would.
_DELETES_SILENCE_S = 15.0


class _Sent(Enum):
    """What was sent on a stream; etcd answers in the order of the requests."""

    WATCH = "watch"
    PROBE = "probe"


class WatchStream:
    """A watch's stream. After a silence it asks whether it still is one, and whether all its watches were made."""

    def __init__(
        self, client: Gateway, stream: Stream, requested: int, deletes_only: bool, check_alive: Callable[[], None]
    ) -> None:
        """`requested` watches were asked for as it was opened; `check_alive` raises unless the member answers."""
        self.client = client
        self._stream = stream
        self._requested = requested
        self._confirmed = 0
        self._requested_at_silence: int | None = None  # of the silence before, if there was one
        self._probing = False  # a probe was sent, and nothing has arrived since
        self._unanswered = [_Sent.WATCH] * requested
        self._sending = Lock()
        self._deletes_only = deletes_only
        self._check_alive = check_alive

    def __iter__(self) -> Iterator[Answer]:
        for parsed in self._stream.answers(self._silence_s, self._on_silence):
            answer = codec.watch_answer(parsed)
            self._probing = False
            if answer.created and self._unanswered and self._unanswered.pop(0) is _Sent.PROBE:
                continue
            self._confirmed += answer.created
            yield answer

    def add(self, what: Range, revision: int) -> bool:
        self._requested += 1
        return self._send(_Sent.WATCH, codec.watch(what, revision, deletes_only=self._deletes_only))

    def _send(self, kind: _Sent, request: bytes) -> bool:
        with self._sending:
            self._unanswered.append(kind)  # first: its answer may arrive before `add` returns
            sent = self._stream.add(request)
            if not sent:
                self._unanswered.pop()
            return sent

    def cancel(self) -> None:
        self._stream.cancel()

    def close(self) -> None:
        self._stream.close()

    def _silence_s(self) -> float:
        if self._probing:
            return ALIVE_S
        return _DELETES_SILENCE_S if self._deletes_only and self._confirmed >= self._requested else SILENCE_S

    def _on_silence(self) -> None:
        if self._probing:
            raise TimeoutError("the stream does not answer")
        if self._confirmed < self._requested == self._requested_at_silence:
            # a proxy between us and etcd may hold requests back
            raise BadAnswer("not all watches of a stream were confirmed")
        self._requested_at_silence = self._requested
        # the stream itself is asked where it takes requests: other requests may go to another member
        self._probing = self._send(_Sent.PROBE, codec.probe())
        if not self._probing:
            self._check_alive()
