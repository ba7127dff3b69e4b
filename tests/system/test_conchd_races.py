"""Races and limits: unclear claims, ticks that wait, the run log's order, odd values, many deadlines together."""

import asyncio
import json
import os
import queue
import resource
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from conch.core.messages import Drain, Ended, Finished, Kill, Note, Running, Start
from conch.cron.claim_outcomes import Outcome
from conch.cron.run_log import Entry, RunLog
from conch.cron.wal import Wal
from conch.etcd.store import Put, TxnResult, Unreachable
from tests.conftest import OwnEtcd
from tests.support.conch import Bench, alive, boottime, conch_that_runs, marked, throughout, wait_for
from tests.support.cron import Fleet, once
from tests.support.host import Host
from tests.support.proxy import Proxy

UNTIL_GO = "echo $$ >> runs; while [ ! -e go ]; do sleep 0.05; done"


class Slow(Host):
    """A host whose runs last until the test ends them; it records the runs that it is told to kill."""

    def __init__(self, bench: Bench, name: str, folder: Path, limit_s: float | None) -> None:
        self.orders: dict[tuple[str, int], Start] = {}  # the active runs, by job and tick
        self.killed: set[str] = set()
        self._ending: queue.SimpleQueue[Start] = queue.SimpleQueue()
        self._closing = False
        super().__init__(bench, name, folder, limit_s=limit_s)

    def _supervise(self) -> None:
        while not self._ours.closed:
            for message in self._ours.drain():
                match message:
                    case Note():
                        self.notes.append(message)
                    case Start():
                        tick = int(message.environment["CONCH_TICK"])
                        self._ours.send(Running(2**22 + 7, message.run, [], 1.0, message.run))
                        self.runs.append((tick, time.time()))
                        self.orders[message.environment["CONCH_NAME"], tick] = message
                    case Kill():
                        self.killed.add(message.run)
            if self._closing:
                for name, tick in list(self.orders):
                    self.end(tick, name)
            while not self._ending.empty():
                order = self._ending.get()
                self._ours.send(Ended(order.run))
                self._ours.send(Finished(order.run, "ended", 0, 1, time.time(), 0.0, ""))
            time.sleep(0.005)

    def wait_start(self, tick: int, name: str = "j") -> Start:
        """Wait until a tick's run starts; return its order."""
        wait_for(lambda: (name, tick) in self.orders, f"the run of {name} {tick}")
        return self.orders[name, tick]

    def was_killed(self, order: Start) -> bool:
        """Whether the supervisor was asked to end this run."""
        return order.run in self.killed

    def end(self, tick: int, name: str = "j") -> None:
        """End its command successfully."""
        self._ending.put(self.orders.pop((name, tick)))

    def drain(self) -> None:
        """Send what the supervisor sends at SIGTERM."""
        self._mailbox.put(Drain())

    def close(self) -> None:
        self._closing = True
        self.drain()
        super().close()


class Bed:
    """Hosts in this process, behind a proxy if a test wants one, and jobs as anyone may write them."""

    def __init__(self, fleet: Fleet, folder: Path) -> None:
        self.fleet = fleet
        self.bench = fleet.bench
        self._folder = folder
        self._hosts: list[Host] = []
        self._proxies: list[Proxy] = []

    def folder(self, name: str = "a") -> Path:
        return self._folder / f"host-{name}"

    def host(self, proxy: Proxy | None = None, *, limit_s: float | None = None) -> Slow:
        """Start a host whose runs the test ends; it has the shared leases, so that a claim is one transaction."""
        bench = self.bench if proxy is None else Bench(proxy.endpoint, self.bench.mark, self._folder)
        host = Slow(bench, "a", self.folder(), limit_s)
        self._hosts.append(host)
        host.wait_event("registered")
        self.put("first", overlap="allow")
        first = self.request("first")
        host.wait_start(first, "first")
        host.end(first, "first")
        self.fleet.result("first", first)
        return host

    def quick(self) -> Host:
        """Start a host whose runs end immediately."""
        host = Host(self.bench, "a", self.folder())
        self._hosts.append(host)
        host.wait_event("registered")
        return host

    def proxy(self) -> Proxy:
        self._proxies.append(Proxy(self.bench.endpoints))
        return self._proxies[-1]

    def put(self, name: str = "j", **fields: object) -> None:
        """Write a job."""
        job = {"schedule": "@yearly", "cmd": ["true"], "overlap": "forbid", **fields}
        self.bench.etcd.put(f"{self.bench.prefix}/cron/job/{name}", json.dumps(job))

    def request(self, name: str = "j") -> int:
        """Request a run now; return the tick that it is claimed for, a newer one each time."""
        return self.fleet.request(name)

    def run_key(self, name: str = "j") -> dict[str, Any] | None:
        return self.fleet.value("run", name)

    def close(self) -> None:
        for proxy in self._proxies:
            proxy.heal()
        for host in self._hosts:
            host.close()
        for proxy in self._proxies:
            proxy.close()


