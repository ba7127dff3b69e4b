"""`conch ps`: what runs under conch on this host, read from /proc."""

import os
import re
from typing import Any

import pytest

from tests.support.conch import Bench, wait_for
from tests.support.cron import Fleet


def shown(conch: Bench) -> list[dict[str, Any]]:
    """Return the runs of this host; other tests' are among them. No etcd is needed."""
    done = conch.run("ps", "--json", env={"CONCH_ENDPOINTS": "localhost:1"})
    assert done.returncode == 0, done.stderr
    return list(conch.jsons(done.stdout))


def of(conch: Bench, pid: int) -> list[dict[str, Any]]:
    return [run for run in shown(conch) if run["pid"] == pid]


def test_runs_of_wrappers(conch: Bench) -> None:
    """Each with its hold, the pid that `--who` shows, all its processes; a nested run is one of its own."""
    outer = conch.start("elect", "web", "--", "sh", "-c", "sleep 60 & conch sema inner --max 2 -- sleep 60")
    pid = outer.process.pid
    wait_for(lambda: any(run["hold"] == "sema inner/2" for run in shown(conch)), "the inner run")
    (run,) = wait_for(
        lambda: [run for run in of(conch, pid) if run["processes"] >= 4], "all processes of the outer run"
    )
    assert run["hold"] == "elect web"
    assert run["cpu_s"] >= 0
    assert run["rss_bytes"] > 2**20
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", run["since"])
    assert run["cmd"].startswith("sh -c ")
    assert f"pid={pid} " in conch.run("elect", "web", "--who").stdout
    lines = conch.run("ps").stdout.splitlines()
    assert lines[0].split() == ["HOLD", "PID", "PROCESSES", "CPU", "MEMORY", "SINCE", "COMMAND"]
    assert any(line.startswith("elect web ") and f" {pid} " in line for line in lines)
    outer.process.terminate()
    outer.wait()
    assert of(conch, pid) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="without root there may be no cgroup to see it by")
def test_process_that_wiped_its_environment_is_seen_by_its_cgroup(conch: Bench) -> None:
    """What it holds it does not show."""
    wrapper = conch.start("elect", "web", "--contain", "cgroup", "--", "env", "-i", "sleep", "60")
    runs = wait_for(lambda: of(conch, wrapper.process.pid), "the run")
    assert (runs[0]["hold"], runs[0]["processes"], runs[0]["cmd"]) == (None, 1, "sleep 60")


def test_waiter_has_no_run(conch: Bench) -> None:
    """Only commands that run are shown."""
    first = conch.start("elect", "web", "--", "sleep", "60")
    first.wait_event("child-start")
    second = conch.start("elect", "web", "--", "sleep", "60")
    second.wait_event("queued")
    assert len(of(conch, first.process.pid)) == 1
    assert of(conch, second.process.pid) == []


def test_runs_of_a_daemon(fleet: Fleet) -> None:
    """With the job and its tick; the pid is conchd's."""
    daemon = fleet.start("a")
    fleet.add("j", "@yearly", command="while [ ! -e go ]; do sleep 0.05; done")
    tick = fleet.run_now("j")
    (run,) = wait_for(lambda: of(fleet.bench, daemon.process.pid), "the run")
    assert run["hold"] == "cron j"
    assert fleet.unix(run["tick"]) == tick
    fleet.bench.file("go").touch()
    fleet.result("j", tick)
    wait_for(lambda: of(fleet.bench, daemon.process.pid) == [], "its end")
