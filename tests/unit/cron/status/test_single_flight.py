"""One answer for all callers that ask at about the same time."""

import asyncio

import pytest

from conch.cron.status.single_flight import SingleFlight


def test_callers_that_come_together_get_one_answer_computed_after_they_came() -> None:
    """Callers that come during a computation share the next one."""
    computed = 0
    release = asyncio.Event()

    async def compute() -> int:
        nonlocal computed
        computed += 1
        number = computed
        await release.wait()
        return number

    async def main() -> None:
        flight = SingleFlight(compute)
        first = [asyncio.create_task(flight.get(10, "late")) for _ in range(5)]
        while not computed:
            await asyncio.sleep(0)
        later = [asyncio.create_task(flight.get(10, "late")) for _ in range(5)]
        await asyncio.sleep(0)
        release.set()
        assert await asyncio.gather(*first, *later) == [1] * 5 + [2] * 5
        assert await flight.get(10, "late") == 3

    asyncio.run(main())


def test_caller_that_times_out_does_not_disturb_the_others() -> None:
    """A time-out concerns one caller; an error of the computation all of them, and the next call computes anew."""
    release = asyncio.Event()
    tries = 0

    async def compute() -> str:
        nonlocal tries
        tries += 1
        await release.wait()
        if tries == 1:
            raise ValueError("odd")
        return "well"

    async def main() -> None:
        flight = SingleFlight(compute)
        patient = asyncio.create_task(flight.get(10, "late"))
        with pytest.raises(TimeoutError, match="late"):
            await flight.get(0.01, "late")
        release.set()
        with pytest.raises(ValueError, match="odd"):
            await patient
        assert await flight.get(10, "late") == "well"

    asyncio.run(main())
