"""How a daemon applies a job's rules: removal, edits, limits, retries, semaphores, deadlines, keys, draining."""

import os
import secrets
import signal
import time

import pytest

from tests.conftest import OwnEtcd
from tests.support.conch import alive, throughout, wait_for
from tests.support.cron import Fleet, once, until_second

UNTIL_GO = "echo $$ $CONCH_TICK $CONCH_ATTEMPT >> runs; while [ ! -e go ]; do sleep 0.05; done"


def runs(fleet: Fleet, count: int = 1) -> list[list[int]]:
    """Return pid, tick and attempt of each run that began."""
    return [[int(word) for word in line.split()] for line in fleet.bench.read("runs", count).splitlines()]


def test_rm_lets_a_run_finish(fleet: Fleet) -> None:
    """It runs no further tick; the result of its current run is recorded."""
    fleet.start("a")
    fleet.add("j", "@yearly", command=UNTIL_GO)
    tick = fleet.run_now("j")
    pid = runs(fleet)[0][0]
    assert fleet.bench.run("cron", "rm", "j").returncode == 0
    throughout(0.5, lambda: alive(pid) or pytest.fail("the run was ended"))
    fleet.bench.file("go").touch()
    assert fleet.result("j", tick)["state"] == "ok"
    wait_for(lambda: fleet.value("run", "j") is None, "the run key is gone")
    assert fleet.value("floor", "j") is None


def test_edit_counts_from_the_next_tick(fleet: Fleet) -> None:
    """The current run continues with the old command, the next run has the new one; no tick runs twice."""
    fleet.start("a")
    fleet.start("b")
    fleet.add("j", "@every 1s", "--overlap", "allow", command="echo old >> log")
    fleet.results("j", 2)
    fleet.add("j", "@every 1s", "--overlap", "allow", command="echo new >> log")
    edited = time.time()
    fleet.results("j", 6)
    fleet.bench.run("cron", "pause", "j")
    wait_for(lambda: set(fleet.ticks("fire", "j")) == set(fleet.ticks("result", "j")), "all are over")
    results = fleet.ticks("result", "j")
    words = fleet.bench.file("log").read_text().split()
    assert words == sorted(words, reverse=True)
    assert len(words) == len(results)
    assert words.count("new") >= len([tick for tick in results if tick > edited])


def test_sigterm_drains(fleet: Fleet) -> None:
    """It claims no more ticks, waits for its runs, then ends them; every result is recorded, and conchd exits 0."""
    daemon = fleet.start("a", "--drain", "2s")
    fleet.add("quick", "@yearly", "--overlap", "allow", command=UNTIL_GO)
    fleet.add(
        "slow", "@yearly", "--kill-after", "1s", command="trap '' TERM; echo $$ >> slow; while :; do sleep 0.1; done"
    )
    fleet.add("every", "@every 1s")
    quick, slow = fleet.run_now("quick"), fleet.run_now("slow")
    runs(fleet)
    fleet.bench.read("slow")
    daemon.signal(signal.SIGTERM)
    daemon.wait_event("draining")
    at = time.time()
    fleet.bench.file("go").touch()
    assert fleet.result("quick", quick)["state"] == "ok"
    assert daemon.wait() == 0
    assert 2.5 < time.time() - at < 8
    result = fleet.result("slow", slow, 1)
    assert (result["state"], result["exit"]) == ("killed", 137)
    assert "stopping" in result["reason"]
    assert not [tick for tick in fleet.ticks("fire", "every") if tick > at + 1]
    assert fleet.bench.etcd.get(f"{fleet.bench.prefix}/node/a")[0] is None


def test_second_sigterm_ends_the_waiting(fleet: Fleet) -> None:
    """The drain may take long; a second signal cuts it short."""
    daemon = fleet.start("a", "--drain", "1h")
    fleet.add("j", "@yearly", command=UNTIL_GO)
    tick = fleet.run_now("j")
    runs(fleet)
    daemon.signal(signal.SIGTERM)
    daemon.wait_event("draining")
    daemon.signal_until_it_ends(signal.SIGTERM)
    assert daemon.wait() == 0
    assert fleet.result("j", tick, 1)["state"] == "killed"


