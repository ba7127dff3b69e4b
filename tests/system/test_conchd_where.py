"""Where a job runs: tags, every host, cordon, and daemons of an earlier release beside ours."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.support.conch import throughout, wait_for
from tests.support.cron import Fleet


def keys(fleet: Fleet, kind: str, name: str) -> list[tuple[int, str, dict[str, Any]]]:
    """Return tick, host in the key (empty: none) and value of all keys of a job."""
    prefix = f"{fleet.bench.prefix}/cron/{kind}/{name}/"
    found = []
    for value, meta in fleet.bench.etcd.get_prefix(prefix):
        tick, _, host = meta.key.decode().removeprefix(prefix).partition("/")
        found.append((int(tick), host, json.loads(value)))
    return found


def hosts_of_runs(fleet: Fleet, name: str, count: int) -> list[str]:
    """Wait for so many results and return the hosts that they name."""
    wait_for(lambda: len(keys(fleet, "result", name)) >= count, f"{count} results of {name}", 30)
    return [value["node"] for _, _, value in keys(fleet, "result", name)]


def ok(fleet: Fleet, *words: str) -> str:
    """Run a command that must succeed; return what it says: on stdout alone if it is JSON."""
    done = fleet.bench.run("cron", *words)
    assert done.returncode == 0, done.stderr
    return str(done.stdout if "--json" in words else done.stderr + done.stdout)


@contextmanager
def registered(fleet: Fleet, host: str, **fields: Any) -> Iterator[None]:
    """Have a host registered that is no daemon of ours."""
    key = f"{fleet.bench.prefix}/node/{host}"
    fleet.bench.etcd.put(key, json.dumps({"host": host, "pid": 1, **fields}))
    try:
        yield
    finally:
        fleet.bench.etcd.delete(key)


def test_job_runs_only_on_hosts_with_all_its_tags(fleet: Fleet) -> None:
    """The name of a host is a tag, too. Each tick runs once."""
    fleet.start("a", "--tag", "gpu", "--tag", "eu")
    fleet.start("b", "--tag", "gpu")
    fleet.start("c", env={"CONCH_TAG": "gpu,eu"})
    fleet.add("tagged", "@every 1s", "--on", "gpu", "--on", "eu", command="echo $CONCH_TICK >> ticks")
    fleet.add("pinned", "@every 1s", "--on", "host=b")
    assert set(hosts_of_runs(fleet, "tagged", 8)) == {"a", "c"}
    assert set(hosts_of_runs(fleet, "pinned", 4)) == {"b"}
    ticks = fleet.bench.file("ticks").read_text().split()
    assert len(ticks) == len(set(ticks))


def test_job_that_no_host_may_run_is_said_and_missed(fleet: Fleet) -> None:
    """At `add`, `ls`, `hosts`, `run` and in the log of one host; its ticks are counted as missed, by that one alone."""
    a, b = (fleet.start(host) for host in "ab")
    why = "no live conchd has the tag moon"
    said = ok(fleet, "add", "j", "--schedule", "@every 1s", "--on", "moon", "--", "true")
    assert why in said
    assert why in ok(fleet, "ls")
    assert why in ok(fleet, "hosts")
    refused = fleet.bench.run("cron", "run", "j")
    assert (refused.returncode, why in refused.stderr) == (1, True)
    wait_for(lambda: [d for d in (a, b) if d.events("missed")], "its ticks are missed", 20)
    (one,) = [daemon for daemon in (a, b) if daemon.events("missed")]
    (line,) = one.events("nowhere")
    assert (line["job"], line["msg"]) == ("j", why)
    assert keys(fleet, "fire", "j") == []
    fleet.start("c", "--tag", "moon")
    assert set(hosts_of_runs(fleet, "j", 2)) == {"c"}
    wait_for(lambda: one.events("somewhere"), "the log says that it may run")
    assert not [daemon for daemon in (a, b) if daemon is not one and daemon.events("missed", "nowhere")]


def test_each_runs_a_tick_once_on_every_host(fleet: Fleet) -> None:
    """Each host has a claim and a result of its own; one that comes later runs the next ticks."""
    for host in "ab":
        fleet.start(host, "--tag", "x")
    fleet.start("no")
    fleet.add("j", "@every 2s", "--each", "--on", "x", command="echo $CONCH_TICK $CONCH_HOLD_KEY >> runs")
    hosts_of_runs(fleet, "j", 4)
    came = time.time()
    fleet.start("c", "--tag", "x")
    wait_for(lambda: len([1 for _, host, _ in keys(fleet, "result", "j") if host == "c"]) >= 2, "c runs it, too", 20)
    fleet.bench.run("cron", "pause", "j")
    wait_for(lambda: len(keys(fleet, "fire", "j")) == len(keys(fleet, "result", "j")), "all are over")
    results = keys(fleet, "result", "j")
    assert all(value["node"] == host for _, host, value in results)
    by_tick: dict[int, set[str]] = {}
    for tick, host, _ in results:
        by_tick.setdefault(tick, set()).add(host)
    assert all(hosts >= {"a", "b"} for hosts in by_tick.values()), by_tick
    assert all("c" not in hosts for tick, hosts in by_tick.items() if tick < came)
    ran = fleet.bench.file("runs").read_text().split("\n")[:-1]
    assert len(ran) == len(set(ran)) == len(results)
    rows = fleet.history("j")
    assert sorted((row["tick_unix"], row["node"]) for row in rows) == sorted((t, h) for t, h, _ in results)


def test_each_overlaps_per_host(fleet: Fleet) -> None:
    """A run that is alive on one host keeps the next tick from running there, and nowhere else."""
    for host in "ab":
        fleet.start(host, env={"ME": host})
    fleet.add("j", "@every 2s", "--each", command="[ $ME = b ] || while [ ! -e go ]; do sleep 0.05; done")
    wait_for(
        lambda: [1 for _, host, v in keys(fleet, "result", "j") if host == "a" and v["state"] == "skipped"], "skip"
    )
    assert fleet.value("run", "j", "a") is not None
    assert fleet.value("run", "j") is None
    wait_for(lambda: len([1 for _, host, v in keys(fleet, "result", "j") if host == "b"]) >= 3, "b goes on")
    assert {v["state"] for _, host, v in keys(fleet, "result", "j") if host == "b"} == {"ok"}
    fleet.bench.file("go").touch()
    wait_for(lambda: [1 for _, host, v in keys(fleet, "result", "j") if (host, v["state"]) == ("a", "ok")], "a ends")


def test_host_that_dies_in_a_run_on_every_host_records_it_as_lost(fleet: Fleet) -> None:
    """Under its own key, once it is back; it runs that tick never again."""
    for host in "ab":
        fleet.start(host, env={"ME": host})
    fleet.add("j", "@yearly", "--each", command="echo $ME >> began; [ $ME = b ] || sleep 60")
    asked = fleet.bench.start("cron", "run", "j")
    fleet.bench.read("began", 2)
    assert asked.wait() == 0
    ((tick, _, _), _) = keys(fleet, "fire", "j")
    fleet.daemons["a"].process.kill()
    fleet.daemons["a"].wait()
    fleet.start("a", env={"ME": "a"})
    lost = wait_for(lambda: fleet.value("result", "j", tick, "a"), "its result", 20)
    assert lost is not None
    assert (lost["state"], lost["node"]) == ("lost", "a")
    other = fleet.value("result", "j", tick, "b")
    assert other is not None
    assert other["state"] == "ok"
    assert sorted(fleet.bench.file("began").read_text().split()) == ["a", "b"]


def test_run_of_a_job_for_every_host_runs_it_once_on_each(fleet: Fleet) -> None:
    """Under one tick, that the command prints; two requests are two ticks."""
    for host in "abc":
        fleet.start(host)
    fleet.add("j", "@every 2s", "--each", "--paused", command="echo $CONCH_TICK >> runs")
    first, second = fleet.run_now("j"), fleet.run_now("j")
    assert first != second
    wait_for(lambda: len(keys(fleet, "result", "j")) == 6, "six results")
    assert {(tick, host) for tick, host, _ in keys(fleet, "fire", "j")} == {
        (tick, host) for tick in (first, second) for host in "abc"
    }
    assert len(fleet.bench.file("runs").read_text().split()) == 6
    assert not list(fleet.bench.etcd.get_prefix(f"{fleet.bench.prefix}/cron/now/"))


def test_edit_that_ends_each_runs_no_tick_twice_on_a_host(fleet: Fleet) -> None:
    """And back: each tick is run by the hosts of one definition alone."""
    for host in "ab":
        fleet.start(host, env={"ME": host})
    command = "echo $CONCH_TICK $ME >> runs"
    for number in range(8):
        fleet.add("j", "@every 1s", *(["--each"] if number % 2 == 0 else []), "--overlap", "allow", command=command)
        time.sleep(0.7)
    fleet.bench.run("cron", "pause", "j")
    wait_for(lambda: len(keys(fleet, "fire", "j")) == len(keys(fleet, "result", "j")), "all are over")
    ran = fleet.bench.file("runs").read_text().split("\n")[:-1]
    assert len(ran) == len(set(ran))
    claims = [(tick, host) for tick, host, _ in keys(fleet, "fire", "j")]
    assert not {tick for tick, host in claims if not host} & {tick for tick, host in claims if host}


def test_cordoned_host_claims_nothing_until_it_is_uncordoned(fleet: Fleet) -> None:
    """What runs goes on; it survives a restart; without another host the ticks are missed."""
    fleet.start("a")
    fleet.add("long", "@yearly", command="while [ ! -e go ]; do sleep 0.05; done")
    running = fleet.run_now("long")
    fleet.add("j", "@every 1s", "--overlap", "allow")
    hosts_of_runs(fleet, "j", 1)
    assert "a is cordoned" in ok(fleet, "cordon", "a")
    before = len(keys(fleet, "fire", "j"))
    why = "host a is cordoned"
    assert why in ok(fleet, "ls")
    assert why in fleet.bench.run("cron", "run", "j").stderr
    throughout(2.5, lambda: len(keys(fleet, "fire", "j")) == before or pytest.fail("it claims"))
    fleet.bench.file("go").touch()
    assert fleet.result("long", running)["state"] == "ok"
    fleet.start("b")
    assert "b" in hosts_of_runs(fleet, "j", before + 3)[-2:]
    fleet.daemons["a"].process.terminate()
    fleet.daemons["a"].wait()
    fleet.start("a")
    (host,) = [h for h in fleet.bench.jsons(ok(fleet, "hosts", "--json")) if h["host"] == "a"]
    assert host["cordoned"] is True
    at = time.time()
    hosts_of_runs(fleet, "j", len(keys(fleet, "result", "j")) + 4)
    assert {v["node"] for tick, _, v in keys(fleet, "result", "j") if tick > at} == {"b"}
    assert "was cordoned already" in ok(fleet, "cordon", "a")
    assert "a claims ticks again" in ok(fleet, "uncordon", "a")
    assert "was not cordoned" in ok(fleet, "uncordon", "a")
    wait_for(lambda: {"a"} <= {v["node"] for t, _, v in keys(fleet, "result", "j") if t > at}, "a is back", 30)


def test_hosts(fleet: Fleet) -> None:
    """What each live daemon says of itself; a host that nobody knows may be cordoned, with a warning."""
    fleet.start("a", "--tag", "gpu", "--max-runs", "7")
    with registered(fleet, "old", started="2026-01-01T00:00:00Z", draining=True):
        assert "no live conchd has this name" in ok(fleet, "cordon", "gone")
        assert "knows no cordon" in ok(fleet, "cordon", "old")
        a, old = fleet.bench.jsons(ok(fleet, "hosts", "--json", "--quiet"))
        assert a["version"]
        assert a["since"]
        assert {name: a[name] for name in ("host", "running", "max_runs", "tags", "cordoned", "draining")} == {
            **{"host": "a", "running": 0, "max_runs": 7, "tags": ["gpu", "host=a"]},
            **{"cordoned": False, "draining": False},
        }
        assert abs(a["clock_ahead_s"]) < 5
        assert (old["host"], old["version"], old["tags"]) == ("old", None, ["host=old"])
        assert (old["cordoned"], old["draining"]) == (False, True)
        table = ok(fleet, "hosts", "--quiet").splitlines()
        assert [line.split()[0] for line in table] == ["HOST", "a", "old"]
        ok(fleet, "uncordon", "old")


def test_host_of_an_earlier_release(fleet: Fleet) -> None:
    """It has no turn at the ticks of a job that it cannot run, and `add` names it."""
    fleet.start("a")
    with registered(fleet, "old"):
        said = ok(fleet, "add", "j", "--schedule", "@every 1s", "--each", "--", "true")
        assert "host old is too old for each" in said
        assert set(hosts_of_runs(fleet, "j", 2)) == {"a"}
        assert "too old" not in ok(fleet, "add", "plain", "--schedule", "@yearly", "--", "true")
        fleet.daemons["a"].process.terminate()
        fleet.daemons["a"].wait()
        assert "host old is too old for each" in ok(fleet, "ls")


def test_job_that_needs_what_we_cannot_do_is_left_alone(fleet: Fleet) -> None:
    """A later release may run it; this one says once that it does not."""
    daemon = fleet.start("a")
    value = {"schedule": ["@every 1s"], "cmd": ["true"], "needs": ["time-travel"]}
    fleet.bench.etcd.put(f"{fleet.bench.prefix}/cron/job/j", json.dumps(value))
    fleet.add("k", "@every 1s")
    fleet.results("k", 4)
    assert keys(fleet, "fire", "j") == []
    lines = daemon.events("nowhere", "too-old")
    assert len(lines) == 1, lines
    (line,) = lines
    assert "too old for time-travel" in line["msg"]


@pytest.mark.parametrize(
    "words",
    [
        ("conchd", "--tag", "a b"),
        ("conchd", "--tag", ""),
        ("conchd", "--tag", "-x"),
        ("conchd", "--tag", "host=other"),
        ("conchd", "--tag", "x" * 129),
        ("conchd", "--tag", "a/b"),
        ("cron", "add", "j", "--schedule", "@daily", "--on", "a b", "--", "true"),
        ("cron", "cordon", "a/b"),
        ("cron", "cordon", ""),
        ("cron", "cordon", "x" * 129),
        ("cron", "cordon"),
        ("cron", "uncordon", "ä"),
        ("cron", "hosts", "extra"),
    ],
)
def test_bad_tags_and_hosts(fleet: Fleet, words: tuple[str, ...]) -> None:
    """One line, 64, and nothing is written."""
    done = fleet.bench.run(*words)
    assert done.returncode == 64
    assert len(done.stderr.strip().splitlines()) == 1
    assert not list(fleet.bench.etcd.get_prefix(f"{fleet.bench.prefix}/"))
