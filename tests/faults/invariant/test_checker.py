"""The checker can see: it is shown what is wrong, and a wrapper that is known to be."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.invariant.checker import Allowance, Interval, holds, order, overlaps, read, unexplained
from tests.faults.invariant.faults import BEAT
from tests.support.conch import Bench, marked, wait_for


def ran(rev: int, start: float, end: float, pid: int = 0) -> Interval:
    return Interval("elect", "x", rev, pid or rev, start, end)


def test_overlap_is_seen() -> None:
    """However short; touching is none, and as many as may are none."""
    assert overlaps([ran(1, 0, 1), ran(2, 1.01, 2)], 1) == []
    assert len(overlaps([ran(1, 0, 1), ran(2, 0.99, 2)], 1)) == 1
    assert overlaps([ran(1, 0, 1), ran(2, 0.5, 2)], 2) == []
    assert len(overlaps([ran(1, 0, 3), ran(2, 0.5, 3), ran(3, 1, 2)], 2)) == 1


def test_allowance_is_for_its_time_and_closes() -> None:
    """An overlap that was there before it, lasts longer, or comes long after is none of it."""
    gone = [Allowance(1.0, 0.5)]
    assert overlaps([ran(1, 0, 1.6), ran(2, 1.1, 3)], 1, gone) == []
    assert overlaps([ran(1, 0, 2.5), ran(2, 1.1, 3)], 1, gone)
    assert overlaps([ran(1, 0, 1.2), ran(2, 0.9, 3)], 1, gone)
    assert overlaps([ran(1, 0, 9.6), ran(2, 9.4, 12)], 1, gone)


def test_order_is_seen() -> None:
    """A token that grows; with several slots, starts of one moment may come in any order."""
    assert order([ran(1, 0, 1), ran(2, 1, 2)], 1) == []
    assert order([ran(2, 0, 1), ran(1, 1, 2)], 1)
    assert order([ran(2, 0, 1), ran(1, 0.1, 2)], 2) == []
    assert order([ran(2, 0, 1), ran(1, 1, 2)], 2)


def test_grandchildren_count(tmp_path: Path) -> None:
    """What runs under a token runs until the last of it has given its last sign."""
    log = tmp_path / "log"
    log.write_text("elect x 5 10 start 1.0\nelect x 5 11 start 1.1\nelect x 5 10 end 2.0\nelect x 5 11 beat 4.0\n")
    assert holds(read(log)) == [Interval("elect", "x", 5, 10, 1.0, 4.0)]


def test_tick_without_claim_or_word_is_seen() -> None:
    """Unless all that live came later: nobody could have said it."""
    assert unexplained([50], [], [10.0]) == [50]
    assert unexplained([50, 51, 52], [(49, 51)], [10.0, 60.0]) == [52]
    assert unexplained([50], [], [49.5]) == []


# A wrapper as one writes it in a hurry: `etcdctl lock` with a shell that loses its command when it is killed.
NAIVE = """
CONCH_REV=$(date +%s%N) {python} -I -S {beat} {log} elect naive &
echo $! >> {pids}
wait
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_naive_wrapper_is_flagged(conch: Bench, number: int) -> None:
    """Killed or stopped, it lets the next one run while its own command does."""
    log, pids, script = (conch.file(name) for name in ("log", "pids", "naive.sh"))
    script.write_text(NAIVE.format(python=sys.executable, beat=BEAT, log=log, pids=pids))
    lock = ["etcdctl", "lock", "--ttl", "2", conch.prefix, "sh", str(script)]
    wrappers = [subprocess.Popen(lock, env=conch.environment, start_new_session=True)]
    conch.read("pids", 1)
    wrappers.append(subprocess.Popen(lock, env=conch.environment, start_new_session=True))
    wait_for(lambda: len(conch.keys()) == 2, "the second is in line")
    wrappers[0].send_signal(number)
    wait_for(lambda: len(pids.read_text().split()) >= 2, "the second runs", 30)
    wait_for(lambda: overlaps(holds(read(log)), 1), "the overlap is seen")
    for wrapper in wrappers:
        os.killpg(wrapper.pid, signal.SIGKILL)
        wrapper.wait()
    for pid in marked(conch.mark):
        os.kill(pid, signal.SIGKILL)
    conch.etcd.delete_prefix(conch.prefix)