def test_run_ttl_ends_the_whole_tree(fleet: Fleet) -> None:
    """It gets SIGTERM, and SIGKILL after kill-after; its state is `timeout`, and no process is left."""
    fleet.start("a")
    fleet.add(
        "j",
        "@yearly",
        *("--run-ttl", "1s", "--kill-after", "0.5s"),
        command="trap '' TERM; (echo $$ >> pids; setsid sleep 1000) & echo $$ >> pids; while :; do sleep 0.1; done",
    )
    tick = fleet.run_now("j")
    pids = fleet.bench.pids("pids", 2)
    result = fleet.result("j", tick)
    assert (result["state"], result["exit"], result["attempt"]) == ("timeout", 137, 1)
    assert 1.4 < result["duration"] < 6
    assert not [pid for pid in pids if alive(pid)]


def test_retries_are_attempts_of_the_same_claim(fleet: Fleet) -> None:
    """Attempts go on until one succeeds, counted in `CONCH_ATTEMPT`; between them `forbid` keeps the next tick out."""
    fleet.start("a")
    fleet.add(
        "j",
        "@every 1s",
        *("--retries", "2", "--retry-delay", "1s"),
        command="echo $$ $CONCH_TICK $CONCH_ATTEMPT >> runs; [ $CONCH_ATTEMPT = 3 ]",
    )
    (_, tick, _), *_ = runs(fleet)
    result = fleet.result("j", tick)
    assert (result["state"], result["attempt"]) == ("ok", 3)
    assert [attempt for _, t, attempt in runs(fleet, 3) if t == tick] == [1, 2, 3]
    results = fleet.ticks("result", "j")
    assert [results[t]["state"] for t in (tick + 1,) if t in results] == ["skipped"]


def test_retries_run_out(fleet: Fleet) -> None:
    """The failure of the last attempt is the result."""
    fleet.start("a")
    fleet.add("j", "@yearly", "--retries", "1", "--retry-delay", "0", command="exit $((CONCH_ATTEMPT + 4))")
    result = fleet.result("j", fleet.run_now("j"))
    assert (result["state"], result["attempt"], result["exit"]) == ("failed", 2, 6)


def test_semaphore_bounds_runs_and_wrappers_together(fleet: Fleet) -> None:
    """A run queues like any contender, within its run-ttl; waiting longer is a `timeout` without a run."""
    fleet.start("a")
    fleet.start("b")
    holder = fleet.bench.start("sema", "s", "--max", "1", "--", "sleep", "1000")
    holder.child()
    fleet.add("j", "@yearly", "--sema", "s:1", "--overlap", "allow", command=UNTIL_GO)
    fleet.add("late", "@yearly", "--sema", "s:1", "--run-ttl", "1s", command=UNTIL_GO)
    late = fleet.run_now("late")
    assert fleet.result("late", late)["state"] == "timeout"
    first = fleet.run_now("j")
    second = fleet.run_now("j")
    wait_for(lambda: len(fleet.bench.keys_below("sema/s/1/")) == 3, "both are in line")
    assert not fleet.bench.file("runs").exists()
    holder.signal(signal.SIGTERM)
    holder.wait()
    runs(fleet)
    throughout(0.5, lambda: len(runs(fleet)) == 1 or pytest.fail("two under one slot"))
    who = fleet.bench.run("sema", "s", "--who").stdout
    assert "HELD" in who
    assert "WAIT" in who
    fleet.bench.file("go").touch()
    assert {fleet.result("j", tick)["state"] for tick in (first, second)} == {"ok"}
    wait_for(lambda: not fleet.bench.keys_below("sema/s/1/"), "the slots are free")


def test_lost_slot_ends_the_run(fleet: Fleet) -> None:
    """An `allow` run under a semaphore ends with its slot."""
    fleet.start("a")
    fleet.add("j", "@yearly", "--sema", "s:1", "--overlap", "allow", command=UNTIL_GO)
    tick = fleet.run_now("j")
    pid = runs(fleet)[0][0]
    (key,) = fleet.bench.keys_below("sema/s/1/")
    fleet.bench.etcd.revoke_lease(int(key.rpartition("/")[2], 16))
    wait_for(lambda: not alive(pid), "the run is ended", 5)
    assert fleet.result("j", tick)["state"] == "killed"


