"""How each release treats leases and members that do not serve, and that conch's holds survive it."""

import itertools
import os
import secrets
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from conch.core import clock
from conch.dev import Cluster, Member, find_etcd
from conch.etcd.store import CreateRevisionIs, Put, Range, Store, StoreError, Unreachable
from conch.keeper.session import Session
from tests.faults.cluster.conftest import Three
from tests.support.conch import Bench, Wrapper, alive, new_store, throughout, wait_for
from tests.support.cron import Fleet
from tests.support.etcdbin import running
from tests.support.etcdctl import leader
from tests.support.members import add_learner
from tests.support.proxy import Proxy

# Allows for a machine that is busy with other tests.
SOON_S = 1.0
LOSSES = ("our key is gone: deleted, or its lease revoked or run out", "our key is gone", "the lease is gone")


@pytest.fixture(params=["grpc", "http"])
def transport(request: pytest.FixtureRequest) -> str:
    """Each driver."""
    return str(request.param)


@pytest.fixture
def store_on() -> Iterator[Callable[[str, str], Store]]:
    """Make stores on endpoints, over a driver; close them after the test."""
    stores: list[Store] = []

    def make(endpoints: str, transport: str = "http") -> Store:
        stores.append(new_store(endpoints, transport=transport))
        return stores[-1]

    yield make
    for store in stores:
        store.close()


MakeStore = Callable[..., Store]


def new_lease() -> int:
    return secrets.randbits(62) | 1


def stop(*members: Member) -> None:
    """Freeze members; all of their threads are stopped when this returns."""
    for member in members:
        os.kill(member.pid, signal.SIGSTOP)
    for member in members:
        wait_for(lambda member=member: all_stopped(member.pid), "it stands")  # type: ignore[misc]


def all_stopped(pid: int) -> bool:
    tasks = Path(f"/proc/{pid}/task").glob("*/stat")
    return all(task.read_text().rpartition(") ")[2].startswith("T") for task in tasks)


def wake(*members: Member) -> None:
    for member in members:
        os.kill(member.pid, signal.SIGCONT)


def others(cluster: Cluster, *but: Member) -> list[Member]:
    return [member for member in cluster.members if member not in but]


def serves(store: Store) -> bool:
    """Whether a linearizable read is answered."""
    try:
        store.range(Range(b"x"), timeout_s=0.5)
    except StoreError:
        return False
    return True


class Deletion:
    """When each key below a prefix was deleted, by conch's clock, as one member reports it."""

    def __init__(self, store: Store, prefix: str, revision: int) -> None:
        self.at: dict[str, float] = {}
        end = prefix.encode()[:-1] + bytes([prefix.encode()[-1] + 1])
        self._watch = store.watch([(Range(prefix.encode(), end), revision)], deletes_only=True)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        for events in self._watch:
            for event in events:
                if event.deleted:
                    self.at.setdefault(event.kv.key.decode(), clock.now())

    def end(self) -> None:
        self._watch.cancel()
        self._thread.join(10)


# -- a former leader that wakes ------------------------------------------------------------------------------------

BEAT = "import time\nnow = lambda: time.clock_gettime(time.CLOCK_BOOTTIME)\n"
FIRST = (
    BEAT
    + """
import os, signal, sys
log = open(sys.argv[1], "a", buffering=1)
def term(*_):
    log.write(f"term {now()}\\n")
signal.signal(signal.SIGTERM, term)
log.write(f"start {now()}\\n")
while True:
    time.sleep(0.01)
    log.write(f"beat {now()}\\n")
"""
)


def times_of(path: Path, what: str) -> list[float]:
    """Return when a command logged something."""
    lines = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
    return [float(line[1]) for line in lines if len(line) == 2 and line[0] == what]


def longest_pause(path: Path) -> float:
    """Return the longest time between two beats of a command: how long this machine kept a process waiting."""
    beats = times_of(path, "beat")
    return max(later - earlier for earlier, later in itertools.pairwise(beats))