@pytest.fixture
def bed(fleet: Fleet, tmp_path: Path) -> Iterator[Bed]:
    bed = Bed(fleet, tmp_path)
    yield bed
    bed.close()


# -- claims whose outcome is not known --------------------------------------------------------------------


def test_unclear_claim_past_its_deadline_leaves_no_run_key(bed: Bed) -> None:
    """etcd made the claim, but no answer came in time: the tick is recorded as skipped, and the next one runs."""
    proxy = bed.proxy()
    host = bed.host(proxy)
    bed.put(start_deadline=1.0)
    fault = proxy.fault("Txn", "drop", skip=1)  # spares the search for a free second
    tick = bed.request()
    assert fault.hit.wait(5)
    assert bed.fleet.result("j", tick)["state"] == "skipped"
    wait_for(lambda: bed.run_key() is None, "the run key is gone", 2)
    assert ("j", tick) not in host.orders
    host.wait_start(bed.request())


def test_claim_that_etcd_makes_long_after_it_was_given_up_finds_the_tick_closed(bed: Bed) -> None:
    """A frozen leader may delay a claim for any time; if it succeeded, its run key would block every later tick."""
    host = bed.host()
    bed.put(start_deadline=1.0)
    held: list[Callable[[], object]] = []
    serve = host._store.txn

    def txn(compare: Any, success: Any, failure: Any = (), *, timeout_s: float) -> TxnResult:
        puts = [one.key for one in success if isinstance(one, Put)]
        if any(b"/cron/fire/j/" in key for key in puts) and not any(b"/cron/result/" in key for key in puts):
            held.append(lambda: serve(compare, success, failure, timeout_s=5))
            raise Unreachable("it is on its way")
        return serve(compare, success, failure, timeout_s=timeout_s)

    host._store.txn = txn  # type: ignore[method-assign]
    tick = bed.request()  # in the end it is claimed as skipped
    assert held
    for land in held:
        land()
    host._store.txn = serve  # type: ignore[method-assign]
    assert bed.run_key() is None
    assert bed.fleet.result("j", tick)["state"] == "skipped"
    host.wait_start(bed.request())


def test_many_unclear_claims_are_closed_and_few_are_made(bed: Bed) -> None:
    """No answer comes in the ticks' time: few claims are tried, and each tick is recorded or counted as missed."""
    proxy = bed.proxy()
    host = bed.host(proxy, limit_s=1.0)
    names = [f"o{number}" for number in range(30)]
    tick = int(time.time()) + 4
    for name in names:
        bed.put(name, schedule=once(tick), start_deadline=2.0)
    wait_for(lambda: len(host.scheduler.parts.planner.jobs) == 31, "all are known")
    proxy.fault("Txn", "drop", times=10_000)
    seen = len(proxy.calls)
    wait_for(lambda: host.scheduler.parts.closer.unclear, "one is given up")
    wait_for(lambda: not host.scheduler.pending, "all are given up")
    assert proxy.calls[seen:].count("Txn") < 2 * len(names)
    proxy.heal()

    def done() -> int:
        skipped = sum(bed.fleet.value("result", name, tick) is not None for name in names)
        return skipped + host.scheduler.counts["missed", ""]

    wait_for(lambda: done() == len(names), "each is recorded or counted")
    for name in names:
        assert bed.fleet.value("run", name) is None
        assert (bed.fleet.value("fire", name, tick) is None) == (bed.fleet.value("result", name, tick) is None)
    assert not [one for one in host.orders if one[0] in names]


