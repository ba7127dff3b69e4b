"""The loop, its coroutines and threads: defects end it, alarms lose no ring, chores leave room for everything else."""

import asyncio
import contextlib
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from conch.core import clock
from conch.cron.workers import SLICE_S, Alarm, BoottimeLoop, Chores, Tasks, Workers, call_in
from tests.support.parts import lost_reply
from tests.support.virtual_loop import VirtualLoop, tasks_of

# -- alarms ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("timeout_s", "rings", "woken_s"),
    [
        (None, [3.0], 3.0),
        (5.0, [3.0], 3.0),
        (5.0, [], 5.0),
        (2.0, [3.0], 2.0),
        (0.0, [], 0.0),
        (5.0, [3.0, 3.0], 3.0),
    ],
)
def test_alarm(loop: VirtualLoop, timeout_s: float | None, rings: list[float], woken_s: float) -> None:
    """It waits until the time, or until somebody rings."""
    alarm = Alarm()
    for at in rings:
        loop.at(at, alarm.ring)
    loop.run(alarm.wait(timeout_s))
    assert loop.seconds - 1000 == pytest.approx(woken_s)


def test_ring_before_the_wait_ends_that_wait_alone(loop: VirtualLoop) -> None:
    alarm = Alarm()
    alarm.ring()
    alarm.ring()
    loop.run(alarm.wait(10.0))
    assert loop.seconds == 1000.0
    loop.run(alarm.wait(10.0))
    assert loop.seconds == 1010.0


def test_ring_after_a_wait_that_timed_out_is_for_the_next(loop: VirtualLoop) -> None:
    """As one that arrives while the coroutine is busy with something else."""
    alarm = Alarm()

    async def work() -> None:
        await alarm.wait(1.0)
        await asyncio.sleep(5.0)
        await alarm.wait(100.0)

    loop.at(2.0, alarm.ring)
    loop.run(work())
    assert loop.seconds == pytest.approx(1006.0)


def test_cancelled_wait(loop: VirtualLoop) -> None:
    """Its timer is gone, and a ring harms nobody."""
    alarm = Alarm()

    async def cancel() -> None:
        task = asyncio.ensure_future(alarm.wait(100.0))
        await asyncio.sleep(0)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        alarm.ring()
        await alarm.wait()

    loop.run(cancel())
    assert loop.seconds == 1000.0


# -- coroutines -----------------------------------------------------------------------------------------------


def test_coroutine_that_ends_is_forgotten(loop: VirtualLoop) -> None:
    tasks = tasks_of(loop)
    tasks.spawn(asyncio.sleep(1.0))
    assert len(tasks.pending) == 1
    loop.run(asyncio.sleep(2.0))
    assert tasks.pending == set()
    assert not tasks.ended.done()


@pytest.mark.parametrize("how", ["coroutine", "timer", "callback"])
def test_defect_ends_the_loop_with_it(loop: VirtualLoop, how: str) -> None:
    """The first one counts."""
    tasks = tasks_of(loop)

    def break_() -> None:
        raise ZeroDivisionError

    async def break_later() -> None:
        await asyncio.sleep(1.0)
        break_()

    if how == "coroutine":
        tasks.spawn(break_later())
    elif how == "timer":
        tasks.later(1.0, break_)
    else:
        loop.call_soon_threadsafe(break_)
    tasks.later(3.0, lambda: [][0])
    with pytest.raises(ZeroDivisionError):
        loop.run_until_complete(tasks.ended)
    loop.run(asyncio.sleep(5.0))


def test_cancelled_coroutine_is_no_defect(loop: VirtualLoop) -> None:
    tasks = tasks_of(loop)
    tasks.spawn(asyncio.sleep(100.0))
    tasks.cancel_all()
    loop.run(asyncio.sleep(1.0))
    assert not tasks.ended.done()
    assert tasks.pending == set()


def test_loop_is_on_boottime() -> None:
    """A timer that expired during a suspend fires when the machine wakes."""
    loop = BoottimeLoop()
    assert abs(loop.time() - clock.now()) < 1.0
    loop.close()


# -- threads --------------------------------------------------------------------------------------------------


@pytest.fixture
def real() -> Iterator[asyncio.AbstractEventLoop]:
    """A loop whose time passes: threads do not wait for a clock that jumps."""
    loop = asyncio.new_event_loop()
    yield loop
    if not loop.is_closed():
        loop.close()


