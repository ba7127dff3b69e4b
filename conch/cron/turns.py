"""Waiting for our turn at a tick: the hosts before us in line go first."""

from collections.abc import Callable

from conch.cron.fleet import TURN_S, Fleet
from conch.cron.ticks import PendingTick


class Turns:
    """Keeps the hosts of a fleet from claiming the same ticks."""

    def __init__(self, fleet: Fleet, *, wall_clock: Callable[[], float], draining: Callable[[], bool]) -> None:
        self._fleet = fleet
        self._wall_clock = wall_clock
        self._draining = draining
        self._ours: set[str] = set()  # runs of ticks at which we are the first, and whose claims are not settled

    async def wait(self, tick: PendingTick) -> None:
        """Return when it is our turn, or the tick is cancelled; `settle` follows once it is claimed or given up.

        With many ticks at one moment, hosts need longer than a turn. So while a host before us claims ticks, or we have
        some of our own to claim, we leave it the tick, for up to half of the time in which it can be claimed: else all
        hosts would try to claim all ticks.
        """
        turn = self._fleet.turn(*tick.id)
        if not turn.wait_s:
            self._ours.add(tick.run)
            return
        await tick.alarm.wait(turn.wait_s)
        patience = (tick.tick + tick.deadline) / 2
        while not (tick.cancelled or self._draining()) and self._wall_clock() < patience:
            if not (self._ours or self._fleet.are_claiming(turn.before)):
                return
            await tick.alarm.wait(TURN_S)

    def settle(self, tick: PendingTick) -> None:
        """What becomes of the tick's claim is known."""
        self._ours.discard(tick.run)
