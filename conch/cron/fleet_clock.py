"""The wall clock of a host among those of its fleet: whether the others agree with it, and which time to follow."""

import time
from collections.abc import Callable, Iterable
from statistics import median

from conch.core import clock

# More than this apart is worth a warning, and costs the first place at a tick.
SKEW_S = 1.0
# More than this apart, two clocks contradict each other.
APART_S = 5.0
# The beginning of the year of this release: no clock that shows less can be right.
_RELEASED = 1_767_225_600  # 2026-01-01


class FleetClock:
    """Wall-clock time (seconds since the epoch) as the fleet has it.

    Other hosts write their time into their node keys. It is kept as the distance to CLOCK_BOOTTIME, so that a step of
    our own clock shows immediately. A clock that two or more others, which agree, contradict by more than a second is
    not followed: theirs is. One that most of all clocks contradict by more than five seconds is `off`.
    """

    def __init__(self, wall: Callable[[], float] = time.time) -> None:
        self._wall = wall
        self._others: dict[str, float] = {}
        self._etcd: float | None = None
        self._etcd_asked = False

    def heard(self, host: str, at: float) -> None:
        """Another host has just written its time. A time from before this release is ignored."""
        if at < _RELEASED:
            self._others.pop(host, None)
        else:
            self._others[host] = at - clock.now()

    def heard_etcd(self, at: float | None) -> None:
        """The clocks of etcd's hosts have just shown this time; None: they could not be read."""
        if at is not None and at >= _RELEASED:
            self._etcd = at - clock.now()  # else their last time still counts, if there was one
        self._etcd_asked = True

    def forget(self, host: str) -> None:
        """The host is not registered any more."""
        self._others.pop(host, None)

    def knows(self, host: str) -> bool:
        """Whether the time of this host is known."""
        return host in self._others

    def skew_s(self) -> float:
        """How far our own clock is ahead of the others' (their median); 0 where there are none."""
        if not self._others:
            return 0.0
        return self._wall() - clock.now() - median(self._others.values())

    @property
    def contradicted(self) -> bool:
        """Whether any other clock of the fleet is more than five seconds apart from ours."""
        return self._contradicting(self._others.values()) > 0

    @property
    def wants_etcd(self) -> bool:
        """Whether the clock of etcd's hosts is to be asked, for it may decide."""
        return self.contradicted and not self._etcd_asked

    def forget_etcd(self) -> None:
        """Drop the time of etcd's hosts: it is old, or decides nothing any more."""
        self._etcd, self._etcd_asked = None, False

    @property
    def before_release(self) -> bool:
        """Whether our clock shows a time before this release."""
        return self._wall() < _RELEASED

    @property
    def off(self) -> bool:
        """Whether our clock is wrong: before this release, or contradicted by more clocks than agree with it.

        Where that is undecided, as between two hosts, the clock of etcd's hosts decides; until it was asked ours is
        off, and if it is not to be had ours is not.
        """
        if self.before_release:
            return True
        against = self._contradicting(self._others.values())
        if not against:
            return False
        agreeing = 1 + len(self._others) - against
        theirs = [other for other in self._others.values() if self._contradicting([other])]
        if against > agreeing and max(theirs) - min(theirs) <= APART_S:
            return True  # decided: an etcd on this very host would only repeat our clock
        if self._etcd is not None:
            etcd_against = self._contradicting([self._etcd])
            against, agreeing = against + etcd_against, agreeing + 1 - etcd_against
        return against > agreeing or (against == agreeing and not self._etcd_asked)

    def _contradicting(self, clocks: Iterable[float]) -> int:
        own = self._wall() - clock.now()
        return sum(abs(own - other) > APART_S for other in clocks)

    def now(self) -> float:
        """The time that this host follows."""
        skew_s = self.skew_s()
        outvoted = (
            abs(skew_s) > SKEW_S
            and len(self._others) >= 2
            and max(self._others.values()) - min(self._others.values()) <= SKEW_S
        )
        return self._wall() - skew_s if outvoted else self._wall()

    def own(self) -> float:
        """The time on our own clock."""
        return self._wall()