@pytest.mark.parametrize("which", ["etcd", "disk"])
def test_calls_run_in_threads(real: asyncio.AbstractEventLoop, which: str) -> None:
    workers = Workers(Counter())
    where = real.run_until_complete(getattr(workers, which)(threading.current_thread))
    assert where.name.startswith(which)


def test_errors(real: asyncio.AbstractEventLoop) -> None:
    """Those of etcd are counted by class; all go to whoever waits."""
    counts: Counter[tuple[str, str]] = Counter()
    workers = Workers(counts)

    def fail() -> None:
        raise lost_reply()

    def break_() -> None:
        raise ZeroDivisionError

    with pytest.raises(type(lost_reply())):
        real.run_until_complete(workers.etcd(fail))
    with pytest.raises(ZeroDivisionError):
        real.run_until_complete(workers.etcd(break_))
    with pytest.raises(ZeroDivisionError):
        real.run_until_complete(workers.disk(break_))
    assert counts == {("etcd_errors", "Unreachable"): 1}


def test_neither_waits_for_the_other(real: asyncio.AbstractEventLoop) -> None:
    """All threads for etcd hang, and the disk is written all the same."""
    workers, go_on = Workers(Counter()), threading.Event()

    async def work() -> int:
        hanging = [asyncio.ensure_future(workers.etcd(go_on.wait)) for _ in range(20)]
        written = await asyncio.wait_for(workers.disk(lambda: 7), 10.0)
        go_on.set()
        await asyncio.gather(*hanging)
        return written

    assert real.run_until_complete(work()) == 7


def test_system_that_allows_no_more_threads(real: asyncio.AbstractEventLoop, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread that is there does the work."""
    workers = Workers(Counter())
    submit = ThreadPoolExecutor.submit

    def refuse(pool: Any, call: Any) -> Any:
        submit(pool, call)
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(ThreadPoolExecutor, "submit", refuse)
    assert real.run_until_complete(workers.etcd(lambda: 7)) == 7


def test_other_trouble_of_a_pool_is_a_defect(real: asyncio.AbstractEventLoop, monkeypatch: pytest.MonkeyPatch) -> None:
    workers = Workers(Counter())

    def refuse(pool: Any, call: Any) -> Any:
        raise RuntimeError("cannot schedule new futures after shutdown")

    monkeypatch.setattr(ThreadPoolExecutor, "submit", refuse)
    with pytest.raises(RuntimeError):
        real.run_until_complete(workers.etcd(lambda: 7))


def test_answer_that_nobody_waits_for(real: asyncio.AbstractEventLoop) -> None:
    """The coroutine was cancelled, or the loop has ended: the thread goes on in peace."""
    workers, go_on, done = Workers(Counter()), threading.Event(), threading.Event()

    def work() -> None:
        go_on.wait(10.0)
        done.set()

    async def cancel() -> None:
        task = asyncio.ensure_future(workers.etcd(work))
        await asyncio.sleep(0)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        go_on.set()
        while not done.is_set():
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.01)

    real.run_until_complete(cancel())
    real.close()
    call_in(real, print, "unheard")


# -- chores ---------------------------------------------------------------------------------------------------


def test_chores_are_made_in_order_and_in_slices(real: asyncio.AbstractEventLoop) -> None:
    """Everything else has its turn between two slices."""
    done: list[int] = []
    turns: list[int] = []
    chores = Chores(Tasks(real))
    assert not chores

    async def others() -> None:
        while len(done) < 20:
            turns.append(len(done))
            await asyncio.sleep(0)

    def work(i: int) -> None:
        time.sleep(SLICE_S / 4)
        done.append(i)

    for i in range(20):
        chores.add(lambda i=i: work(i))  # type: ignore[misc]
    assert chores
    real.run_until_complete(others())
    assert done == list(range(20))
    assert len(set(turns)) >= 4
    assert not chores


def test_chore_that_adds_a_chore(loop: VirtualLoop) -> None:
    """It comes last, and one coroutine makes all; while one is being made they are not all done."""
    tasks = tasks_of(loop)
    done: list[str] = []
    chores = Chores(tasks)

    def first() -> None:
        chores.add(lambda: done.append("third"))
        assert chores
        assert len(tasks.pending) == 1
        done.append("first")

    chores.add(first)
    chores.add(lambda: done.append("second"))
    loop.run(asyncio.sleep(1.0))
    assert done == ["first", "second", "third"]
    chores.add(lambda: done.append("later"))
    loop.run(asyncio.sleep(1.0))
    assert done[-1] == "later"
    assert not tasks.ended.done()
