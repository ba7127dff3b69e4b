"""Seeded schedules: which faults, to whom, when; and the contenders that go through them."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import etcd3
import grpc

from conch.dev import Cluster
from tests.faults.invariant.checker import Allowance
from tests.support.conch import Bench, Wrapper, boottime, children
from tests.support.etcdctl import leader
from tests.support.proxy import Proxy

BEAT = str(Path(__file__).with_name("beat.py"))
TTL_S, KILL_AFTER_S = 3.0, 0.5


@dataclass
class Field:
    """A cluster behind proxies, and everything that happened to it."""

    bench: Bench
    cluster: Cluster
    proxies: list[Proxy]
    rng: random.Random
    story: list[str] = field(default_factory=list)
    allowances: list[Allowance] = field(default_factory=list)
    undo: list[tuple[float, Callable[[], None]]] = field(default_factory=list)
    kills: dict[int, float] = field(default_factory=dict)  # pids of those that were killed, by the wall clock
    touched: dict[int, float] = field(default_factory=dict)  # pids of contenders with a fault on, until when
    deaf_until: float = 0.0  # so long what is between conch and etcd may keep news back

    def note(self, text: str) -> None:
        self.story.append(f"{boottime():.3f} {text}")

    def keys(self) -> list[str] | None:
        """All keys; None while etcd cannot tell. A member that has ended by itself after all that is started again."""
        try:
            return self.bench.keys()
        except (etcd3.exceptions.Etcd3Exception, grpc.RpcError):
            for member in self.cluster.members:
                if not member.running():
                    self.note(f"member {member.name} ended by itself: {member.why_ended()}")
            self.heal()
            return None

    def faults(self) -> list[str]:
        """What was done, without the moments, pids and keys."""
        found = [re.sub(r" of \d+| for [\d.]+ s| on \d| /\S+", "", line.split(" ", 1)[1]) for line in self.story]
        return [one for one in found if one != "healed"]

    def later(self, seconds: float, what: Callable[[], None]) -> None:
        self.undo.append((time.monotonic() + seconds, what))

    def run_due(self) -> None:
        now = time.monotonic()
        due = [what for at, what in self.undo if at <= now]
        self.undo = [(at, what) for at, what in self.undo if at > now]
        for what in due:
            what()

    def heal(self) -> None:
        """Undo everything at once."""
        for _, what in self.undo:
            what()
        self.undo.clear()
        for proxy in self.proxies:
            proxy.heal()
        for member in self.cluster.members:
            if member.running():
                os.kill(member.pid, signal.SIGCONT)
            else:
                self.cluster.restart(member)
        self.cluster.wait_ready()
        self.note("healed")


def shapes(rng: random.Random, *, plain: bool) -> list[str]:
    """How a command behaves: a plain one leaves nothing that only conch's processes could end."""
    if plain:
        return rng.choice([[], ["ignore"], [f"{rng.uniform(0.3, 3):.2f}"]])
    return rng.choice(
        [[], ["ignore"], ["fork"], ["ignore", "fork"], ["daemon"], [f"{rng.uniform(0.3, 3):.2f}", "fork"]]
    )


def contender(ground: Field, kind: str, slots: int, log: Path, *, plain: bool) -> Wrapper:
    """Start one more that wants the hold."""
    hold = ("elect", "x") if kind == "elect" else ("sema", "x", "--max", str(slots))
    endpoints = ",".join(proxy.endpoint for proxy in ground.proxies)
    return ground.bench.start(
        *hold,
        *("--ttl", f"{TTL_S:g}s", "--kill-after", f"{KILL_AFTER_S:g}s", "--endpoints", endpoints),
        "--",
        *(sys.executable, "-I", "-S", BEAT, str(log), kind, "x", *shapes(ground.rng, plain=plain)),
    )


def keeper_of(wrapper: Wrapper) -> int | None:
    """The keeper, if it is there now."""
    for pid in children(wrapper.pid):
        try:
            if os.getsid(pid) == pid:
                return pid
        except ProcessLookupError:
            continue
    return None


def waiting_child_of(wrapper: Wrapper) -> int | None:
    """The command that waits behind its gate while conch queues."""
    for pid in children(wrapper.pid):
        try:
            if os.getsid(pid) != pid and b"conch" in Path(f"/proc/{pid}/cmdline").read_bytes():
                return pid
        except OSError:
            continue
    return None


