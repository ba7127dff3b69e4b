"""Where ticks wait that cannot be claimed now: until there is room, or they are too late."""

from collections.abc import Callable
from dataclasses import dataclass

from conch.core import clock
from conch.cron.ticks import PendingTick
from conch.cron.workers import Tasks
from conch.cron.writes import Faults, WriteKind, Writes

# How often the room is looked over while a tick waits in it, in seconds.
HELD_BACK_S = 0.2
# A daemon that is full may be so at each tick: that is one fault.
_QUIET_S = 60.0


@dataclass(slots=True)
class _Waiting:
    tick: PendingTick
    not_before: float  # CLOCK_BOOTTIME
    is_probe: bool = False


class WaitingRoom:
    """Ticks that cannot be claimed now, in the order they came. One timer serves all; without ticks there is none."""

    def __init__(
        self,
        tasks: Tasks,
        writes: Writes,
        faults: Faults,
        *,
        why_closed: Callable[[bool], str],
        free: Callable[[], int],
        draining: Callable[[], bool],
        wall_clock: Callable[[], float],
        now: Callable[[], float] = clock.now,
    ) -> None:
        """`why_closed` says why no run could be started now (empty: one could); its argument is whether for a probe.

        `free` is how many more runs this daemon may have.
        """
        self._tasks = tasks
        self._writes = writes
        self._faults = faults
        self._why_closed = why_closed
        self._free = free
        self._draining = draining
        self._wall_clock = wall_clock
        self._now = now
        self._waiting: dict[str, _Waiting] = {}
        self._timer = False

    def why_closed(self, *, probe: bool = False) -> str:
        """Why no tick can be claimed now; empty if one can."""
        return self._why_closed(probe)

    async def wait(self, tick: PendingTick, *, pause_s: float = 0.0) -> bool:
        """Wait until the tick may be tried, is cancelled or is too late; whether it may be tried only as a probe.

        It is not tried before `pause_s` have passed.
        """
        waiting = self._waiting[tick.run] = _Waiting(tick, self._now() + pause_s)
        if not self._timer:
            self._timer = True
            self._tasks.later(HELD_BACK_S, self._on_timer)
        await tick.alarm.wait()
        self._waiting.pop(tick.run, None)
        return waiting.is_probe

    def admit(self) -> None:
        """Wake the ticks that can be claimed now, as many as there is room for, and those that are too late."""
        room = 0 if not self._waiting or self._why_closed(False) else self._free()
        if room > 0:
            self._look_over(room)

    def _look_over(self, room: int) -> None:
        wall, now = self._wall_clock(), self._now()
        for waiting in list(self._waiting.values()):
            tick = waiting.tick
            if self._draining() or wall > tick.deadline:
                self._wake(waiting)  # to be given up
            elif (
                room > 0
                and now >= waiting.not_before
                and not (tick.refused and not self._writes.may_retry(WriteKind.CLAIM))
            ):
                room -= 1
                self._wake(waiting)

    def probe(self) -> bool:
        """Let the first tick be claimed as a probe; whether there is one that could be."""
        if self._why_closed(True) or not self._waiting:
            return False
        waiting = next(iter(self._waiting.values()))
        waiting.is_probe = True
        self._wake(waiting)
        return True

    def _wake(self, waiting: _Waiting) -> None:
        del self._waiting[waiting.tick.run]
        waiting.tick.alarm.ring()

    def _on_timer(self) -> None:
        self._timer = False
        self._look_over(0 if self._why_closed(False) else self._free())
        if not self._waiting:
            return
        self._timer = True
        self._tasks.later(HELD_BACK_S, self._on_timer)
        fault, why = self._faults("held-back", level="info"), self._why_closed(False)
        if why and not self._writes.is_open:
            if not fault.lasts:
                self._tasks.later(_QUIET_S, self._end_fault)
            fault.failed(waiting=len(self._waiting), msg=why)

    def _end_fault(self) -> None:
        fault = self._faults("held-back", level="info")
        if self._waiting or fault.quiet_s() < _QUIET_S:
            self._tasks.later(_QUIET_S, self._end_fault)
        else:
            fault.over()
