"""How an acquisition asks etcd: until it answers, the supervisor cancels, or `--wait` runs out."""

from conch.core import clock
from conch.core.deadline import ANSWERS_WITHIN_S
from conch.errors import EXIT_NOT_ACQUIRED, EXIT_UNAVAILABLE, ConchError
from conch.etcd.patience import first_answer
from conch.etcd.store import Unreachable
from conch.keeper.hold_spec import HoldSpec
from conch.static_typing import Callable, TypeVar
from conch.threads import Event

_PAUSE_S, _PAUSE_MOST_S = 0.05, 2.0
# The least time that etcd is given for its first answer, however late the keeper got ready.
_LEAST_S = 0.2

_Answer = TypeVar("_Answer")


class Cancelled(Exception):
    """The supervisor has sent `Release`, which is still to be served: stop acquiring."""


class GaveUp(ConchError):
    """The acquisition failed for good: `--wait` ran out, or what `--nonblock` asks for is taken."""


class Calls:
    """Calls to etcd for one acquisition after the other, each limited by the time that is left for it.

    `cancelled` may be set and cleared from any thread; everything else belongs to the acquirer's.
    """

    def __init__(self, spec: HoldSpec, log: Callable[..., None]) -> None:
        self._spec = spec
        self._log = log
        self._answered = False  # etcd has answered this keeper at least once
        self._give_up_at: float | None = None
        self.cancelled = Event()

    def begin(self, give_up_at: float | None) -> None:
        """Start an acquisition that is given up at this time of CLOCK_BOOTTIME."""
        if give_up_at is not None and not self._answered:
            # the time that we took to get here must not leave etcd none
            give_up_at = max(give_up_at, clock.now() + _LEAST_S)
        self._give_up_at = give_up_at

    def lift_limit(self) -> None:
        """Queueing is over, and `--wait` limits only that."""
        self._give_up_at = None

    def check(self, error: Unreachable | None = None) -> None:
        """Raise `Cancelled` or `GaveUp` if this acquisition is to end; `error` is why etcd has not answered."""
        if self.cancelled.is_set():
            raise Cancelled
        if self._give_up_at is not None and clock.now() >= self._give_up_at:
            from conch.times import format_duration  # late: only this needs it

            wait = format_duration(self._spec.wait_s or 0.0)
            if not self._answered:
                raise GaveUp(str(error or f"etcd did not answer within {wait}"), code=EXIT_UNAVAILABLE)
            raise GaveUp(f"gave up waiting for {self._spec.what} after {wait}", code=EXIT_NOT_ACQUIRED)

    def left_s(self) -> float | None:
        """Return the seconds until this acquisition is given up; None: it never is."""
        return None if self._give_up_at is None else max(0.0, self._give_up_at - clock.now())

    def within_limit(self, limit_s: float) -> float:
        """Return `limit_s`, or the seconds that are left if those are fewer."""
        left_s = self.left_s()
        return limit_s if left_s is None else max(0.001, min(limit_s, left_s))

    @property
    def timeout_s(self) -> float:
        """The time limit of one request from now."""
        return self.within_limit(self._spec.connection.command_timeout_s)

    def until_answered(self, ask: Callable[[float], _Answer]) -> _Answer:
        """Call `ask(timeout_s)` until etcd answers; what else it raises ends that.

        Raises `Unreachable` if the very first answer takes too long, and under `--nonblock` if any does.
        """
        if not self._answered:
            answer = self._first_answer(ask)
            self._answered = True
            return answer
        pause_s = _PAUSE_S
        while True:
            self.check()
            try:
                return ask(self.timeout_s)
            except Unreachable as error:
                pause_s = self._pause(error, pause_s)

    def _first_answer(self, ask: Callable[[float], _Answer]) -> _Answer:
        """Under `--nonblock` etcd has the time of one request."""
        connection, pause_s = self._spec.connection, _PAUSE_S
        within_s = max(ANSWERS_WITHIN_S, connection.dial_timeout_s)
        if self._spec.nonblock:
            within_s = connection.command_timeout_s
        elif self._give_up_at is not None:
            within_s = self._give_up_at - clock.now()

        def ask_in_time(limit_s: float) -> _Answer:
            self.check()
            return ask(self.within_limit(limit_s))

        def pause(error: Unreachable) -> None:
            nonlocal pause_s
            pause_s = self._pause(error, pause_s)

        try:
            return first_answer(ask_in_time, connection, within_s=within_s, again=pause)
        except Unreachable as error:
            self.check(error)
            raise

    def _pause(self, error: Unreachable, pause_s: float) -> float:
        """Wait before the next try; return how long to wait before the one after it."""
        if self._spec.nonblock and self._answered:
            raise error
        self._log("warning", "retry", msg=str(error))
        self.cancelled.wait(self.within_limit(pause_s))
        self.check(error)
        return min(2 * pause_s, _PAUSE_MOST_S)
