"""The promise itself, under seeded schedules of faults."""

import datetime
import json
import random
import secrets
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conch.dev import Cluster
from tests.conftest import FIXED_SEED
from tests.faults.invariant import checker, faults
from tests.faults.invariant.conftest import FAILURE
from tests.faults.invariant.faults import Field
from tests.support.conch import TRANSPORT, Bench, Wrapper, alive, boottime, marked, wait_for
from tests.support.cron import Fleet
from tests.support.proxy import Proxy

FAULTS_S = 9.0
CONVERGED_S = faults.TTL_S + 5
HOLDS = (("elect", 1), ("sema", 1), ("sema", 2), ("sema", 3))
TICKS = ((2, "allow"), (3, "forbid"))


@pytest.fixture
def report(request: pytest.FixtureRequest, seed: int) -> Iterator[dict[str, Any]]:
    """Collect what a schedule measured, for `--report`."""
    kind = kind_of(request, seed)
    seen: dict[str, Any] = {"seed": seed, "of": kind, "transport": TRANSPORT, "contain": faults.form(seed, kind)}
    yield seen
    path = request.config.getoption("--report")
    if path:
        seen["failure"] = request.node.stash.get(FAILURE, "it was not run")
        with open(path, "a") as file:
            file.write(json.dumps(seen) + "\n")


def kind_of(request: pytest.FixtureRequest, seed: int) -> str:
    """Name the kind of a schedule, by the parameters of its test without the seed."""
    return "-".join(part for part in request.node.callspec.id.split("-") if part != str(seed))


@pytest.fixture
def ground(members: Cluster, seed: int, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Field]:
    """A cluster behind proxies, a random generator with the seed, and the form of containment drawn from it."""
    proxies = [Proxy(member.endpoint) for member in members.members]
    bench = Bench(members.endpoints, secrets.token_hex(8), tmp_path)
    bench.contain = faults.form(seed, kind_of(request, seed))
    ground = Field(bench, members, proxies, random.Random(seed))
    yield ground
    ground.heal()
    for proxy in proxies:
        proxy.close()
    bench.finish()
    bench.check_etcd()


def replay(request: pytest.FixtureRequest, ground: Field, seed: int) -> str:
    """Describe a failure: the command that replays it, what contained the runs, the faults so far, the keys in etcd."""
    name = request.node.nodeid.split("[")[0]
    story = "\n  ".join(ground.story)
    replayed = (
        f"replay: python -m pytest {name} --seed {seed} --schedules 1\nlogs: {ground.bench.folder}\n"
        f"runs were started with --contain {ground.bench.contain}\n  {story}"
    )
    try:
        there = ["\nkeys:"]
        for _, meta in ground.bench.etcd.get_prefix(ground.bench.prefix):
            left_s = ground.bench.etcd.get_lease_info(meta.lease_id).TTL if meta.lease_id else "-"
            there.append(f"{meta.key.decode()} rev={meta.create_revision} ttl={left_s}")
    except Exception as error:
        there.append(str(error))
    return replayed + "\n  ".join(there)


