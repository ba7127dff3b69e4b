"""Negative controls: the checker flags wrong logs, and a wrapper that is known to be broken."""

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
    """Every overlap counts, however short; touching intervals and as many holders as allowed do not."""
    assert overlaps([ran(1, 0, 1), ran(2, 1.01, 2)], 1) == []
    assert len(overlaps([ran(1, 0, 1), ran(2, 0.99, 2)], 1)) == 1
    assert overlaps([ran(1, 0, 1), ran(2, 0.5, 2)], 2) == []
    assert len(overlaps([ran(1, 0, 3), ran(2, 0.5, 3), ran(3, 1, 2)], 2)) == 1


def test_line_that_is_being_written_is_left(tmp_path: Path) -> None:
    """A reader may see a part of it, where it crosses a page of memory."""
    log = tmp_path / "beats"
    log.write_text("elect x 7 42 start 1.000000\nelect x 7 42 beat 2.000000\nelect x 7 42 beat")
    assert read(log) == [ran(7, 1.0, 2.0, pid=42)]


def test_allowance_covers_only_its_own_time() -> None:
    """An overlap that began before the allowance, lasts longer, or comes long after it is flagged."""
    gone = [Allowance(1.0, 0.5)]
    assert overlaps([ran(1, 0, 1.6), ran(2, 1.1, 3)], 1, gone) == []
    assert overlaps([ran(1, 0, 2.5), ran(2, 1.1, 3)], 1, gone)
    assert overlaps([ran(1, 0, 1.2), ran(2, 0.9, 3)], 1, gone)
    assert overlaps([ran(1, 0, 9.6), ran(2, 9.4, 12)], 1, gone)


def test_order_is_seen() -> None:
    """Tokens grow; with several slots, simultaneous starts may come in any order."""
    assert order([ran(1, 0, 1), ran(2, 1, 2)], 1) == []
    assert order([ran(2, 0, 1), ran(1, 1, 2)], 1)
    assert order([ran(2, 0, 1), ran(1, 0.1, 2)], 2) == []
    assert order([ran(2, 0, 1), ran(1, 1, 2)], 2)


def test_grandchildren_count(tmp_path: Path) -> None:
    """A hold lasts until the last beat of the last process under its token."""
    log = tmp_path / "log"
    log.write_text("elect x 5 10 start 1.0\nelect x 5 11 start 1.1\nelect x 5 10 end 2.0\nelect x 5 11 beat 4.0\n")
    assert holds(read(log)) == [Interval("elect", "x", 5, 10, 1.0, 4.0)]


def test_tick_without_claim_or_report_is_seen() -> None:
    """A tick is excused if all living daemons registered later: none of them could have reported it."""
    assert unexplained([50], [], [10.0]) == [50]
    assert unexplained([50, 51, 52], [(49, 51)], [10.0, 60.0]) == [52]
    assert unexplained([50], [], [49.5]) == []


# A naive wrapper: `etcdctl lock` with a shell that leaves its command running when it is killed.
NAIVE = """
CONCH_REV=$(date +%s%N) {python} -I -S {beat} {log} elect naive &
echo $! >> {pids}
wait
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_naive_wrapper_is_flagged(conch: Bench, number: int) -> None:
    """Killed or stopped, it lets the next one run while its own command still runs."""
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
