"""Which row a job shows: the run that is alive first, then the last that ended; skipped ticks hide neither."""

import os
import signal
from typing import Any

from tests.support.conch import wait_for
from tests.support.cron import Fleet

UNTIL_GO = "while [ ! -e go ]; do sleep 0.05; done"


def last(fleet: Fleet, name: str) -> dict[str, Any]:
    done = fleet.bench.run("cron", "ls", "--last", "--json")
    assert done.returncode == 0, done.stderr
    return next(row for row in fleet.bench.jsons(done.stdout) if row["name"] == name)


def test_live_run_is_shown_before_the_ticks_that_it_makes_skip(fleet: Fleet) -> None:
    """In `ls --last` and `history`, with its host; once it has ended, that end is shown, not the skips."""
    fleet.start("a")
    fleet.add("j", "@every 1s", command=f"[ -e one ] || {{ touch one; {UNTIL_GO}; exit 3; }}; sleep 60")
    wait_for(lambda: fleet.value("run", "j"), "the run")
    tick = fleet.value("run", "j")["tick"]  # type: ignore[index]
    wait_for(lambda: len(fleet.ticks("result", "j")) >= 4, "four skipped ticks")
    shown = last(fleet, "j")
    assert (fleet.unix(shown["last_tick"]), shown["state"], shown["node"]) == (tick, "running", "a")
    rows = list(fleet.bench.jsons(fleet.bench.run("cron", "history", "j", "-n", "3", "--json").stdout))
    assert [row["state"] for row in rows] == ["running", "skipped", "skipped"]
    assert rows[0]["tick_unix"] == tick
    assert len({row["tick_unix"] for row in rows}) == 3
    fleet.bench.run("cron", "pause", "j")
    fleet.bench.file("go").touch()
    assert fleet.result("j", tick)["state"] == "failed"
    shown = last(fleet, "j")
    assert (fleet.unix(shown["last_tick"]), shown["state"], shown["exit"]) == (tick, "failed", 3)
    rows = list(fleet.bench.jsons(fleet.bench.run("cron", "history", "j", "-n", "3", "--json").stdout))
    assert [row["state"] for row in rows] == ["skipped", "skipped", "failed"]


def test_claim_of_a_dead_daemon_is_no_run(fleet: Fleet) -> None:
    """`running` while its daemon lives, `claimed` when it is dead, also after another life of the host began."""
    daemon = fleet.start("a")
    fleet.add("j", "@yearly", "--overlap", "allow", command=UNTIL_GO)
    fleet.run_now("j")
    assert last(fleet, "j")["state"] == "running"
    assert fleet.history("j")[0]["state"] == "running"
    state = fleet.state("a")
    state.rename(state.with_name("moved"))  # the next life finds no journal, so it does not record the run as lost
    for pid in (daemon.keeper(), daemon.process.pid):
        os.kill(pid, signal.SIGKILL)
    wait_for(lambda: fleet.node("a") is None, "the end of its registration", 30.0)
    assert fleet.history("j")[0]["state"] == "claimed"
    fleet.start("a")
    assert fleet.history("j")[0]["state"] == "claimed"
    assert last(fleet, "j")["state"] == "claimed"
