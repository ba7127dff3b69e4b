"""A daemon, its keeper, its host or etcd dies during a run: no tick runs twice, and no process is left."""

import os
import signal
import time
from pathlib import Path

import pytest

from tests.conftest import OwnEtcd
from tests.support.conch import Wrapper, alive, throughout, wait_for
from tests.support.cron import Fleet

LONG = "echo $$ $CONCH_TICK >> runs; sh -c 'trap \"\" TERM; echo $$ >> kids; exec sleep 1000' & exec sleep 1000"

UNTIL_GO = "echo $$ $CONCH_TICK >> runs; while [ ! -e go ]; do sleep 0.1; done"


def runs(fleet: Fleet, count: int = 1) -> list[tuple[int, int]]:
    """Return the pid and tick of each run that began."""
    return [(int(a), int(b)) for a, b in (line.split() for line in fleet.bench.read("runs", count).splitlines())]


def kill(daemon: Wrapper, what: str) -> None:
    """SIGKILL the supervisor, the keeper or both; of both, neither acts on the other's death."""
    keeper = daemon.keeper()
    if what == "both":
        daemon.signal(signal.SIGSTOP)
    if what in ("keeper", "both"):
        os.kill(keeper, signal.SIGKILL)
    if what in ("supervisor", "both"):
        daemon.signal(signal.SIGKILL)


@pytest.mark.parametrize("overlap", ["allow", "forbid"])
@pytest.mark.parametrize("what", ["supervisor", "both"])
def test_killed_daemons_run_is_gone_and_never_run_again(fleet: Fleet, what: str, overlap: str) -> None:
    """The claim has no result until the host restarts; then the result is `lost`."""
    daemon = fleet.start("a", "--ttl", "3s")
    fleet.add("j", "@yearly", "--overlap", overlap, "--kill-after", "1s", command=LONG)
    tick = fleet.run_now("j")
    (pid, run_tick), *_ = runs(fleet)
    child = int(fleet.bench.read("kids").split()[0])
    assert run_tick == tick
    kill(daemon, what)
    wait_for(lambda: not alive(pid), "the command is gone")
    if what == "supervisor":  # if both are dead, the service manager or the next conchd ends their runs
        wait_for(lambda: not alive(child), "its child is gone")
    fleet.start("b", "--ttl", "3s")
    throughout(1.5, lambda: None)
    assert fleet.value("fire", "j", tick) is not None
    assert fleet.value("result", "j", tick) is None
    wait_for(lambda: fleet.history("j")[0]["state"] == "claimed", "the end of the registration")
    fleet.start("a", "--ttl", "3s")
    result = fleet.result("j", tick)
    assert (result["state"], result["node"]) == ("lost", "a")
    wait_for(lambda: not alive(child), "what had survived is gone")
    wait_for(lambda: fleet.value("run", "j") is None, "the run key is gone")
    assert len(runs(fleet)) == 1, "it was not run again"
    again = fleet.run_now("j")
    runs(fleet, 2)
    assert again != tick


@pytest.mark.parametrize("overlap", ["allow", "forbid", "replace"])
def test_killed_keeper_ends_what_holds_something_and_nothing_else(fleet: Fleet, overlap: str) -> None:
    """The supervisor forks a new keeper; an `allow` run continues and its end is recorded."""
    daemon = fleet.start("a", "--ttl", "3s")
    fleet.add(
        "j",
        "@yearly",
        "--overlap",
        overlap,
        command="echo $$ $CONCH_TICK >> runs; while [ ! -e go ]; do sleep 0.1; done",
    )
    tick = fleet.run_now("j")
    (pid, _), *_ = runs(fleet)
    kill(daemon, "keeper")
    daemon.wait_event("registered", 2)
    if overlap == "allow":
        assert alive(pid)
        fleet.bench.file("go").touch()
        assert fleet.result("j", tick)["state"] == "ok"
    else:
        result = fleet.result("j", tick)
        assert (result["state"], result["exit"]) == ("killed", 143)
        assert "lost" in result["reason"]
        assert not alive(pid)
    fleet.bench.file("go").touch()
    assert fleet.result("j", fleet.run_now("j"))["state"] == "ok"
    assert len(runs(fleet)) == 2