def test_unclear_claim_is_not_taken_for_anothers_run(bed: Bed) -> None:
    """The second try finds its own run key: the tick runs once, and nothing is skipped."""
    proxy = bed.proxy()
    host = bed.host(proxy, limit_s=0.7)
    bed.put()
    fault = proxy.fault("Txn", "drop", skip=1)
    tick = bed.request()
    assert fault.hit.wait(5)
    wait_for(bed.run_key, "the claim is made")
    host.wait_start(tick)
    host.end(tick)
    assert bed.fleet.result("j", tick)["state"] == "ok"
    assert not host.events("skipped")
    wait_for(lambda: bed.run_key() is None, "the run key is gone", 2)


def test_sigterm_while_a_claim_is_in_flight_records_it(bed: Bed) -> None:
    """The claim succeeds after the drain began: it is recorded as skipped, not left to become `lost`."""
    proxy = bed.proxy()
    host = bed.host(proxy)
    bed.put(overlap="allow")
    fault = proxy.fault("Txn", "delay", delay_s=0.5, skip=1)
    tick = bed.request()
    assert fault.hit.wait(5)
    host.drain()
    host.close()
    result = bed.fleet.value("result", "j", tick)
    assert result is not None
    assert (result["state"], result["reason"]) == ("skipped", "conchd is stopping")


def test_cron_run_whose_answer_was_lost_runs_once(bed: Bed) -> None:
    """The request was claimed before the second try, which finds the claim and requests no other tick."""
    host = bed.host()
    bed.put(paused=True)
    proxy = bed.proxy()
    fault = proxy.fault("Txn", "drop")
    # the proxy understands only gRPC
    done = bed.bench.run(
        "cron", "run", "j", env={"CONCH_ENDPOINTS": proxy.endpoint, "CONCH_TRANSPORT": "grpc"}, timeout=20
    )
    assert fault.hit.is_set()
    assert done.returncode == 0, done.stderr
    tick = Fleet.unix(done.stdout.strip())
    host.wait_start(tick)
    host.end(tick)
    bed.fleet.result("j", tick)
    throughout(0.3, lambda: None)
    assert set(bed.fleet.ticks("fire", "j")) == {tick}


# -- ticks that wait under replace -------------------------------------------------------------------------


def replace(bed: Bed, host: Slow) -> tuple[int, int]:
    """Return a tick that runs and one that waits for it."""
    first = bed.request()
    host.wait_start(first)
    second = bed.request()
    wait_for(lambda: host.events("waiting"), "the second waits")
    wait_for(lambda: host.killed, "the first is told to end")
    return first, second


def test_replace_on_one_host_records_only_the_end(bed: Bed) -> None:
    """The tick that took over has no result while it runs, in whatever order the run key's events arrive."""
    host = bed.host()
    bed.put(overlap="replace")
    ticks = [bed.request()]

    def not_recorded() -> None:
        assert bed.fleet.value("result", "j", ticks[-1]) is None, "recorded while it runs"

    for _ in range(4):
        order = host.wait_start(ticks[-1])
        ticks.append(bed.request())
        wait_for(partial(host.was_killed, order), "the one before is told to end")
        host.end(ticks[-2])
        host.wait_start(ticks[-1])
        throughout(0.2, not_recorded)
    host.end(ticks[-1])
    assert bed.fleet.result("j", ticks[-1])["state"] == "ok"
    assert [tick for tick, _ in host.runs[1:]] == ticks


def test_rm_while_a_tick_waits_records_it(bed: Bed) -> None:
    """It never runs, because its job was removed; its claim still has a result."""
    host = bed.host()
    bed.put(overlap="replace")
    first, second = replace(bed, host)
    bed.bench.etcd.delete(f"{bed.bench.prefix}/cron/job/j")
    result = bed.fleet.result("j", second, 5)
    assert (result["state"], result["reason"]) == ("skipped", "the job was removed")
    host.end(first)
    bed.fleet.result("j", first)
    wait_for(lambda: bed.run_key() is None, "the run key is gone", 2)
    assert ("j", second) not in host.orders


