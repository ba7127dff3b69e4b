"""Follows the wall clocks of the fleet: warns of a skew, and stops claims while our own clock is wrong."""

from asyncio import TimerHandle
from collections.abc import Callable, Mapping
from typing import Any

from conch.core import clock
from conch.cron.fleet_clock import SKEW_S, FleetClock
from conch.cron.values import LAST_TICK
from conch.cron.workers import Tasks, Workers
from conch.times import rfc3339

Log = Callable[..., None]

# How long a newcomer waits for the others' clocks before it claims.
_MEET_S = 3.0
# How often a host whose clock is off asks the others for theirs, and how often each answers at most.
ASK_AGAIN_S = 5.0
# How often etcd's hosts are asked again while our clock is contradicted.
_ETCD_EVERY_S = 60.0
# After an interruption of the watch, events that were held up say the wrong time for so long.
_DEAF_S = 5.0


class ClockCheck:
    """Compares our wall clock with the others' and, where these contradict it, with that of etcd's hosts.

    `is_off` says that our clock is wrong: nothing is to be planned or claimed by it.
    """

    def __init__(
        self,
        fleet_clock: FleetClock,
        host: str,
        tasks: Tasks,
        workers: Workers,
        log: Log,
        *,
        etcd_time: Callable[[], float | None],
        publish: Callable[[], object],
        corrected: Callable[[], None],
    ) -> None:
        """`etcd_time` asks etcd's hosts, `publish` writes our time, `corrected` is called when ours is right again."""
        self._clock = fleet_clock
        self._host = host
        self._tasks = tasks
        self._workers = workers
        self._log = log
        self._etcd_time = etcd_time
        self._publish = publish
        self._corrected = corrected
        self.is_off = False
        self._off_count = 0  # how often it was found to be off
        self._warned_of_skew = False
        self._asking_etcd = False
        self._next_question: TimerHandle | None = None
        self._unheard: set[str] = set()  # hosts whose clocks we wait for before the first claim,
        self._unheard_until = 0.0  # but not longer than this
        self._deaf_until = 0.0

    def meet(self, hosts: Mapping[str, Any]) -> None:
        """Wait a little for the clocks of the hosts that are there, before the first claim."""
        self._unheard = {host for host in hosts if host != self._host and not self._clock.knows(host)}
        self._unheard_until = clock.now() + _MEET_S

    def on_interrupted_watch(self) -> None:
        """The watch resumes after an interruption: the events that it brings first are old."""
        self._deaf_until = clock.now() + _DEAF_S

    def on_time(self, host: str, at: object) -> None:
        """Another host has just written the time on its clock."""
        sane = isinstance(at, int | float) and not isinstance(at, bool) and 0 < at < LAST_TICK
        if sane and clock.now() >= self._deaf_until:
            self._clock.heard(host, float(at))  # type: ignore[arg-type]
            self.check()
        self._unheard.discard(host)

    def on_host_gone(self, host: str) -> None:
        """A host is not registered any more."""
        self._clock.forget(host)
        self._unheard.discard(host)
        self.check()

    def check(self) -> None:
        """Compare the clocks anew: one was heard, or has gone, or ours was set."""
        skew_s = self._clock.skew_s()
        if abs(skew_s) > SKEW_S and not self._warned_of_skew:
            way = "ahead of" if skew_s > 0 else "behind"
            self._log("warning", "clock-skew", skew_s=skew_s, msg=f"this host's clock is {way} the others'")
        self._warned_of_skew = abs(skew_s) > SKEW_S
        if not self._clock.contradicted:
            self._clock.forget_etcd()
        elif self._clock.wants_etcd:
            self.ask_etcd()
        self.follow()

    def ask_etcd(self) -> None:
        """Ask etcd's hosts for the time: between two clocks that contradict each other a third one decides."""
        if not self._asking_etcd:
            self._asking_etcd = True
            self._tasks.spawn(self._ask_etcd())

    async def _ask_etcd(self) -> None:
        at = await self._workers.etcd(self._etcd_time)
        self._asking_etcd = False
        self._clock.heard_etcd(at)
        if self._next_question is not None:
            self._next_question.cancel()
        self._next_question = self._tasks.later(_ETCD_EVERY_S, self._ask_etcd_again)
        self.follow()

    def _ask_etcd_again(self) -> None:
        if self._clock.contradicted:
            self.ask_etcd()

    def follow(self) -> None:
        """Note whether our clock is off. While it is, ask the others for their times until it is right again."""
        off = self._clock.off
        if off == self.is_off:
            return
        self.is_off = off
        if off:
            self._log("error", "clock-off", skew_s=round(self._clock.skew_s(), 1), msg=self.why_off())
            self._off_count += 1
            self._ask_for_times(self._off_count)
        else:
            self._log("info", "clock-right", msg="this host's clock agrees with the others': claiming again")
            self._publish()
            self._corrected()

    def _ask_for_times(self, off_count: int) -> None:
        self.follow()
        if self.is_off and off_count == self._off_count:
            self._publish()  # our registration says that our clock is off: the others answer with theirs
            self._tasks.later(ASK_AGAIN_S, lambda: self._ask_for_times(off_count))

    def why_off(self) -> str:
        """For people: what is wrong with our clock."""
        if self._clock.before_release:
            return f"this host's clock shows {rfc3339(self._clock.own())}, before this release: claiming nothing"
        skew_s = self._clock.skew_s()
        way = "ahead of" if skew_s > 0 else "behind"
        return f"this host's clock is {abs(skew_s):.1f} s {way} the others': claiming nothing"

    def knows_the_time(self) -> bool:
        """Whether our clock is not off, and the hosts that were there before us have written their times."""
        return not self._clock.off and (not self._unheard or clock.now() >= self._unheard_until)
