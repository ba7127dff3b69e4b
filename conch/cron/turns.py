"""Waiting for our turn at a tick: the hosts before us in line go first."""

from collections.abc import Callable

from conch.cron.fleet import TURN_S, Fleet
from conch.cron.ticks import PendingTick


class Turns:
    """Keeps the hosts of a fleet from claiming the same ticks."""

    def __init__(
        self,
        fleet: Fleet,
        *,
        wall_clock: Callable[[], float],
        are_we_claiming: Callable[[], bool],
        draining: Callable[[], bool],
    ) -> None:
        self._fleet = fleet
        self._wall_clock = wall_clock
        self._are_we_claiming = are_we_claiming
        self._draining = draining

    async def wait(self, tick: PendingTick) -> None:
        """Return when it is our turn, or the tick is cancelled.

        With many ticks at one moment, hosts need longer than a turn. So while a host before us claims ticks, or we do,
        we leave it the tick, for up to half of the time in which it can be claimed: else all would try to claim all.
        """
        turn = self._fleet.turn(*tick.id)
        if not turn.wait_s:
            return
        await tick.alarm.wait(turn.wait_s)
        patience = (tick.tick + tick.deadline) / 2
        while not (tick.cancelled or self._draining()) and self._wall_clock() < patience:
            if not (self._are_we_claiming() or self._fleet.are_claiming(turn.before)):
                return
            await tick.alarm.wait(TURN_S)