def test_edit_while_a_tick_takes_over_runs_it_once(bed: Bed) -> None:
    """The answer for the run key is lost and the job is edited meanwhile: the tick that waited runs once."""
    proxy = bed.proxy()
    host = bed.host(proxy, limit_s=0.7)
    bed.put(overlap="replace")
    first, second = replace(bed, host)
    fault = proxy.fault("Txn", "drop", skip=1, times=2)  # spares the first one's result
    host.end(first)
    assert fault.hit.wait(5)
    bed.put(overlap="replace", edited=True)
    host.wait_start(second)
    host.end(second)
    assert bed.fleet.result("j", second)["state"] == "ok"
    throughout(0.7, lambda: None)
    assert [tick for tick, _ in host.runs].count(second) == 1
    assert bed.run_key() is None


def test_run_key_whose_answer_came_too_late_is_released(bed: Bed) -> None:
    """The waiting tick has it, but no answer says so in time: the tick is skipped, and the next one runs."""
    proxy = bed.proxy()
    host = bed.host(proxy, limit_s=0.7)
    bed.put(overlap="replace", start_deadline=3.0)
    first, second = replace(bed, host)
    fault = proxy.fault("Txn", "drop", skip=1, times=10_000)  # spares the first one's result
    host.end(first)
    assert fault.hit.wait(5)
    assert bed.fleet.result("j", second)["state"] == "skipped"
    proxy.heal()
    wait_for(lambda: bed.run_key() is None, "the run key is gone")
    assert second not in [tick for tick, _ in host.runs]
    host.wait_start(bed.request())


# -- the clock, the disk, the run log ----------------------------------------------------------------------


def test_clock_that_goes_forward_and_back_stops_no_job(bed: Bed) -> None:
    """Ticks that were planned for an hour later are planned again."""
    host = bed.quick()
    bed.put(schedule="@every 1s", overlap="allow")
    wait_for(lambda: host.runs, "it runs")
    host.set_clock(3600.0)
    wait_for(lambda: host.runs[-1][0] > time.time() + 1800, "it follows that clock")
    host.set_clock(0.0)
    back = time.time()
    wait_for(lambda: [tick for tick, at in host.runs if at > back + 0.5 and tick < back + 60], "it goes on", 6)


def test_end_of_a_run_is_on_disk_while_etcd_does_not_answer(bed: Bed) -> None:
    """A run's end is written even while many claims wait for etcd."""
    proxy = bed.proxy()
    host = bed.host(proxy)
    bed.put(overlap="allow")
    tick = bed.request()
    order = host.wait_start(tick)
    for number in range(20):
        bed.put(f"other{number}", overlap="allow", start_deadline=20)
    wait_for(lambda: len(host.scheduler.parts.planner.jobs) == 22, "all are known")
    proxy.fault("Txn", "drop", times=1000)
    seen = len(proxy.calls)
    for number in range(20):
        bed.fleet.ask(f"other{number}")
    wait_for(lambda: proxy.calls[seen:].count("Txn") >= 8, "all workers wait for etcd")
    host.end(tick)

    def on_disk() -> bool:
        data = b"".join(path.read_bytes() for path in bed.folder().glob("*.wal"))
        return any(order.run.encode() in part and b'"state": "ok"' in part for part in data.split(b'{"run"'))

    wait_for(on_disk, "its end is in the write-ahead log", 1.5)
    proxy.heal()
    assert bed.fleet.result("j", tick)["state"] == "ok"


