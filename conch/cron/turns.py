"""Waiting for our turn at a tick: the hosts before us in line go first."""

from collections.abc import Callable

from conch.cron.fleet import TURN_S, Fleet
from conch.cron.ticks import PendingTick

# How long a host may take to claim one tick of many, in seconds, before others try to.
_EACH_S = 0.01


class Turns:
    """Keeps the hosts of a fleet from claiming the same ticks."""

    def __init__(
        self,
        fleet: Fleet,
        *,
        wall_clock: Callable[[], float],
        pending: Callable[[], int],
        draining: Callable[[], bool],
    ) -> None:
        """`pending` is how many ticks are due and not known to be claimed."""
        self._fleet = fleet
        self._wall_clock = wall_clock
        self._pending = pending
        self._draining = draining
        self._ours: set[str] = set()  # runs of ticks at which we are the first, and whose claims are not settled

    async def wait(self, tick: PendingTick) -> None:
        """Return when it is our turn, or the tick is cancelled; `settle` follows once it is claimed or given up.

        With many ticks at one moment, hosts need longer than a turn. So while a host before us claims ticks, or we have
        some of our own to claim, we leave it the tick: else all hosts would try to claim all ticks. We do so for 10 ms
        a pending tick, and at most for half of the time in which this one can be claimed.
        """
        turn = self._fleet.turn(tick.job, tick.tick)
        if not turn.wait_s:
            self._ours.add(tick.run)
            return
        await tick.alarm.wait(turn.wait_s)
        gives_up_at = min((tick.due + tick.deadline) / 2, self._wall_clock() + self._pending() * _EACH_S)
        while not (tick.cancelled or self._draining()) and self._wall_clock() < gives_up_at:
            if not (self._ours or self._fleet.are_claiming(turn.before)):
                return
            await tick.alarm.wait(min(TURN_S, gives_up_at - self._wall_clock()))

    def settle(self, tick: PendingTick) -> None:
        """What becomes of the tick's claim is known."""
        self._ours.discard(tick.run)
