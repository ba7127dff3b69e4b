"""Whether the supervisor takes the orders of this keeper; asked for every tick before it is claimed."""

import os
from collections.abc import Callable

from conch.core import clock, procfs

# When a supervisor that does not take an order is taken for stopped, in seconds.
_UNANSWERED_S = 1.0
# How long one look at its process holds, in seconds: many ticks are claimed at one moment.
_LOOK_AGAIN_S = 0.01


class SupervisorCheck:
    """Knows the orders that the supervisor has not taken yet, and looks at its process."""

    def __init__(self, now: Callable[[], float] = clock.now) -> None:
        self._now = now
        self._pid = os.getppid()
        self._untaken: dict[str, float] = {}  # runs that it was ordered to start, since when; the oldest first
        self._took_at = 0.0  # the newest one that it took
        self._seen_running_at: float | None = None

    def ordered(self, run: str) -> None:
        """It was ordered to start this run."""
        self._untaken[run] = self._now()

    def taken(self, run: str) -> None:
        """It has started this run, or the run is over."""
        if self._untaken.pop(run, None) is not None:
            self._took_at = self._now()

    @property
    def untaken(self) -> int:
        """How many orders it has not taken yet."""
        return len(self._untaken)

    def is_answering(self) -> bool:
        """Whether it is alive, not stopped, and takes orders: one after the other if there are many."""
        now = self._now()
        oldest = next(iter(self._untaken.values()), now)
        if now - max(oldest, self._took_at) > _UNANSWERED_S:
            return False
        if self._seen_running_at is None or now - self._seen_running_at >= _LOOK_AGAIN_S:
            self._seen_running_at = now if self._is_running() else None
        return self._seen_running_at is not None

    def _is_running(self) -> bool:
        if os.getppid() != self._pid:
            return False  # it is dead
        try:
            supervisor = procfs.stat(self._pid)
        except OSError:
            return True  # /proc cannot be read now
        return supervisor is not None and supervisor.state not in "Tt"