def test_stopped_daemon_lets_others_run_and_runs_nothing_late(fleet: Fleet) -> None:
    """Supervisor and keeper are stopped for several ticks and continued: no tick runs twice."""
    stopped, _ = fleet.start("a", "--ttl", "5s"), fleet.start("b", "--ttl", "5s")
    fleet.add("j", "@every 1s", "--overlap", "allow", "--start-deadline", "30s", command="echo $CONCH_TICK >> log")
    fleet.results("j", 2)
    keeper = stopped.keeper()
    stopped.signal(signal.SIGSTOP)
    os.kill(keeper, signal.SIGSTOP)
    at = int(time.time())
    wait_for(lambda: len([tick for tick in fleet.ticks("result", "j") if tick > at]) >= 7, "others run them")
    os.kill(keeper, signal.SIGCONT)
    stopped.signal(signal.SIGCONT)
    fleet.results("j", len(fleet.ticks("result", "j")) + 3)
    fleet.bench.run("cron", "pause", "j")
    wait_for(lambda: set(fleet.ticks("fire", "j")) == set(fleet.ticks("result", "j")), "all are over")
    ran = [int(line) for line in fleet.bench.file("log").read_text().split()]
    assert len(ran) == len(set(ran))
    ticks = sorted(fleet.ticks("fire", "j"))
    assert ticks == list(range(ticks[0], ticks[0] + len(ticks)))


def test_stopped_supervisor_claims_nothing(fleet: Fleet) -> None:
    """Its keeper lives, but could start no run for a claim: another host claims."""
    stopped, _ = fleet.start("a"), fleet.start("b")
    stopped.signal(signal.SIGSTOP)
    fleet.add("j", "@every 1s", "--overlap", "allow")
    results = fleet.results("j", 6)
    assert {result["node"] for result in results.values()} == {"b"}
    assert {claim["host"] for claim in fleet.ticks("fire", "j").values()} == {"b"}
    stopped.signal(signal.SIGCONT)
    wait_for(lambda: "a" in {one["host"] for one in fleet.ticks("fire", "j").values()}, "it takes part again")


@pytest.mark.parametrize("overlap", ["allow", "forbid"])
def test_long_outage_of_etcd_ends_what_holds_something(own_fleet: Fleet, own: OwnEtcd, overlap: str) -> None:
    """Bound runs end by the deadline; an `allow` run continues, and every result arrives once etcd is back."""
    fleet = own_fleet
    daemon = fleet.start("a", "--ttl", "3s")
    fleet.add("j", "@yearly", "--overlap", overlap, command="echo $$ $CONCH_TICK >> runs; exec sleep 6")
    tick = fleet.run_now("j")
    (pid, _), *_ = runs(fleet)
    os.kill(own.member.pid, signal.SIGSTOP)
    frozen = time.monotonic()
    try:
        if overlap == "forbid":
            wait_for(lambda: not alive(pid), "ended by the deadline", 3.0)
            assert time.monotonic() - frozen < 3.0
        else:
            throughout(3.5, lambda: alive(pid) or pytest.fail("an allow run was ended"))
        daemon.wait_event("run-end")
    finally:
        os.kill(own.member.pid, signal.SIGCONT)
    result = fleet.result("j", tick)
    assert result["state"] == ("killed" if overlap == "forbid" else "ok")
    wait_for(lambda: fleet.bench.etcd.get(f"{fleet.bench.prefix}/node/a")[0], "it is registered")
    fleet.run_now("j")
    runs(fleet, 2)