def kill_quietly(pid: int, number: int) -> None:
    """It may have ended by itself."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass


def strike_process(ground: Field, wrappers: list[Wrapper], *, plain: bool) -> None:
    """Kill or stop one process of one contender; never what the contract does not cover: both stopped, or one killed
    while the other is stopped; both killed only where the command leaves nothing."""
    now = time.monotonic()
    free = [one for one in wrappers if one.process.poll() is None and ground.touched.get(one.pid, 0) < now]
    if not free:
        return
    one = ground.rng.choice(free)
    keeper = keeper_of(one)
    what = ground.rng.choice(["supervisor", "keeper", "waiting child", *(["both"] if plain else [])])
    struck: dict[str, list[int | None]] = {
        "supervisor": [one.pid],
        "keeper": [keeper],
        "waiting child": [waiting_child_of(one)],
        "both": [one.pid, keeper],
    }
    pids = [pid for pid in struck[what] if pid]
    if not pids:
        return
    if ground.rng.random() < 0.5 or what == "both":
        ground.note(f"kill -9 of {what} of {one.pid}")
        if what != "waiting child":
            ground.kills[one.pid] = time.time()
            ground.touched[one.pid] = now + 1000
        for pid in pids:
            kill_quietly(pid, signal.SIGKILL)
    else:
        seconds = TTL_S * ground.rng.choice([0.5, 1.0, 2.0])
        ground.note(f"stop of {what} of {one.pid} for {seconds} s")
        ground.touched[one.pid] = now + seconds + 1
        for pid in pids:
            kill_quietly(pid, signal.SIGSTOP)
            ground.later(seconds, lambda pid=pid: kill_quietly(pid, signal.SIGCONT))  # type: ignore[misc]


def strike_hold(ground: Field, kind: str) -> None:
    """Revoke a contender's lease, or delete its key, by hand: one that cannot hear of it ends by its deadline."""
    try:
        keys = ground.bench.keys_below("elect/x/" if kind == "elect" else "sema/x/")
    except Exception:
        return
    if not keys:
        return
    key = ground.rng.choice(keys[:2])
    try:
        owner = json.loads(ground.bench.etcd.get(key)[0] or b"{}").get("pid", 0)
    except Exception:
        return
    now = time.monotonic()
    stopped = owner not in ground.kills and ground.touched.get(owner, 0) > now
    revoke = ground.rng.random() < 0.5
    ground.note(f"{'revoke' if revoke else 'delete'} {key}")
    deaf = stopped or now < ground.deaf_until
    ground.allowances.append(Allowance(boottime(), TTL_S if deaf else KILL_AFTER_S))
    if revoke:
        try:
            ground.bench.etcd.revoke_lease(int(key.rpartition("/")[2], 16))
        except Exception:
            return
    else:
        ground.bench.etcd.delete(key)


def strike_member(ground: Field) -> None:
    """Kill, freeze or restart members of etcd; a leader that wakes from a freeze may revoke what is alive."""
    up = [member for member in ground.cluster.members if member.running()]
    if len(up) < 3 or any("member" in note for note in ground.story[-1:]):
        return
    try:
        first = leader(ground.cluster) or up[0]
    except (AssertionError, KeyError, subprocess.TimeoutExpired):
        first = up[0]  # there is none just now
    which = ground.rng.choice(["one", "leader", "two"])
    chosen = {"one": [ground.rng.choice(up)], "leader": [first], "two": ground.rng.sample(up, 2)}[which]
    seconds = TTL_S * ground.rng.choice([0.5, 1.5])
    freeze = ground.rng.random() < 0.5
    ground.note(f"member: {'freeze' if freeze else 'kill'} {which} for {seconds} s")
    if freeze:  # who watches at a dead one hears so at once
        ground.deaf_until = max(ground.deaf_until, time.monotonic() + seconds + 1)
    for member in chosen:
        if freeze:
            os.kill(member.pid, signal.SIGSTOP)

            def wake(pid: int = member.pid, leads: bool = member is first) -> None:
                if leads:
                    ground.allowances.append(Allowance(boottime(), KILL_AFTER_S))
                kill_quietly(pid, signal.SIGCONT)

            ground.later(seconds, wake)
        else:
            ground.cluster.kill(member)
            ground.later(seconds, lambda member=member: ground.cluster.restart(member))  # type: ignore[misc]


def strike_network(ground: Field) -> None:
    """Break the way to one member or to all of them, or lose single replies."""
    how = ground.rng.choice(["blackhole", "cut", "drop", "delay", "lose replies"])
    several = ground.proxies if ground.rng.random() < 0.3 else [ground.rng.choice(ground.proxies)]
    seconds = TTL_S * ground.rng.choice([0.3, 0.7, 1.5])
    ground.note(f"network: {how} on {len(several)} for {seconds:.1f} s")
    if how in ("blackhole", "lose replies", "delay"):  # a watch that is cut is opened anew at once
        ground.deaf_until = max(ground.deaf_until, time.monotonic() + seconds + 1)
    for proxy in several:
        if how == "blackhole":
            proxy.blackhole()
        elif how == "cut":
            proxy.cut()
        elif how == "lose replies":
            proxy.lose_replies.set()
        else:
            method = ground.rng.choice(["Txn", "Range", "LeaseGrant", "LeaseRevoke", "LeaseKeepAlive"])
            proxy.fault(method, how, delay_s=1.0, times=ground.rng.randint(1, 3))
        ground.later(seconds, proxy.heal)
