"""Tells a monitoring service how runs of a job go, as healthchecks.io expects it: they start, and end well or badly.

The requests are made by a few threads, which exist only while there is something to send: no run waits for them.
"""

import hashlib
import random
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlsplit, urlunsplit

METRIC = "pings"
OUTCOMES = ("ok", "failed", "dropped")
TRIES, TRY_S = 3, 10.0
_PAUSE_S = 1.0
_THREADS, MOST_WAITING = 4, 1000

Send = Callable[[str, bytes, float], str]


@dataclass(frozen=True, slots=True)
class Ping:
    """A request about a run: `end` is appended to the path of the URL (empty, `start` or `fail`)."""

    run: str
    job: str
    tick: str
    url: str
    end: str
    body: str = ""

    @property
    def address(self) -> str:
        """The whole URL: that of the job, with the kind of the ping and an id that tells runs apart."""
        parts = urlsplit(self.url)
        path = "/".join(filter(None, (parts.path.rstrip("/"), self.end)))
        path = path if path.startswith("/") else f"/{path}"
        identity = uuid.UUID(bytes=hashlib.sha256(self.run.encode()).digest()[:16], version=4)
        query = "&".join(filter(None, (parts.query, f"rid={identity}")))
        return urlunsplit((parts.scheme, parts.netloc, path, query, ""))


def send_by_http(url: str, body: bytes, limit_s: float) -> str:
    """Send one request; return why it failed, or nothing. The HTTP library is loaded with the first."""
    from conch.cron.ping_http import post

    return post(url, body, limit_s)


class Pinger:
    """Sends pings: those of one run in order, each up to three times. What cannot wait is dropped, never in silence."""

    def __init__(
        self,
        done: Callable[[Ping, str, str], None],
        send: Send = send_by_http,
        *,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        """`done(ping, outcome, why)` is called in any thread; `send(url, body, limit_s)` returns why it failed."""
        self._done = done
        self._send = send
        self._pause = pause
        self._changed = threading.Condition()
        self._of_run: dict[str, deque[Ping]] = {}  # those of a run that a thread deals with stay, perhaps empty
        self._ready: deque[str] = deque()  # runs with pings that no thread deals with
        self._left = 0  # that are not sent yet
        self._threads = 0

    def put(self, ping: Ping) -> None:
        """Send this ping soon; never blocks."""
        with self._changed:
            room = self._left < MOST_WAITING
            if room:
                self._left += 1
                if ping.run not in self._of_run:
                    self._of_run[ping.run] = deque()
                    self._ready.append(ping.run)
                self._of_run[ping.run].append(ping)
            starts = room and bool(self._ready) and self._threads < _THREADS
            self._threads += starts
        if not room:
            self._done(ping, "dropped", f"{MOST_WAITING} pings wait already")
        if starts:
            try:
                threading.Thread(target=self._work, name="ping", daemon=True).start()
            except RuntimeError:  # no more threads: others go on, or the next ping tries again
                with self._changed:
                    self._threads -= 1

    def wait(self, limit_s: float) -> int:
        """Wait until everything is sent, or so long; return how many pings are left. They count as dropped."""
        with self._changed:
            self._changed.wait_for(lambda: not self._left, limit_s)
            return self._left

    def _work(self) -> None:
        while True:
            with self._changed:
                if not self._ready:
                    self._threads -= 1
                    return
                run = self._ready.popleft()
                ping = self._of_run[run].popleft()
            try:
                why = self._deliver(ping)
            except Exception as error:  # the top of a thread; a text of it could show the URL
                why = type(error).__name__
            self._done(ping, "failed" if why else "ok", why)
            with self._changed:
                self._left -= 1
                if self._of_run[run]:
                    self._ready.append(run)
                else:
                    del self._of_run[run]
                self._changed.notify_all()

    def _deliver(self, ping: Ping) -> str:
        body = ping.body.encode("utf-8", "replace")
        for number in range(TRIES):
            why = self._send(ping.address, body, TRY_S)
            if not why:
                return ""
            if number + 1 < TRIES:
                self._pause(_PAUSE_S * 2**number * (1 + random.random()) / 2)
        return why
