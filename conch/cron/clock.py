"""The wall clock of a host among others: which hosts' clocks it goes with, and whether it was set."""

import time
from collections.abc import Callable
from statistics import median

from conch.core import clock

# More than this apart is worth a warning, and costs the first place at a tick.
SKEW_S = 1.0


class FleetClock:
    """Wall-clock time (seconds since the epoch) as the fleet has it.

    Other hosts tell their time when they write their node key; kept as the distance to CLOCK_BOOTTIME, it shows at
    once when our own clock is set. A clock that two or more others, which agree, contradict by more than a second is
    not followed: theirs is.
    """

    def __init__(self, wall: Callable[[], float] = time.time) -> None:
        self._wall = wall
        self._others: dict[str, float] = {}

    def heard(self, host: str, at: float) -> None:
        """Another host wrote its time just now."""
        self._others[host] = at - clock.now()

    def forget(self, host: str) -> None:
        """It is gone."""
        self._others.pop(host, None)

    def skew_s(self) -> float:
        """How far our own clock is ahead of the others' (their median); 0 where there are none."""
        if not self._others:
            return 0.0
        return self._wall() - clock.now() - median(self._others.values())

    def now(self) -> float:
        """The time to go by."""
        skew_s = self.skew_s()
        outvoted = (
            abs(skew_s) > SKEW_S
            and len(self._others) >= 2
            and max(self._others.values()) - min(self._others.values()) <= SKEW_S
        )
        return self._wall() - skew_s if outvoted else self._wall()

    def own(self) -> float:
        """What our own clock says."""
        return self._wall()