def test_record_that_is_being_written_is_not_truncated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another run is delivered between the record and its entry: the record is there after a crash."""
    written, go_on = threading.Event(), threading.Event()

    class Late(Wal):
        def append(self, *records: bytes) -> int:
            seq = super().append(*records)
            if any(b'"new"' in record for record in records):
                written.set()
                assert go_on.wait(10)
            return seq

    monkeypatch.setattr("conch.cron.run_log.Wal", Late)
    run_log = RunLog(str(tmp_path), lambda *_, **__: None)
    run_log.write(Entry("old", "j", 1_700_000_000, 1))
    thread = threading.Thread(target=run_log.write, args=(Entry("new", "j", 1_700_000_001, 2),))
    thread.start()
    assert written.wait(10)
    run_log.delivered("old")
    go_on.set()
    thread.join(10)
    run_log.close()
    assert [entry.run for entry in RunLog(str(tmp_path), lambda *_, **__: None).entries] == ["new"]


# -- values that anyone may write --------------------------------------------------------------------------


@pytest.mark.parametrize(("key", "field", "value"), [("cron/run/j", "tick", 10**30), ("node/zz", "at", 10**400)])
def test_strange_values_stop_nothing(bed: Bed, key: str, field: str, value: int) -> None:
    """Whatever a key contains, the scheduler survives and other jobs run."""
    host = bed.quick()
    path = f"{bed.bench.prefix}/{key}"
    bed.put()
    bed.bench.etcd.put(path, json.dumps({field: value}))
    bed.fleet.result("j", bed.request(), 5)
    bed.put("good")
    good = bed.request("good")
    bed.bench.etcd.delete(path)
    bed.fleet.result("good", good, 5)
    assert host.scheduler.ask(lambda: True, 2)


# -- a supervisor that is dead -----------------------------------------------------------------------------


def test_keeper_without_a_supervisor_claims_nothing_more(bed: Bed) -> None:
    """No process is left that could run the command."""
    host = bed.quick()
    bed.put(schedule="@every 1s", overlap="allow")
    bed.fleet.results("j", 2)
    host._ours.close()
    host._threads[1].join(5)
    died = time.time()
    throughout(2.5, lambda: None)
    assert max(bed.fleet.ticks("fire", "j")) <= died + 0.1


# -- slots -------------------------------------------------------------------------------------------------


def test_run_whose_run_key_is_deleted_while_it_queues_is_not_started(bed: Bed) -> None:
    """It leaves the queue and is recorded as skipped."""
    etcd, prefix = bed.bench.etcd, bed.bench.prefix
    lease = etcd.lease(60)
    etcd.put(f"{prefix}/sema/s/1/{lease.id:x}", '{"host": "x", "pid": 1, "started": "x", "cmd": "x"}', lease)
    host = bed.host()
    bed.put(sema="s:1")
    tick = bed.request()
    wait_for(lambda: len(bed.bench.keys_below("sema/s/1/")) == 2, "it queues")
    etcd.delete(f"{prefix}/cron/run/j")
    result = bed.fleet.result("j", tick, 5)
    assert result["state"] == "skipped"
    assert "run key" in result["reason"]
    lease.revoke()
    wait_for(lambda: not bed.bench.keys_below("sema/s/1/"), "its place is given up")
    throughout(0.3, lambda: None)
    assert ("j", tick) not in host.orders


def test_slot_lasts_through_the_pause_before_a_retry(fleet: Fleet) -> None:
    """The pause is longer than the lease, but the slot is renewed, and the second attempt runs."""
    fleet.start("a", "--ttl", "3s")
    fleet.add(
        "j",
        "@yearly",
        *("--sema", "s:1", "--overlap", "allow", "--retries", "1", "--retry-delay", "4s"),
        command="[ $CONCH_ATTEMPT = 2 ]",
    )
    result = fleet.result("j", fleet.run_now("j"))
    assert (result["state"], result["attempt"]) == ("ok", 2)


# -- processes ---------------------------------------------------------------------------------------------

# Loaded by conchd: for 5 ms after its first read, every process seems to be in exec and shows no environment.
IN_EXEC = """
import builtins, io, time
from conch.core import procfs
looked = {}
def look(path, *how, **more):
    now = time.monotonic()
    if str(path).endswith("/environ") and now - looked.setdefault(path, now) < 0.005:
        return io.BytesIO()
    return builtins.open(path, *how, **more)