@pytest.mark.parametrize("later", [True, False])
def test_start_deadline(own_fleet: Fleet, own: OwnEtcd, later: bool) -> None:
    """With etcd down over a tick, it runs late within its deadline; beyond, it is missed, counted and logged once."""
    fleet = own_fleet
    daemon = fleet.start("a", "--ttl", "2s")
    tick = until_second() + 6
    fleet.add(
        "j",
        once(tick),
        *("--start-deadline", "60s" if later else "2s"),
        command="echo $$ $CONCH_TICK 1 >> runs",
    )
    time.sleep(tick - 1.7 - time.time())
    os.kill(own.member.pid, signal.SIGSTOP)
    throughout(6.0, lambda: None)
    os.kill(own.member.pid, signal.SIGCONT)
    if later:
        result = fleet.result("j", tick)
        assert result["state"] == "ok"
        assert Fleet.unix(result["started"]) >= tick + 2
    else:
        wait_for(lambda: daemon.events("missed") or fleet.value("result", "j", tick), "it is passed over")
        if fleet.value("fire", "j", tick) is not None:  # the claim was made, its answer came too late
            assert fleet.result("j", tick)["state"] == "skipped"
        else:
            assert len(daemon.events("missed")) == 1
        assert not fleet.bench.file("runs").exists()


def test_two_requests_and_a_tick_of_the_same_second_are_three(fleet: Fleet) -> None:
    """Each request has a claim and a result of its own; a paused job accepts requests too."""
    fleet.start("a")
    fleet.add("j", "@every 2s", "--overlap", "allow", command="echo $$ $CONCH_TICK 1 >> runs")
    second = until_second(0.05)
    while second % 2:
        second = until_second(0.05)
    first, other = fleet.run_now("j"), fleet.run_now("j")
    fleet.bench.run("cron", "pause", "j")
    assert len({second, first, other}) == 3
    assert {fleet.result("j", tick)["state"] for tick in (first, other)} == {"ok"}
    paused = fleet.run_now("j")
    assert fleet.result("j", paused)["state"] == "ok"
    ticks = [tick for _, tick, _ in runs(fleet, 3)]
    assert len(ticks) == len(set(ticks))


def test_max_runs_leaves_ticks_to_others(fleet: Fleet) -> None:
    """A full daemon claims nothing; another daemon does."""
    fleet.start("a", "--max-runs", "1")
    fleet.add("long", "@yearly", command=UNTIL_GO)
    fleet.run_now("long")
    runs(fleet)
    fleet.start("b")
    fleet.add("j", "@every 1s")
    results = fleet.results("j", 5)
    assert {one["node"] for one in results.values()} == {"b"}
    fleet.bench.file("go").touch()


def test_only_signed_jobs_run_where_a_key_is_given(fleet: Fleet) -> None:
    """Unsigned or altered jobs are recorded as such and do not run."""
    key = fleet.bench.file("key")
    key.write_text(secrets.token_hex(16))
    key.chmod(0o600)
    fleet.start("a", "--job-key-file", str(key))
    fleet.add("signed", "@yearly", "--job-key-file", str(key), command="echo signed >> log")
    fleet.add("unsigned", "@yearly", command="echo unsigned >> log")
    fleet.add("altered", "@yearly", "--job-key-file", str(key), command="echo honest >> log")
    path = f"{fleet.bench.prefix}/cron/job/altered"
    value, _ = fleet.bench.etcd.get(path)
    fleet.bench.etcd.put(path, value.replace(b"honest", b"forged"))
    assert fleet.result("signed", fleet.run_now("signed"))["state"] == "ok"
    for name in ("unsigned", "altered"):
        result = fleet.result(name, fleet.run_now(name))
        assert result["state"] == "skipped"
        assert "sign" in result["reason"]
    assert fleet.bench.file("log").read_text() == "signed\n"


def test_signed_job_of_another_prefix_is_not_run(fleet: Fleet) -> None:
    """For example, a job copied from a test environment."""
    key = fleet.bench.file("key")
    key.write_text(secrets.token_hex(16))
    key.chmod(0o600)
    fleet.start("a", "--job-key-file", str(key))
    fleet.add("j", "@yearly", "--job-key-file", str(key), command="echo here >> log")
    path = f"{fleet.bench.prefix}/cron/job/j"
    here, _ = fleet.bench.etcd.get(path)
    elsewhere = f"{fleet.bench.prefix}-test"
    flags = ("--schedule", "@yearly", "--job-key-file", str(key), "--prefix", elsewhere)
    assert fleet.bench.run("cron", "add", "j", *flags, "--", "sh", "-c", "echo tried >> log").returncode == 0
    copied, _ = fleet.bench.etcd.get(f"{elsewhere}/cron/job/j")
    fleet.bench.etcd.put(path, copied)
    result = fleet.result("j", fleet.run_now("j"))
    assert result["state"] == "skipped"
    assert "another prefix" in result["reason"]
    fleet.bench.etcd.put(path, here)
    assert fleet.result("j", fleet.run_now("j"))["state"] == "ok"
    assert fleet.bench.file("log").read_text() == "here\n"
    fleet.bench.etcd.delete_prefix(elsewhere)


