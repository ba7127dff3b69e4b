"""An event loop with a clock of its own, which jumps to the next timer instead of waiting; and ports for the parts."""

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from conch.cron.workers import Tasks, Workers

_T = TypeVar("_T")


class _Jumping(selectors.SelectSelector):
    loop: "VirtualLoop"

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready and timeout is None:
            raise AssertionError("every coroutine waits, and nothing will ever wake one")
        if not ready and timeout:
            self.loop.seconds += timeout
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """Time passes only when everything waits. `seconds` stands for CLOCK_BOOTTIME, `wall()` for the wall clock."""

    EPOCH = 1_800_000_000.0

    def __init__(self) -> None:
        selector = _Jumping()
        selector.loop = self
        self.seconds = 1000.0
        super().__init__(selector)

    def time(self) -> float:
        return self.seconds

    def wall(self) -> float:
        """The wall clock's time: it began at `EPOCH` with the loop."""
        return self.EPOCH + self.seconds - 1000.0

    def run(self, coroutine: Coroutine[Any, Any, _T]) -> _T:
        """Run to the end of this coroutine."""
        return self.run_until_complete(coroutine)

    def at(self, after_s: float, call: Callable[[], object]) -> None:
        """Have this called after so many seconds."""
        self.call_later(after_s, call)


class DirectWorkers(Workers):
    """Makes blocking calls on the spot, in no thread; each takes `call_s` seconds of the loop's time."""

    def __init__(self, call_s: float = 0.0) -> None:
        self.call_s = call_s

    async def etcd(self, call: Callable[[], _T]) -> _T:
        await asyncio.sleep(self.call_s)
        return call()

    async def files(self, call: Callable[[], _T]) -> _T:
        await asyncio.sleep(0)
        return call()

    async def disk(self, call: Callable[[], _T]) -> _T:
        await asyncio.sleep(0)
        return call()


class Log:
    """Keeps the events that are logged."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str, dict[str, Any]]] = []

    def __call__(self, level: str, event: str, **fields: Any) -> None:
        self.lines.append((level, event, fields))

    def events(self, event: str) -> list[dict[str, Any]]:
        """The fields of each line of this event."""
        return [fields for _, name, fields in self.lines if name == event]


def tasks_of(loop: VirtualLoop) -> Tasks:
    """The coroutines of a loop."""
    return Tasks(loop)
