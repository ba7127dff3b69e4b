"""Limits what a lasting fault costs: a circuit breaker for requests, a throttle for log lines."""

import random
from collections.abc import Callable
from typing import Any

from conch.core import clock

_FIRST_S, _MOST_S = 0.1, 3.0
_EVERY_S = 60.0

Log = Callable[..., None]


class Breaker:
    """A circuit breaker: after a failure all wait but one probe a pause, until something succeeds.

    The pause doubles up to 3 s and has a random part, so that the daemons of a fleet do not probe together.
    """

    def __init__(self, spread: Callable[[], float] = random.random) -> None:
        """`spread` draws from 0 to 1."""
        self._spread = spread
        self._pause_s = _FIRST_S
        self.reason = ""  # of the newest failure; empty while nothing fails

    @property
    def is_open(self) -> bool:
        """Whether all but the probe must wait; may be read from any thread."""
        return bool(self.reason)

    def failed(self, reason: str) -> bool:
        """Something failed; whether it is the first since the last success."""
        first = not self.is_open
        self.reason = reason or "unknown"
        if first:
            self._pause_s = _FIRST_S
        return first

    def next_pause_s(self) -> float:
        """How long to wait before the next probe, in seconds."""
        pause_s, self._pause_s = self._pause_s, min(2 * self._pause_s, _MOST_S)
        return pause_s * (0.5 + self._spread() / 2)

    def succeeded(self) -> bool:
        """Something succeeded; whether it ends a fault."""
        was_open, self.reason = self.is_open, ""
        return was_open


class Lasting:
    """Logs a lasting fault: one line when it begins, one a minute, and one, `fault-over`, when it ends.

    What happens between two lines is counted (`times`), and merged where `merge` says how two become one.
    """

    def __init__(
        self,
        event: str,
        log: Log,
        *,
        level: str = "warning",
        merge: Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]] | None = None,
        now: Callable[[], float] = clock.now,
    ) -> None:
        """`log(level, event, **fields)` writes a line; `now` is a clock in seconds."""
        self._event = event
        self._log = log
        self._level = level
        self._merge = merge
        self._now = now
        self._began: float | None = None
        self.reason = ""  # of the newest time, if it has one
        self._said_at = self._last_at = 0.0
        self._times = 0  # since it began
        self._unsaid_times = 0
        self._unsaid: dict[str, Any] | None = None

    @property
    def lasts(self) -> bool:
        """Whether it has begun and is not over."""
        return self._began is not None

    @property
    def times(self) -> int:
        """How often it has happened since it began."""
        return self._times

    def quiet_s(self) -> float:
        """How long it has not happened, in seconds."""
        return self._now() - self._last_at

    def failed(self, **fields: Any) -> None:
        """It happened (again)."""
        now = self._last_at = self._now()
        self._times += 1
        self.reason = str(fields.get("msg", ""))
        self._unsaid_times += 1
        both = self._unsaid is not None and self._merge is not None
        self._unsaid = self._merge(self._unsaid, fields) if both else fields  # type: ignore[misc, arg-type]
        if self._began is None:
            self._began = now
            self._say()
        elif now - self._said_at >= _EVERY_S:
            self._say()

    def over(self) -> None:
        """It does not happen any more. What happened once only needs no word on its end."""
        if self._began is None:
            return
        if self._unsaid is not None and self._merge is not None:
            self._say()  # what is counted must be said
        if self._times > 1:
            for_s = round(self._now() - self._began, 1)
            self._log(self._level, "fault-over", fault=self._event, times=self._times, for_s=for_s)
        self._began, self._times, self._unsaid_times, self._unsaid = None, 0, 0, None

    def _say(self) -> None:
        counted = {"times": self._unsaid_times} if self._unsaid_times > 1 else {}
        self._log(self._level, self._event, **{**(self._unsaid or {}), **counted})
        self._said_at, self._unsaid_times, self._unsaid = self._now(), 0, None