def test_result_survives_outage_and_crash(own_fleet: Fleet, own: OwnEtcd) -> None:
    """etcd is down when the run ends, and conchd is killed and restarted meanwhile: the result still arrives."""
    fleet = own_fleet
    daemon = fleet.start("a", "--ttl", "3s")
    fleet.add(
        "j",
        "@yearly",
        "--overlap",
        "allow",
        command="echo $$ $CONCH_TICK >> runs; while [ ! -e go ]; do sleep 0.1; done; exit 3",
    )
    tick = fleet.run_now("j")
    runs(fleet)
    os.kill(own.member.pid, signal.SIGSTOP)
    try:
        fleet.bench.file("go").touch()
        daemon.wait_event("run-end")
        daemon.wait_event("not-delivered")
        kill(daemon, "both")
        daemon.wait()
        again = fleet.start("a", "--endpoints", "127.0.0.1:1", ready=False)
        assert again.wait() == 69  # a failed start loses nothing
    finally:
        os.kill(own.member.pid, signal.SIGCONT)
    fleet.start("a", "--ttl", "3s")
    result = fleet.result("j", tick)
    assert (result["state"], result["exit"], result["node"]) == ("failed", 3, "a")


def test_run_key_deleted_by_hand_ends_the_run(fleet: Fleet) -> None:
    """It gets SIGTERM immediately and SIGKILL after kill-after; the next tick may run."""
    fleet.start("a")
    fleet.add("j", "@yearly", "--kill-after", "1s", command=LONG)
    tick = fleet.run_now("j")
    (pid, _), *_ = runs(fleet)
    child = int(fleet.bench.read("kids").split()[0])
    fleet.bench.etcd.delete(f"{fleet.bench.prefix}/cron/run/j")
    wait_for(lambda: not alive(pid) and not alive(child), "the tree is gone", 5)
    result = fleet.result("j", tick)
    assert result["state"] == "killed"
    assert "deleted" in result["reason"]


@pytest.mark.parametrize("stopped", [False, True])
def test_revoked_registration_ends_bound_runs(fleet: Fleet, stopped: bool) -> None:
    """They get SIGTERM and SIGKILL, from the keeper if the supervisor is stopped; then the daemon registers again."""
    daemon = fleet.start("a", "--ttl", "5s")
    fleet.add("j", "@yearly", "--kill-after", "1s", command=LONG)
    fleet.add("free", "@yearly", "--overlap", "allow", command="exec sleep 1000")
    tick = fleet.run_now("j")
    (pid, _), *_ = runs(fleet)
    if stopped:
        daemon.signal(signal.SIGSTOP)
    fleet.bench.etcd.revoke_lease(int(daemon.wait_event("registered")["lease"], 16))
    wait_for(lambda: not alive(pid), "the command is gone", 5)
    if stopped:
        daemon.signal(signal.SIGCONT)
    assert fleet.result("j", tick)["state"] == "killed"
    daemon.wait_event("registered", 2)


def test_forbid_outlives_the_death_of_the_owner(fleet: Fleet) -> None:
    """With both processes of the owner killed, its run key keeps others out until the lease expires; then they run."""
    owner = fleet.start("a", "--ttl", "4s")
    fleet.add("j", "@every 1s", command="echo $$ $CONCH_TICK >> runs; exec sleep 1000")
    runs(fleet)
    fleet.start("b", "--ttl", "4s")
    kill(owner, "both")
    died = time.time()
    runs(fleet, 2)
    waited = time.time() - died
    results = fleet.ticks("result", "j")
    assert waited > 1.0
    assert [r for tick, r in results.items() if r["state"] == "skipped" and tick > died - 1]


def test_second_daemon_of_one_name_claims_nothing(fleet: Fleet) -> None:
    """It has another state directory but the same CONCH_HOST: it logs the conflict and takes over after the first."""
    first = fleet.start("a", "--ttl", "3s")
    second = fleet.bench.start(
        "conchd", "--state-dir", str(fleet.bench.file("other")), "--ttl", "3s", env={"CONCH_HOST": "a"}
    )
    second.wait_event("name-taken")
    first.signal(signal.SIGTERM)
    assert first.wait() == 0
    second.wait_event("registered")
    second.signal(signal.SIGTERM)
    assert second.wait() == 0


def test_state_files_are_private(fleet: Fleet) -> None:
    """The write-ahead log may contain data that others must not read."""
    fleet.start("a")
    folder = fleet.state("a")
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {Path(entry).stat().st_mode & 0o077 for entry in folder.iterdir()} <= {0}