@pytest.mark.timeout(120)
@pytest.mark.parametrize("longer_than_ttl", [False, True], ids=["until another leads", "longer than the TTL"])
def test_woken_former_leader_and_the_hold(three: Three, store_on: MakeStore, longer_than_ttl: bool) -> None:
    """If the leader slept for less than the TTL, the hold is kept; after more, each release may revoke it.

    Up to 3.4.30 and 3.5.12, a former leader revokes leases that it takes for expired (etcd's issue 15247). Later
    releases first ask the others whether it leads, but only if its clock has not ticked for three heartbeats. If a
    whole process was stopped, the clock ticks immediately on waking, and chance decides which comes first.

    If it revokes, SIGTERM comes immediately, and the next holder overlaps for `--kill-after` at most; here the command
    ignores SIGTERM.
    """
    kill_after_s, ttl_s = 1.0, 7
    bench, cluster = three.bench, three.cluster
    frozen = three.leader()
    flags = ("--ttl", f"{ttl_s}s", "--kill-after", f"{kill_after_s}s", "--", "/usr/bin/env", "python3", "-c", FIRST)
    first = bench.start("elect", "o", *flags, str(bench.file("first")))
    first.child()
    second = bench.start("elect", "o", *flags, str(bench.file("second")))
    second.wait_event("queued")
    witness = store_on(",".join(member.endpoint for member in others(cluster, frozen)))
    key = bench.key("o", first.lease())
    revision = witness.range(Range(key.encode()), timeout_s=5).header.revision
    deletion = Deletion(witness, f"{bench.prefix}/", revision)
    frozen_at = clock.now()
    stop(frozen)
    try:
        wait_for(lambda: leader_of(others(cluster, frozen), frozen), "another leader")
        wait_for(lambda: serves(witness), "it serves")
        throughout(ttl_s + 1.5 if longer_than_ttl else 0.5, lambda: check_kept(first, second))
    finally:
        woken_at = clock.now()
        wake(frozen)
    # not the deletion of the waiter's key alone, whose lease may be revoked just before
    wait_for(lambda: clock.now() > woken_at + 2.5 or key in deletion.at, "what a woken leader does, it does at once")
    revoked = key in deletion.at
    print(
        f"\netcd {'.'.join(map(str, running()))}, frozen for {woken_at - frozen_at:.1f} s: "
        + (f"revoked {deletion.at[key] - woken_at:.3f} s after it woke" if revoked else "kept")
    )
    if revoked:
        assert woken_at - frozen_at > ttl_s / 2  # a busy machine may take long to elect another leader
        assert first.wait() == 70
        assert first.wait_event("lost")["reason"] in LOSSES
        (sigterm_at, *_), ended_at = times_of(bench.file("first"), "term"), times_of(bench.file("first"), "beat")[-1]
        print(f"SIGTERM {sigterm_at - deletion.at[key]:.3f} s after that, its end {ended_at - deletion.at[key]:.3f} s")
        busy_s = 4 * longest_pause(bench.file("first"))  # from etcd to the command there are four processes
        assert sigterm_at <= deletion.at[key] + 0.3 + busy_s
        assert ended_at <= deletion.at[key] + kill_after_s + SOON_S + busy_s
        if second.events("child-start"):  # it may have lost its lease in the same way
            (start_at, *_) = times_of(bench.file("second"), "start")
            assert start_at >= deletion.at[key] - 0.05 - busy_s
            assert ended_at - start_at <= kill_after_s + SOON_S + busy_s
    else:
        check_kept(first, second)
        assert not times_of(bench.file("first"), "term")
    deletion.end()


def leader_of(members: list[Member], but: Member) -> Member | None:
    """Return the leader that these members report, unless it is `but`."""
    some = Cluster.__new__(Cluster)
    some.members = members
    found = leader(some)
    return found if found is not but else None


def check_kept(first: Wrapper, second: Wrapper) -> None:
    assert first.process.poll() is None
    assert second.process.poll() is None
    assert not first.events("lost"), first.err
    assert not second.events("acquired"), first.err
    assert alive(first.child())