@pytest.mark.parametrize(("kind", "slots"), HOLDS)
def test_never_more_than_n_at_once(
    ground: Field, seed: int, kind: str, slots: int, request: pytest.FixtureRequest, report: dict[str, Any]
) -> None:
    """N + 2 contenders come and go through kills, stops, revocations, dead members and broken networks."""
    rng = ground.rng
    log = ground.bench.file("beats")
    plain = rng.random() < 0.5
    count = slots + 2
    line: list[Wrapper] = []
    strikes = [
        lambda: faults.strike_process(ground, line, plain=plain),
        lambda: faults.strike_process(ground, line, plain=plain),
        lambda: faults.strike_member(ground),
        lambda: faults.strike_network(ground),
        lambda: faults.strike_hold(ground, kind),
    ]
    until = time.monotonic() + FAULTS_S
    next_at = time.monotonic() + 1.5
    while time.monotonic() < until:
        running = living(line)
        if len(running) < count:
            line.append(faults.contender(ground, kind, slots, log, plain=plain))
        if time.monotonic() >= next_at:
            next_at = time.monotonic() + rng.uniform(0.3, 1.5)
            rng.choice(strikes)()
        if rng.random() < 0.01 and running:
            ground.note("a contender is told to leave")
            rng.choice(running).signal(signal.SIGTERM)
        ground.run_due()
        time.sleep(0.02)
    ground.heal()

    # now exactly N of the contenders must hold
    while len(living(line)) < count:
        line.append(faults.contender(ground, kind, slots, log, plain=True))

    def converged() -> bool:
        fresh = {beats.rev for beats in checker.read(log) if beats.end > boottime() - 0.3}
        if len(living(line)) < count:
            line.append(faults.contender(ground, kind, slots, log, plain=True))
        return len(fresh) == slots

    healed = time.monotonic()
    report["faults"] = ground.faults()
    try:
        wait_for(converged, f"{slots} holders", CONVERGED_S + 5)
        report["converged_s"] = time.monotonic() - healed
    except AssertionError as error:
        raise AssertionError(f"{error}\n{replay(request, ground, seed)}") from None
    for wrapper in living(line):
        wrapper.signal(signal.SIGTERM)
    codes = [wrapper.wait() for wrapper in line]
    # an interval is per token and pid: a pid that is used again under another token joins nothing
    intervals = checker.read(log)
    held = checker.holds(intervals)
    problems = checker.overlaps(held, slots, ground.allowances)
    if slots == 1:  # where several may hold, the one that hears of it first starts first
        problems += checker.order(held, slots)
    problems += outlived(line, held)
    report["holds"] = len(held)
    report["slack_s"] = slack([wrapper for wrapper in line if wrapper.pid not in ground.touched], held)
    problems += [
        f"a command lived {-left_s:.3f} s longer than its deadline" for left_s in report["slack_s"] if left_s < 0
    ]
    if slots == 1:
        report["hand_over_s"] = checker.gaps(held)
    odd = [code for code in codes if code not in (0, 69, 70, 75, 137, 143)]
    problems += [f"odd exit code {code}" for code in odd]
    assert not problems, "\n".join([*problems, replay(request, ground, seed)])
    wait_for(lambda: not marked(ground.bench.mark), "no process left")
    # a contender that lost both of its processes leaves its lease to expire
    wait_for(lambda: ground.keys() == [], f"no key left\n{replay(request, ground, seed)}")


@pytest.mark.parametrize("kinds", [HOLDS, TICKS])
def test_first_seed_has_schedules_with_and_without_cgroups(kinds: tuple[tuple[object, object], ...]) -> None:
    """A short check runs one schedule of each kind, all with the same seed."""
    assert {faults.form(FIXED_SEED, f"{first}-{second}") for first, second in kinds} == set(faults.FORMS)


def living(line: list[Wrapper]) -> list[Wrapper]:
    """Return the contenders that have not ended."""
    return [wrapper for wrapper in line if wrapper.process.poll() is None]


def outlived(line: list[Wrapper], held: list[checker.Interval]) -> list[str]:
    """List runs that gave a sign of life after conch had logged the release of their hold."""
    offset = time.time() - boottime()
    last = {hold.rev: hold.end for hold in held}
    problems = []
    for wrapper in line:
        for event in wrapper.events("released"):
            at = stamp(event["ts"]) - offset
            if event["level"] == "info" and last.get(int(event.get("rev", 0)), 0) > at + 0.02:
                problems.append(f"{event['rev']} ran after its release at {at:.3f}")
    return problems


def slack(line: list[Wrapper], held: list[checker.Interval]) -> list[float]:
    """Return the time from last beat to deadline of each command that ended because its hold could not be renewed.

    It is the deadline that conch knew: the keeper of a stopped conch may have renewed and known a later one.
    """
    offset = time.time() - boottime()
    last = {hold.rev: hold.end for hold in held}
    return [
        stamp(event["ts"]) - offset + float(event["left_s"]) - last[int(event["rev"])]
        for wrapper in line
        for event in wrapper.events("lost")
        if int(event["rev"]) in last and not event["reason"].startswith("our key")
    ]


def missed(bench: Bench) -> list[tuple[float, float]]:
    """Return the first and last tick of each report of missed ticks."""
    return [
        (stamp(event["tick"]), stamp(event["until"])) for daemon in bench.wrappers for event in daemon.events("missed")
    ]


def witnesses(bench: Bench) -> list[float]:
    """Return since when each living scheduler has been registered; it remembers through all faults what to claim."""
    found = []
    for daemon in bench.wrappers:
        events = daemon.events("registered", "keeper-died") if daemon.process.poll() is None else []
        deaths = [at for at, event in enumerate(events) if event["event"] == "keeper-died"]
        found += [stamp(event["ts"]) for event in events[deaths[-1] + 1 if deaths else 0 :][:1]]
    return found


