"""Seeded schedules: which faults hit which process, member or connection, and when; and the contenders they hit."""

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
FORMS = ("auto", "tree")


def form(seed: int, kind: str) -> str:
    """Draw what contains the runs of a schedule. One seed gives different forms to schedules of different kinds."""
    return random.Random(f"{kind} {seed}").choice(FORMS)


@dataclass
class Field:
    """A cluster behind proxies, and a record of all faults."""

    bench: Bench
    cluster: Cluster
    proxies: list[Proxy]
    rng: random.Random
    story: list[str] = field(default_factory=list)
    allowances: list[Allowance] = field(default_factory=list)
    undo: list[tuple[float, Callable[[], None]]] = field(default_factory=list)
    kills: dict[int, float] = field(default_factory=dict)  # pids of killed contenders, with the wall clock at the kill
    touched: dict[int, float] = field(default_factory=dict)  # pids of contenders with an active fault, and its end
    deaf_until: float = 0.0  # until then the network may hold back etcd's events

    def note(self, text: str) -> None:
        self.story.append(f"{boottime():.3f} {text}")

    def keys(self) -> list[str] | None:
        """Return all keys, or None while etcd does not answer; a member that ended by itself is started again."""
        try:
            return self.bench.keys()
        except (etcd3.exceptions.Etcd3Exception, grpc.RpcError):
            for member in self.cluster.members:
                if not member.running():
                    self.note(f"member {member.name} ended by itself: {member.why_ended()}")
            self.heal()
            return None

    def faults(self) -> list[str]:
        """Return the faults without times, pids and keys."""
        found = [re.sub(r" of \d+| for [\d.]+ s| on \d| /\S+", "", line.split(" ", 1)[1]) for line in self.story]
        return [fault for fault in found if fault != "healed"]

    def later(self, seconds: float, action: Callable[[], None]) -> None:
        self.undo.append((time.monotonic() + seconds, action))

    def run_due(self) -> None:
        now = time.monotonic()
        due = [action for at, action in self.undo if at <= now]
        self.undo = [(at, action) for at, action in self.undo if at > now]
        for action in due:
            action()

    def heal(self) -> None:
        """Undo all faults now."""
        for _, action in self.undo:
            action()
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
    """Draw how a command behaves: a plain one leaves no process that only conch could end."""
    if plain:
        return rng.choice([[], ["ignore"], [f"{rng.uniform(0.3, 3):.2f}"]])
    return rng.choice(
        [[], ["ignore"], ["fork"], ["ignore", "fork"], ["daemon"], [f"{rng.uniform(0.3, 3):.2f}", "fork"]]
    )


def contender(ground: Field, kind: str, slots: int, log: Path, *, plain: bool) -> Wrapper:
    """Start one more contender for the hold."""
    hold = ("elect", "x") if kind == "elect" else ("sema", "x", "--max", str(slots))
    endpoints = ",".join(proxy.endpoint for proxy in ground.proxies)
    return ground.bench.start(
        *hold,
        *("--ttl", f"{TTL_S:g}s", "--kill-after", f"{KILL_AFTER_S:g}s", "--endpoints", endpoints),
        "--",
        *(sys.executable, "-I", "-S", BEAT, str(log), kind, "x", *shapes(ground.rng, plain=plain)),
    )


def keeper_of(wrapper: Wrapper) -> int | None:
    """Return the pid of the keeper, if there is one now."""
    for pid in children(wrapper.pid):
        try:
            if os.getsid(pid) == pid:
                return pid
        except ProcessLookupError:
            continue
    return None


def waiting_child_of(wrapper: Wrapper) -> int | None:
    """Return the pid of the command that waits behind its gate while conch queues."""
    for pid in children(wrapper.pid):
        try:
            if os.getsid(pid) != pid and b"conch" in Path(f"/proc/{pid}/cmdline").read_bytes():
                return pid
        except OSError:
            continue
    return None


def kill_quietly(pid: int, number: int) -> None:
    """Send a signal to a process that may have ended by itself."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass


def strike_process(ground: Field, wrappers: list[Wrapper], *, plain: bool) -> None:
    """Kill or stop one process of one contender.

    Never do what the contract excludes: stop both, or kill one while the other is stopped. Kill both only where the
    command leaves no process.
    """
    now = time.monotonic()
    free = [
        wrapper for wrapper in wrappers if wrapper.process.poll() is None and ground.touched.get(wrapper.pid, 0) < now
    ]
    if not free:
        return
    wrapper = ground.rng.choice(free)
    keeper = keeper_of(wrapper)
    what = ground.rng.choice(["supervisor", "keeper", "waiting child", *(["both"] if plain else [])])
    struck: dict[str, list[int | None]] = {
        "supervisor": [wrapper.pid],
        "keeper": [keeper],
        "waiting child": [waiting_child_of(wrapper)],
        "both": [wrapper.pid, keeper],
    }
    pids = [pid for pid in struck[what] if pid]
    if not pids:
        return
    if ground.rng.random() < 0.5 or what == "both":
        ground.note(f"kill -9 of {what} of {wrapper.pid}")
        if what != "waiting child":
            ground.kills[wrapper.pid] = time.time()
            ground.touched[wrapper.pid] = now + 1000
        for pid in pids:
            kill_quietly(pid, signal.SIGKILL)
    else:
        seconds = TTL_S * ground.rng.choice([0.5, 1.0, 2.0])
        ground.note(f"stop of {what} of {wrapper.pid} for {seconds} s")
        ground.touched[wrapper.pid] = now + seconds + 1
        for pid in pids:
            kill_quietly(pid, signal.SIGSTOP)
            ground.later(seconds, lambda pid=pid: kill_quietly(pid, signal.SIGCONT))  # type: ignore[misc]


def strike_hold(ground: Field, kind: str) -> None:
    """Revoke a contender's lease, or delete its key; a contender that cannot hear of it ends at its deadline."""
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
    """Kill or freeze members of etcd; a leader that wakes from a freeze may revoke living leases."""
    up = [member for member in ground.cluster.members if member.running()]
    if len(up) < 3 or any("member" in note for note in ground.story[-1:]):
        return
    try:
        first = leader(ground.cluster) or up[0]
    except (AssertionError, KeyError, subprocess.TimeoutExpired):
        first = up[0]  # there is no leader now
    which = ground.rng.choice(["one", "leader", "two"])
    chosen = {"one": [ground.rng.choice(up)], "leader": [first], "two": ground.rng.sample(up, 2)}[which]
    seconds = TTL_S * ground.rng.choice([0.5, 1.5])
    freeze = ground.rng.random() < 0.5
    ground.note(f"member: {'freeze' if freeze else 'kill'} {which} for {seconds} s")
    if freeze:  # a watch on a dead member ends immediately, one on a frozen member does not
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
    """Break the network to one member or to all, or lose single replies."""
    how = ground.rng.choice(["blackhole", "cut", "drop", "delay", "lose replies"])
    several = ground.proxies if ground.rng.random() < 0.3 else [ground.rng.choice(ground.proxies)]
    seconds = TTL_S * ground.rng.choice([0.3, 0.7, 1.5])
    ground.note(f"network: {how} on {len(several)} for {seconds:.1f} s")
    if how in ("blackhole", "lose replies", "delay"):  # a watch that is cut is reopened immediately
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