class Renewing:
    """The keeper's session on some endpoints, with a key of its own."""

    def __init__(self, store: Store, ttl_s: int) -> None:
        self.deadlines: list[float] = []
        self.losses: list[str] = []
        self.lease, self.key = new_lease(), f"/t/{secrets.token_hex(8)}"
        granted_at = clock.now()
        store.grant(self.lease, ttl_s, timeout_s=5)
        put = Put(self.key.encode(), b"", self.lease)
        made = store.txn([CreateRevisionIs(self.key.encode(), 0)], [put], timeout_s=5)
        self.session = Session(
            store,
            self.lease,
            ttl_s,
            granted_at,
            should_renew=lambda: True,
            renewed=self.deadlines.append,
            lost=self.losses.append,
            log=lambda *_args, **_fields: None,
        )
        self.session.follow(self.key, made.header.revision)


@pytest.mark.timeout(120)
def test_renewal_that_a_leader_without_its_followers_answers_proves_nothing(
    three: Three, store_on: MakeStore, transport: str
) -> None:
    """For an election timeout a former leader of any release still answers renewals, but no linearizable read.

    (3.5.13 and later ask the others first, but only if the clock has stood still.)
    """
    ttl_s = 4
    former = three.leader()
    store, raw = store_on(former.endpoint, transport), store_on(former.endpoint)
    renewing = Renewing(store, ttl_s)
    wait_for(lambda: len(renewing.deadlines) > 1, "renewals")
    left = others(three.cluster, former)
    stop(*left)
    stopped_at = clock.now()
    try:
        assert raw.keep_alive(renewing.lease, timeout_s=0.5).ttl_s == ttl_s
        assert not serves(raw)
        throughout(2.5, lambda: check_no_proof(renewing, stopped_at + ttl_s))
        # and now it has no leader
        for each in ("http", "grpc"):
            with pytest.raises(Unreachable):
                store_on(former.endpoint, each).keep_alive(renewing.lease, timeout_s=0.5)
    finally:
        renewing.session.stop()
        wake(*left)
    wait_for(lambda: serves(raw), "a leader")
    raw.revoke(renewing.lease, timeout_s=5)


def check_no_proof(renewing: Renewing, latest: float) -> None:
    assert max(renewing.deadlines) <= latest
    assert not renewing.losses


def test_renewal_through_a_follower_needs_a_leader(three: Three, store_on: MakeStore, transport: str) -> None:
    """The follower forwards it, and answers in the leader's term; without a leader it says so."""
    leads = three.leader()
    follower, other = others(three.cluster, leads)
    store = store_on(follower.endpoint, transport)
    renewing = Renewing(store, 3)
    wait_for(lambda: len(renewing.deadlines) > 1, "renewals")
    answer = store.keep_alive(renewing.lease, timeout_s=5)
    read = store.range(Range(b"x"), timeout_s=5)
    assert answer.ttl_s == 3
    assert (answer.header.member, answer.header.term) == (read.header.member, read.header.term)
    direct = store_on(leads.endpoint).range(Range(b"x"), timeout_s=5)
    assert direct.header.member != read.header.member
    stop(leads, other)
    stopped_at = clock.now()
    try:
        with pytest.raises(Unreachable):
            store.keep_alive(renewing.lease, timeout_s=0.5)

        def says_so() -> bool:
            with pytest.raises(Unreachable) as raised:
                store.keep_alive(renewing.lease, timeout_s=0.5)
            return "it has no leader" in str(raised.value)

        wait_for(says_so, "it says so", 10)
        check_no_proof(renewing, stopped_at + 3)
    finally:
        renewing.session.stop()
        wake(leads, other)
    wait_for(lambda: serves(store), "a leader")
    store.revoke(renewing.lease, timeout_s=5)


# -- how long a lease lasts ----------------------------------------------------------------------------------------