procfs.open = look
"""


def test_daemon_just_in_exec_is_not_overlooked(fleet: Fleet) -> None:
    """It left its group and parent and shows no environment yet; it is still ended before the run is recorded."""
    fleet.start("a", program=[conch_that_runs(IN_EXEC, fleet.bench.folder)])
    command = "(setsid sh -c 'echo $$ >> daemon; exec sleep 1000' &); while [ ! -s daemon ]; do sleep 0.01; done"
    fleet.add("j", "@yearly", "--overlap", "allow", command=command)
    fleet.result("j", fleet.run_now("j"))
    assert not [pid for pid in fleet.bench.pids("daemon", 1) if alive(pid)]


def test_three_sigterms_end_conchd_without_etcd(own_fleet: Fleet, own: OwnEtcd) -> None:
    """The keeper died while etcd was stopped, then a run ended: conchd exits, and the next one delivers the result."""
    fleet = own_fleet
    daemon = fleet.start("a", "--command-timeout", "1s", "--dial-timeout", "1s")
    fleet.add("j", "@yearly", "--overlap", "allow", command=UNTIL_GO)
    tick = fleet.run_now("j")
    fleet.bench.read("runs")
    os.kill(own.member.pid, signal.SIGSTOP)
    os.kill(daemon.keeper(), signal.SIGKILL)
    daemon.wait_event("keeper-died")
    fleet.bench.file("go").touch()
    daemon.wait_event("run-end")
    for _ in range(3):
        daemon.signal(signal.SIGTERM)
        throughout(0.3, lambda: None)
    daemon.wait(20)
    os.kill(own.member.pid, signal.SIGCONT)
    fleet.start("a")
    assert fleet.result("j", tick)["state"] == "ok"


def test_low_limit_of_open_files_is_raised_for_conchd_alone(fleet: Fleet) -> None:
    """Under a soft limit of 64, thirty runs are active together, and each has the limit of 64 itself."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    daemon = fleet.start("a", ready=False)
    resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (64, hard))  # long before its imports are done
    daemon.wait_event("registered")
    command = "ulimit -Sn >> limits; while [ ! -e go ]; do sleep 0.2; done"
    fleet.add("j", "@yearly", "--overlap", "allow", command=command)
    for _ in range(30):
        fleet.ask("j")
    try:
        assert set(fleet.bench.read("limits", 30).split()) == {"64"}
    finally:
        fleet.bench.file("go").touch()
    assert {one["state"] for one in fleet.results("j", 30).values()} == {"ok"}


def expiry(bench: Bench, lease: int) -> float:
    """Return when an unrenewed lease expires (CLOCK_BOOTTIME), measured as its remaining whole seconds step down."""
    first = int(bench.etcd.get_lease_info(lease).TTL)
    wait_for(lambda: first > bench.etcd.get_lease_info(lease).TTL, "a second has passed", 3)
    return boottime() + first


