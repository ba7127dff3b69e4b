"""Threads and events without `threading`."""

import subprocess
import sys
import threading
import time

import pytest

from conch import threads
from conch.threads import Event, start, start_later
from tests.support.conch import wait_for


def test_event_wakes_all_that_wait() -> None:
    """Each of them, and nobody waits for one that is set."""
    event, woken = Event(), threads.SimpleQueue[bool]()
    for _ in range(8):
        start(lambda: woken.put(event.wait()))
    wait_for(lambda: len(event._waiting) == 8, "all to wait")
    assert not event.is_set()
    event.set()
    assert [woken.get(timeout=5) for _ in range(8)] == [True] * 8
    assert event.is_set()
    assert event.wait(0)
    event.set()
    event.clear()
    assert not event.is_set()


@pytest.mark.parametrize("timeout_s", [0.05, 0.0, -1.0])
def test_wait_for_an_event_ends_in_time(timeout_s: float) -> None:
    """Nothing of it is left."""
    event, began = Event(), time.monotonic()
    assert not event.wait(timeout_s)
    assert max(0.0, timeout_s) <= time.monotonic() - began < 5
    assert event._waiting == []


def test_longest_wait() -> None:
    """A time that no clock has is as good as none."""
    event = Event()
    start_later(0.05, event.set)
    assert event.wait(1e30)


def test_no_set_is_missed() -> None:
    """However near to the end of a wait it comes, a wait that says no is followed by one that says yes."""
    for _ in range(200):
        event = Event()
        start(event.set)
        assert event.wait(0.00001) or event.wait(10)
        assert event._waiting == []


def test_work_gets_its_arguments_at_its_time() -> None:
    """In a thread of its own."""
    got, began = threads.SimpleQueue[tuple[int, float, int]](), time.monotonic()
    start_later(0.1, lambda number: got.put((number, time.monotonic(), threading.get_ident())), 5)
    number, at, thread = got.get(timeout=5)
    assert (number, thread != threading.get_ident()) == (5, True)
    assert at - began >= 0.1


@pytest.mark.parametrize("how", ["threads.start(fail)", "threading.Thread(target=fail).start()"])
@pytest.mark.parametrize("imported", ["before", "after"])
def test_error_that_ends_a_thread_is_passed_on(how: str, imported: str) -> None:
    """Of our own threads and of those of libraries."""
    script = f"""
import os, time
{"import threading" if imported == "before" else ""}
from conch import threads
def fail(): raise ValueError("odd")
def crashed(error): print(repr(error), flush=True); os._exit(3)
threads.guard(crashed)
{"threads.guard_others(); import threading" if imported == "after" else ""}
{how}
time.sleep(20)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout) == (3, "ValueError('odd')\n"), done.stderr