def test_granted_ttl_is_the_requested_one_or_more(tmp_path: Path, store_on: MakeStore, transport: str) -> None:
    """At an election timeout of 4 s etcd grants at least 6 s, and conch uses the granted TTL."""
    with Cluster(arguments=["--election-timeout", "4000"]) as cluster:
        store = store_on(cluster.endpoints, transport)
        for asked, given in ((1, 6), (2, 6), (3, 6), (5, 6), (6, 6), (7, 7), (10, 10)):
            lease = new_lease()
            assert store.grant(lease, asked, timeout_s=5).ttl_s == given
            assert store.keep_alive(lease, timeout_s=5).ttl_s == given
            store.revoke(lease, timeout_s=5)
        bench = Bench(cluster.endpoints, secrets.token_hex(8), tmp_path)
        done = bench.run("elect", "o", "--ttl", "3s", "--", "true", env={"CONCH_TRANSPORT": transport})
        assert done.returncode == 0
        assert " ttl_s=6 " in done.stderr
        bench.finish()


def checkpoints() -> tuple[str, ...]:
    """Return the flags that make this etcd keep checkpoints of leases, if it can even over a change of leader."""
    if running() >= (3, 6):
        return ("--feature-gates=LeaseCheckpoint=true,LeaseCheckpointPersist=true",)
    keep, persist = "--experimental-enable-lease-checkpoint", "--experimental-enable-lease-checkpoint-persist"
    # 3.5.1 lacks the second flag; 3.4.23 does not list it, and crashes with the first one alone
    known = subprocess.run([find_etcd(), persist, "--version"], capture_output=True, check=False, timeout=20)
    return (keep,) if known.returncode else (keep, persist)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpoints"])
def test_no_key_vanishes_within_a_ttl_of_its_last_renewal(store_on: MakeStore, checkpointing: bool) -> None:
    """After one renewal the leader dies, or all members restart: each lease lasts its TTL, or longer.

    (Checkpoints are made every five minutes, so a new leader restarts a shorter lease, with them and without.)
    """
    ttl_s = 4
    with Cluster(3, arguments=checkpoints() if checkpointing else ()) as cluster:
        for fault in ("leader dies", "all restart"):
            store = store_on(cluster.endpoints)
            renewing, granted_at = new_lease(), clock.now()
            store.grant(renewing, ttl_s, timeout_s=5)
            key = f"/t/{secrets.token_hex(4)}"
            put = store.txn([], [Put(key.encode(), b"", renewing)], timeout_s=5)
            leads = wait_for(lambda: leader(cluster), "a leader")
            assert leads is not None
            throughout(granted_at + ttl_s / 2 - clock.now(), lambda: None)
            sent_at = clock.now()
            assert store.keep_alive(renewing, timeout_s=2).ttl_s == ttl_s
            # not right after the renewal, when a restarted lease would last as long
            throughout(0.5, lambda: None)
            for member in cluster.members if fault == "all restart" else [leads]:
                cluster.kill(member)
            for member in cluster.members:
                if fault == "all restart":
                    cluster.restart(member)
            deletion = Deletion(store, key, put.header.revision)
            wait_for(lambda: deletion.at, "its end", 30)  # noqa: B023 - called immediately
            lasted_s = deletion.at[key] - sent_at
            print(f"\netcd {'.'.join(map(str, running()))}, {fault}: the key lasted {lasted_s:.2f} s of {ttl_s}")
            assert lasted_s >= ttl_s
            deletion.end()
            if fault == "leader dies":
                cluster.restart(leads)
                cluster.wait_ready()


# -- learners ------------------------------------------------------------------------------------------------------


@pytest.mark.timeout(120)
def test_learner_alone_serves_nobody(tmp_path: Path) -> None:
    """Beside another endpoint it does no harm; alone, every command exits 69 and says that it is a learner.

    This holds for both drivers.
    """
    with Cluster() as cluster:
        learner = add_learner(cluster)
        bench = Bench(cluster.members[0].endpoint, secrets.token_hex(8), tmp_path)
        wait_for(lambda: says_learner(bench, learner), "the learner answers")
        both = f"{learner.endpoint},{cluster.members[0].endpoint}"
        wrappers = []
        for transport in ("http", "grpc"):
            env = {"CONCH_TRANSPORT": transport, "CONCH_DIAL_TIMEOUT": "1s"}
            alone = ("--endpoints", learner.endpoint)
            daemon = ("--state-dir", str(tmp_path / transport))
            for line in (
                ("elect", "o", *alone, "--ttl", "3s", "--", "true"),
                ("elect", "o", *alone, "--nonblock", "--command-timeout", "1s", "--", "true"),
                ("elect", "o", *alone, "--who"),
                ("elect", "o", *alone, "--watch"),
                ("conchd", *alone, *daemon),
            ):
                wrappers.append(bench.start(*line, env=env))
            # whichever endpoint is tried first
            for _ in range(3):
                assert bench.run("elect", "o", "--endpoints", both, "--", "true", env=env).returncode == 0
                assert bench.run("elect", "o", "--endpoints", both, "--who", env=env).returncode == 1
        for wrapper in wrappers:
            assert wrapper.wait(20) == 69, wrapper.err
            assert "it is a learner" in wrapper.err, wrapper.err
            assert "Traceback" not in wrapper.err
        bench.finish()
        bench.check_etcd()


