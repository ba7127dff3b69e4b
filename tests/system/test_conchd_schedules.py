"""Schedules as real daemons run them: several per job, with jitter, an end, and a pause that ends by itself."""

import json
import time

from conch.cron.job import parse
from conch.times import rfc3339
from tests.support.conch import wait_for
from tests.support.cron import Fleet


def test_union_runs_each_tick_once(fleet: Fleet) -> None:
    """Two daemons; ticks that fall together are one run."""
    for host in ("a", "b"):
        fleet.start(host)
    fleet.add("j", "@every 2s", "--schedule", "@every 3s", "--overlap", "allow", command="echo $CONCH_TICK >> log")
    fleet.results("j", 6)
    fleet.bench.run("cron", "pause", "j")
    wait_for(lambda: set(fleet.ticks("fire", "j")) == set(fleet.ticks("result", "j")), "all are over")
    ran = [int(line) for line in fleet.bench.file("log").read_text().split()]
    assert len(ran) == len(set(ran))
    assert sorted(ran) == [tick for tick in range(min(ran), max(ran) + 1) if tick % 2 == 0 or tick % 3 == 0]


def test_jitter_starts_each_tick_at_its_offset(fleet: Fleet) -> None:
    """On whichever host, late by the offset that all compute; the tick keeps its name, and none is missed."""
    for host in ("a", "b"):
        fleet.start(host)
    began = "echo $CONCH_TICK $(date +%s.%N) >> log"
    fleet.add("j", "@every 2s", "--jitter", "1500ms", "--overlap", "allow", command=began)
    fleet.results("j", 6)
    value, _ = fleet.bench.etcd.get(f"{fleet.bench.prefix}/cron/job/j")
    job = parse("j", value)
    lines = [line.split() for line in fleet.bench.read("log").splitlines()]
    offsets = {int(tick): job.offset_s(int(tick), int(tick) + 2) for tick, _ in lines}
    for tick, at in lines:
        assert float(at) >= int(tick) + offsets[int(tick)]
    assert len(set(offsets.values())) > 1
    ticks = sorted(offsets)
    assert ticks == list(range(ticks[0], ticks[-1] + 1, 2))


def test_expired_job_runs_no_more(fleet: Fleet) -> None:
    """Its last tick is at the end or before; `ls` and `next` say that it has expired."""
    fleet.start("a")
    end = int(time.time()) + 3
    fleet.add("j", "@every 1s", "--expires", rfc3339(end), "--overlap", "allow")
    fleet.add("k", "@every 1s", "--overlap", "allow")
    wait_for(lambda: max(fleet.ticks("result", "k"), default=0) >= end + 2, "two ticks after the end")
    assert max(fleet.ticks("fire", "j")) == end
    shown = fleet.bench.run("cron", "ls")
    assert any(line.startswith("j ") and " expired " in line for line in shown.stdout.splitlines())
    done = fleet.bench.run("cron", "next", "--job", "j")
    assert (done.returncode, done.stdout) == (0, "")
    assert "it has expired" in done.stderr


def test_pause_ends_by_itself(fleet: Fleet) -> None:
    """With the first tick at the end of the pause; nobody writes the job."""
    fleet.start("a")
    fleet.add("j", "@every 1s", "--overlap", "allow", "--paused")
    key = f"{fleet.bench.prefix}/cron/job/j"
    value, _ = fleet.bench.etcd.get(key)
    until = int(time.time()) + 3
    fleet.bench.etcd.put(key, json.dumps({**json.loads(value), "paused_until": rfc3339(until)}))
    shown = fleet.bench.run("cron", "ls").stdout
    assert f"paused until {rfc3339(until)}" in shown
    assert min(fleet.results("j", 2)) == until
    assert "paused" not in fleet.bench.run("cron", "ls").stdout


def test_next_explains_a_job(fleet: Fleet) -> None:
    """Its schedules in words and its zone, jitter, pause and end."""
    flags = ["--tz", "Europe/Berlin", "--jitter", "5m", "--paused", "--expires", "2090-01-01T00:00:00Z"]
    added = fleet.bench.run(
        "cron", "add", "j", "--schedule", "30 2 * * *", "--schedule", "0 12 * * fri#2", *flags, "--", "true"
    )
    assert added.returncode == 0, added.stderr
    done = fleet.bench.run("cron", "next", "--job", "j", "--explain", "--after", "2026-11-27T00:00:00Z")
    assert done.stdout.splitlines() == [
        "At 02:30 (Europe/Berlin)",
        "At 12:00, on the second Friday of the month (Europe/Berlin)",
        "Each tick is due up to 300s later, at an offset of its own.",
        "The job is paused.",
        "The last tick comes at 2090-01-01T01:00:00+01:00 or before.",
        "2027-03-28 02:00 the clock is set to 03:00: 30 2 * * *: 02:30 does not exist; it fires at 03:00 instead",
        "2027-10-31 03:00 the clock is set to 02:00: 30 2 * * *: 02:30 comes twice; it fires the first time",
    ]


def test_ls_shows_when_in_the_zone_of_the_job(fleet: Fleet) -> None:
    """RFC 3339 with its offset."""
    for zone in ("Asia/Tokyo", "UTC"):
        name = zone[:3].lower()
        assert (
            fleet.bench.run("cron", "add", name, "--schedule", "0 5 * * *", "--tz", zone, "--", "true").returncode == 0
        )
    shown = fleet.bench.run("cron", "ls").stdout
    assert "T05:00:00+09:00" in shown
    assert "T05:00:00Z" in shown