def stamp(text: str) -> float:
    return datetime.datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


@pytest.mark.parametrize(("hosts", "overlap"), TICKS)
def test_each_tick_runs_at_most_once(
    ground: Field, seed: int, hosts: int, overlap: str, request: pytest.FixtureRequest, report: dict[str, Any]
) -> None:
    """Daemons are killed, stopped, cut off and restarted: a tick has one claim, at most one run, and a result."""
    rng, bench = ground.rng, ground.bench
    log = bench.file("beats")
    fleet = Fleet(bench)
    endpoints = ",".join(proxy.endpoint for proxy in ground.proxies)

    def start(host: str) -> Wrapper:
        return fleet.start(host, "--ttl", f"{faults.TTL_S:g}s", "--endpoints", endpoints, ready=False)

    names = [f"h{number}" for number in range(hosts)]
    daemons = {name: start(name) for name in names}
    rules = ("--schedule", "@every 1s", "--overlap", overlap, "--kill-after", f"{faults.KILL_AFTER_S:g}s")
    seconds = "1.4" if overlap == "forbid" else "0.3"
    bench.run("cron", "add", "j", *rules, "--", sys.executable, "-I", "-S", faults.BEAT, str(log), "cron", "j", seconds)
    began = int(time.time()) + 2
    until = time.monotonic() + FAULTS_S
    next_at = time.monotonic() + 2.5
    while time.monotonic() < until:
        for name in names:
            if daemons[name].process.poll() is not None:
                daemons[name] = start(name)
        if time.monotonic() >= next_at:
            next_at = time.monotonic() + rng.uniform(0.5, 2)
            match rng.choice(["process", "process", "network", "member"]):
                case "process":
                    faults.strike_process(ground, list(daemons.values()), plain=True)
                case "network":
                    faults.strike_network(ground)
                case _:
                    faults.strike_member(ground)
        ground.run_due()
        time.sleep(0.02)
    ground.heal()
    for name in names:
        if daemons[name].process.poll() is not None:
            daemons[name] = start(name)

    healed_at = time.monotonic()
    report["faults"] = ground.faults()

    def node_keys() -> bool:
        return len(bench.keys_below("node/")) == hosts

    try:
        wait_for(node_keys, "all daemons are registered", CONVERGED_S + 5)
        healed = int(time.time()) + 1
        wait_for(lambda: [t for t in fleet.ticks("fire", "j") if t > healed], "ticks go on", CONVERGED_S)
        report["converged_s"] = time.monotonic() - healed_at
        bench.run("cron", "pause", "j")

        def open_claims() -> list[int]:
            """Return claims without a result, except those whose daemon was killed before it knew of them."""
            fired, over = fleet.ticks("fire", "j"), fleet.ticks("result", "j")
            return [tick for tick in fired.keys() - over.keys() if ground.kills.get(fired[tick]["pid"], 0) < tick - 1]

        wait_for(lambda: not open_claims(), "every claim has a result", 30)
        claims, results = fleet.ticks("fire", "j"), fleet.ticks("result", "j")
        missing = [tick for tick in range(began, max(claims)) if tick not in claims]
        report["missing"] = len(missing)

        def unexplained() -> list[int]:
            return checker.unexplained(missing, missed(bench), witnesses(bench))

        wait_for(lambda: not unexplained(), f"of these ticks without a claim each has a reason: {missing}")
    except AssertionError as error:
        raise AssertionError(f"{error}\n{replay(request, ground, seed)}") from None
    fleet.clean()
    runs = checker.read(log)
    report["ticks"], report["runs"] = len(claims), len(runs)
    problems = []
    ran = [run.rev for run in runs]
    problems += [f"tick {tick} ran {ran.count(tick)} times" for tick in set(ran) if ran.count(tick) > 1]
    problems += [f"tick {tick} ran without a claim" for tick in set(ran) - set(claims)]
    problems += [
        f"tick {t} is {results[t]['state']} and never ran"
        for t in claims
        if results.get(t, {}).get("state") == "ok" and t not in ran
    ]
    if overlap == "forbid":
        problems += checker.overlaps(runs, 1, ground.allowances)
    assert not problems, "\n".join([*problems, replay(request, ground, seed)])
    wait_for(lambda: not marked(bench.mark), "no process left")
    assert not [run.pid for run in runs if alive(run.pid)]