def test_history_is_trimmed_and_what_is_trimmed_cannot_be_claimed_again(fleet: Fleet) -> None:
    """Claims and results beyond the newest 1,000 are deleted; the floor stays."""
    daemon = fleet.start("a")
    now = int(time.time())
    etcd, prefix = fleet.bench.etcd, fleet.bench.prefix
    lease = etcd.lease(600)
    fleet.add("j", "@yearly", command="true")
    for tick in range(now - 1100, now - 90):
        etcd.put(f"{prefix}/cron/fire/j/{tick}", "{}", lease)
        etcd.put(f"{prefix}/cron/result/j/{tick}", "{}", lease)
    fleet.add("j", "@every 1s", "--overlap", "allow", command="true")
    wait_for(lambda: len(fleet.ticks("result", "j")) <= 1003 and fleet.value("floor", "j"), "the oldest are gone")
    floor = int(etcd.get(f"{prefix}/cron/floor/j")[0])
    assert floor < min(fleet.ticks("fire", "j"))
    assert floor >= now - 1100
    fleet.bench.run("cron", "pause", "j")
    etcd.put(f"{prefix}/cron/floor/j", str(now + 1000))
    assert fleet.request("j") == now + 1001
    assert fleet.value("fire", "j", floor) is None
    assert alive(daemon.pid)
    etcd.revoke_lease(lease.id)


def test_full_disk_stops_no_run(fleet: Fleet) -> None:
    """When the write-ahead log accepts no records, conchd warns, and results go directly to etcd."""
    import resource

    daemon = fleet.start("a")
    fleet.add("j", "@yearly", "--overlap", "allow", command="exit 4")
    resource.prlimit(daemon.keeper(), resource.RLIMIT_FSIZE, (64, resource.RLIM_INFINITY))
    assert fleet.result("j", fleet.run_now("j"))["state"] == "failed"
    assert daemon.wait_event("journal-failed")["level"] == "error"
    resource.prlimit(daemon.keeper(), resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert fleet.result("j", fleet.run_now("j"))["state"] == "failed"
    daemon.wait_event("journal-works")


def test_bound_run_of_an_idle_daemon_starts_at_once(fleet: Fleet) -> None:
    """The run is checked against the newest deadline, not the one from before the supervisor was stopped."""
    fleet.start("a", "--ttl", "6s")
    throughout(4.0, lambda: None)  # longer than a start is allowed to rely on one renewal
    tick = until_second() + 4
    fleet.add("j", once(tick), command="date +%s.%N > started")
    started = float(fleet.bench.read("started"))
    assert -0.05 < started - tick < 0.3
    fleet.result("j", tick)


def test_floor_that_cannot_be_read_is_named_and_nothing_is_lost_in_silence(fleet: Fleet) -> None:
    """The job's ticks count as missed, the result of a run is still recorded, and the job can be repaired."""
    daemon = fleet.start("a", "--status-addr", "0")
    fleet.add("j", "@every 1s", command="echo >> began; while [ ! -e go ]; do sleep 0.05; done")
    fleet.bench.read("began")
    floor = f"{fleet.bench.prefix}/cron/floor/j"
    fleet.bench.etcd.put(floor, "junk")
    wait_for(lambda: floor in {event["key"] for event in daemon.events("unreadable")}, "it is named")
    daemon.wait_event("missed")
    (tick,) = [tick for tick in fleet.ticks("fire", "j") if fleet.value("result", "j", tick) is None]
    fleet.bench.file("go").touch()
    assert fleet.result("j", tick)["state"] == "ok"
    fleet.bench.etcd.delete(floor)
    fleet.results("j", len(fleet.ticks("result", "j")) + 2)
