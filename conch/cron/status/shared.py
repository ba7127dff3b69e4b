"""Answers that all share who ask at about the same time."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

_T = TypeVar("_T")


class Shared(Generic[_T]):
    """Makes one answer at a time, for all who have asked before it was begun; who asks later shares the next.

    So nobody gets an answer from before the question, and many who ask cost hardly more than one.
    """

    def __init__(self, make: Callable[[], Awaitable[_T]]) -> None:
        self._make = make
        self._running: asyncio.Task[_T] | None = None
        self._next: asyncio.Task[_T] | None = None

    async def get(self, within_s: float, late: str) -> _T:
        """The answer. Raises what its making does, or `TimeoutError` that says so with the text of `late`."""
        if self._next is None:
            self._next = asyncio.create_task(self._after(self._running))
            self._next.add_done_callback(_seen)
        try:
            return await asyncio.wait_for(asyncio.shield(self._next), within_s)
        except TimeoutError as error:
            raise TimeoutError(str(error) or late) from None

    async def _after(self, before: "asyncio.Task[_T] | None") -> _T:
        if before is not None:
            await asyncio.wait([before])
        self._running, self._next = self._next, None
        try:
            return await self._make()
        finally:
            self._running = None


def _seen(task: "asyncio.Task[_T]") -> None:
    """That everybody who asked has left is no news of asyncio's."""
    if not task.cancelled():
        task.exception()
