"""Computes one answer for all callers that ask at about the same time."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

_T = TypeVar("_T")


class SingleFlight(Generic[_T]):
    """Computes one answer at a time, for all callers that came before it began; later callers share the next one.

    So no answer is older than its question, and many callers cost hardly more than one.
    """

    def __init__(self, compute: Callable[[], Awaitable[_T]]) -> None:
        self._compute = compute
        self._running: asyncio.Task[_T] | None = None
        self._next: asyncio.Task[_T] | None = None

    async def get(self, within_s: float, too_late: str) -> _T:
        """Return the answer. Raises what computing it raises, or `TimeoutError` with the text `too_late`."""
        if self._next is None:
            self._next = asyncio.create_task(self._after(self._running))
            self._next.add_done_callback(_retrieve_exception)
        try:
            return await asyncio.wait_for(asyncio.shield(self._next), within_s)
        except TimeoutError as error:
            raise TimeoutError(str(error) or too_late) from None

    async def _after(self, before: "asyncio.Task[_T] | None") -> _T:
        if before is not None:
            await asyncio.wait([before])
        self._running, self._next = self._next, None
        try:
            return await self._compute()
        finally:
            self._running = None


def _retrieve_exception(task: "asyncio.Task[_T]") -> None:
    """Keep asyncio from logging an exception that no caller waited for."""
    if not task.cancelled():
        task.exception()