def waited_s(pid: int) -> float:
    """Return how long the main thread of a process was ready to run and had no processor, so far."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9


def test_hundred_trees_are_dead_by_their_deadline(fleet: Fleet) -> None:
    """The keeper is stopped; all runs are bound, ignore SIGTERM and have descendants outside their group.

    The margin before the deadline is for the kill itself, not for a machine that gives conch no processor: what conch
    waited for one since shortly before the kill does not count.
    """
    daemon = fleet.start("a")
    lease = int(daemon.events("registered")[0]["lease"], 16)
    command = "trap '' TERM; for i in 1 2 3 4 5; do setsid sleep 1000 & done; exec sleep 1000"
    job = {"schedule": "@yearly", "cmd": ["sh", "-c", command], "kill_after": 60, "overlap": "forbid"}
    for number in range(100):
        fleet.bench.etcd.put(f"{fleet.bench.prefix}/cron/job/j{number}", json.dumps(job))
        fleet.ask(f"j{number}")
    wait_for(lambda: len(daemon.events("child-start")) == 100, "all run", 40)

    def trees() -> list[int]:
        found = [pid for pid in marked(fleet.bench.mark) if Path(f"/proc/{pid}/comm").read_text() == "sleep\n"]
        return found if len(found) == 600 else []

    poller = select.poll()
    left = {os.pidfd_open(pid) for pid in wait_for(trees, "all of their processes")}
    for pidfd in left:
        poller.register(pidfd, select.POLLIN)
    keeper = daemon.keeper()
    os.kill(keeper, signal.SIGSTOP)
    deadline = expiry(fleet.bench, lease)
    waited_before = waited_s(daemon.pid)
    try:
        while left and boottime() < deadline + 5:
            if boottime() < deadline - 1:
                waited_before = waited_s(daemon.pid)
            for pidfd, _ in poller.poll(100):
                poller.unregister(pidfd)
                os.close(pidfd)
                left.remove(pidfd)
        ended, waited = boottime(), waited_s(daemon.pid) - waited_before
        assert not left
        assert ended - waited < deadline, f"{ended - deadline:.3f} s too late, of which it waited {waited:.3f} s"
    finally:
        os.kill(keeper, signal.SIGCONT)


@pytest.mark.parametrize("another", [False, True])
def test_tick_that_takes_its_run_key_while_conchd_stops(bed: Bed, another: bool) -> None:
    """It does not start after SIGTERM, whether it or another host gets the key, and is recorded as skipped."""
    host = bed.host()
    bed.put(overlap="replace")
    first = bed.request()
    order = host.wait_start(first)
    claims = host.scheduler.parts.store
    take_run, asked, go_on = claims.take_run, threading.Event(), threading.Event()

    async def slow(*given: Any, **how: Any) -> Outcome:
        asked.set()
        await asyncio.to_thread(go_on.wait, 20)
        return await take_run(*given, **how)

    claims.take_run = slow  # type: ignore[method-assign]
    second = bed.request()
    wait_for(lambda: host.was_killed(order), "the first gives way")
    host.end(first)
    assert asked.wait(20)
    host.drain()
    wait_for(lambda: host.scheduler.is_draining, "it stops")
    if another:
        held = {"host": "b", "pid": 1, "started": "2026-01-01T00:00:00Z", "cmd": "x", "tick": second + 5, "run": "b"}
        bed.bench.etcd.put(f"{bed.bench.prefix}/cron/run/j", json.dumps(held), bed.bench.etcd.lease(60))
    go_on.set()
    result = bed.fleet.result("j", second)
    assert (result["state"], result["reason"]) == ("skipped", "conchd is stopping")
    assert ("j", second) not in host.orders
    wait_for(lambda: (bed.run_key() or {}).get("run") == ("b" if another else None), "the run key is as it should be")
    bed.bench.etcd.delete(f"{bed.bench.prefix}/cron/run/j")


def test_tick_whose_skip_was_recorded_without_an_answer_does_not_run(bed: Bed) -> None:
    """The answer to its skip is lost, and the job is edited so that it could run now."""
    host = bed.host()
    bed.put(overlap="forbid")
    host.wait_start(bed.request())
    txn, lost = host._store.txn, threading.Event()

    def forgetful(compare: Any, success: Any, failure: Any = (), *, timeout_s: float) -> TxnResult:
        answer = txn(compare, success, failure, timeout_s=timeout_s)
        claims = any(isinstance(one, Put) and b"/cron/fire/j/" in one.key for one in success)
        if claims and answer.succeeded and not lost.is_set():
            lost.set()
            bed.put(overlap="allow")
            wait_for(lambda: host.scheduler.parts.planner.jobs["j"].job.overlap == "allow", "the edit is known")
            raise Unreachable("the answer is lost")
        return answer

    host._store.txn = forgetful  # type: ignore[method-assign]
    request = bed.fleet.ask("j")
    tick = bed.fleet.claimed("j", request)
    assert lost.wait(10)
    wait_for(lambda: not host.scheduler.pending and not host.scheduler.parts.closer.unclear, "it is settled")
    throughout(0.5, lambda: None)
    assert ("j", tick) not in host.orders
    assert bed.fleet.result("j", tick)["state"] == "skipped"


def test_missed_ticks_are_logged_when_conchd_ends_without_etcd(bed: Bed) -> None:
    """conchd cannot ask which host claimed them, so it logs how many there were."""
    proxy = bed.proxy()
    host = bed.host(proxy, limit_s=1.0)
    bed.put(schedule="@every 1s", overlap="allow")
    wait_for(lambda: [tick for name, tick in host.orders if name == "j"], "it runs")
    proxy.blackhole()
    wait_for(
        lambda: sum(one.count() for one in host.scheduler.parts.missed._missing.get("j", [])) >= 2,
        "two ticks are missed",
    )
    host.close()
    bed._hosts.remove(host)
    assert sum(int(note.text["ticks"]) for note in host.events("missed")) >= 2