def says_learner(bench: Bench, learner: Member) -> bool:
    who = ("elect", "o", "--endpoints", learner.endpoint, "--who", "--dial-timeout", "1s")
    return "learner" in bench.run(*who).stderr


@pytest.mark.timeout(120)
def test_holds_and_watches_pass_over_a_learner(tmp_path: Path) -> None:
    """Holds, waiters, a watch and conchd lose their connection repeatedly, and get past the learner each time."""
    with Cluster() as cluster:
        learner = add_learner(cluster)
        proxy = Proxy(cluster.members[0].endpoint)
        bench = Bench(f"{proxy.endpoint},{learner.endpoint}", secrets.token_hex(8), tmp_path)
        fleet = Fleet(bench)
        wrappers, watches = [], []
        for transport in ("http", "grpc"):
            env = {"CONCH_TRANSPORT": transport}
            wrappers.append(bench.hold(transport, "--ttl", "5s", env=env))
            wrappers.append(bench.queue(transport, "--ttl", "5s", env=env))
            watches.append(bench.start("elect", "w", "--watch", env=env))
            wrappers.append(fleet.start(transport, env=env))
        for watch in watches:
            wait_for(lambda watch=watch: watch.out == "w -\n", "the watch")  # type: ignore[misc]
        for _ in range(4):
            proxy.cut()
            throughout(0.7, lambda: check_unharmed(wrappers, watches))
        assert bench.run("elect", "w", "--", "true").returncode == 0
        for watch in watches:
            wait_for(lambda watch=watch: watch.out.count("\n") == 3, "both changes")  # type: ignore[misc]
        throughout(3, lambda: check_unharmed(wrappers, watches))
        fleet.clean()
        bench.finish()
        proxy.close()


def check_unharmed(wrappers: list[Wrapper], watches: list[Wrapper]) -> None:
    for wrapper in (*wrappers, *watches):
        assert wrapper.process.poll() is None, wrapper.err
        assert not wrapper.events("lost", "place-lost", "defect"), wrapper.err


# -- idle watches --------------------------------------------------------------------------------------------------


@pytest.mark.timeout(120)
def test_watch_is_not_torn_down_by_twenty_seconds_of_silence(conch: Bench) -> None:
    """Each release answers a probe on the stream, which later shows the next change.

    (A progress request gets no answer from 3.5.35 and later while the watch begins at a future revision.)
    """
    proxies, watches = [], []
    for transport in ("http", "grpc"):
        proxies.append(Proxy(conch.endpoints))
        env = {"CONCH_TRANSPORT": transport}
        watches.append(conch.start("elect", "o", "--watch", "--endpoints", proxies[-1].endpoint, env=env))
        wait_for(lambda: watches[-1].out == "o -\n", "the watch")
        wait_for(lambda: "Watch" in proxies[-1].calls or "watch" in proxies[-1].calls, "its stream")
    seen = [(proxy.connections, len(proxy.calls)) for proxy in proxies]
    throughout(20, lambda: None)
    assert [(proxy.connections, len(proxy.calls)) for proxy in proxies] == seen
    assert conch.run("elect", "o", "--", "true").returncode == 0
    for watch in watches:
        wait_for(lambda watch=watch: watch.out.count("\n") == 3, "both changes")  # type: ignore[misc]
        assert not watch.err
    for proxy in proxies:
        proxy.close()
