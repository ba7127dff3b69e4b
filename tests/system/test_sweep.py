"""History is limited whatever it consists of, and its newest ticks stay however old they are."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from conch.cron.claim_outcomes import Taken, Won
from conch.cron.claim_store import ClaimStore
from conch.cron.result_store import Delivered
from conch.cron.shared_leases import shared_lease
from conch.cron.sweep import KEPT, Sweep
from conch.cron.ticks import TRIM
from conch.cron.values import Result
from conch.dev import Cluster
from conch.etcd.store import Delete, Put, Range
from conch.keys import prefix_end
from tests.support.conch import Bench, throughout, wait_for
from tests.support.cron import Fleet
from tests.support.host import Host
from tests.system.test_claims import NOW, TICK, Bed

DAY, HOUR = 86400, 3600
CLAIM = json.dumps({"host": "c", "pid": 1, "started": "2026-01-01T00:00:00Z", "cmd": "conchd"}).encode()
RESULT = json.dumps({"node": "n", "state": "ok"}).encode()


class Past(Bed):
    """History as earlier times left it: keys under the leases of those times."""

    def __init__(self, endpoints: str, prefix: str, history: int = 50) -> None:
        super().__init__(endpoints, prefix, "allow", history)
        self.leases: list[int] = []

    def lease_of(self, kind: str, ago_s: float) -> int:
        """Return the shared lease of a time before now."""
        every = {"claims": HOUR, "results": DAY}[kind]
        lease = shared_lease(self.keys.prefix, kind, int((NOW - ago_s) // every))
        if lease not in self.leases:
            self.leases.append(lease)
            self.store.grant(lease, 600, timeout_s=5)
        return lease

    def write(self, name: str, ticks: list[int], *, fires: int = 0, results: int = 0) -> None:
        """Put claims, results or both under these leases (0: none)."""
        puts = [Put(self.keys.cron("fire", name, tick).encode(), CLAIM, fires) for tick in ticks if fires]
        puts += [Put(self.keys.cron("result", name, tick).encode(), RESULT, results) for tick in ticks if results]
        for at in range(0, len(puts), 100):
            self.store.txn([], puts[at : at + 100], timeout_s=5)

    def sweep(self, now: float = NOW) -> dict[str, int]:
        """Run one whole sweep; return its counts."""
        sweep = Sweep(self.store, self.keys, self.results, now, timeout_s=5)
        for _ in sweep.pages():
            pass
        return {what: count for what, count in sweep.counts.items() if count}

    def ticks(self, kind: str, name: str = "j") -> list[int]:
        """Return the ticks of a job, without other keys."""
        prefix = self.keys.ticks(kind, name).encode()
        found = self.store.range(Range(prefix, prefix_end(prefix), keys_only=True), timeout_s=5).kvs
        return [at.tick for kv in found if (at := self.keys.tick_of(kv.key)) is not None]

    def floor(self, name: str = "j") -> int:
        kv = self.get("floor", name)
        return 0 if kv is None else int(kv.value)

    def end(self, lease: int) -> None:
        self.store.revoke(lease, timeout_s=5)
        self.leases.remove(lease)


@pytest.fixture
def past(conch: Bench) -> Iterator[Past]:
    past = Past(conch.endpoints, conch.prefix)
    yield past
    for lease in [*past.leases, past.results.leases.for_results(NOW), past.results.leases.for_claims(NOW)]:
        past.store.revoke(lease, timeout_s=5)
    past.close()
    conch.etcd.delete_prefix(conch.prefix)


# -- the limit ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fires", "results"),
    [
        (range(180), range(180)),
        (range(180), range(0)),  # only claims, of hosts that died
        (range(0), range(180)),  # only results: claims expire first
        (range(100, 180), range(110)),  # mixed
        (range(110, 150), range(110)),  # results whose claims have expired, then claims of hosts that died
        (range(10), range(10)),
    ],
)
def test_sweep_leaves_the_newest_ticks_and_a_floor_below_them(past: Past, fires: range, results: range) -> None:
    """The newest 50 stay, be they claims or results; a removed tick cannot be claimed again or get a result."""
    claims, ended = past.lease_of("claims", 0), past.lease_of("results", 0)
    past.write("j", [TICK + at for at in fires], fires=claims)
    past.write("j", [TICK + at for at in results], results=ended)
    there = sorted({TICK + at for at in (*fires, *results)})
    counts = past.sweep()
    left = sorted({*past.ticks("fire", "j"), *past.ticks("result", "j")})
    assert left == there[-50:]
    assert counts.get("trimmed", 0) == max(0, len(there) - 50)
    if len(there) > 50:
        assert past.floor() == there[-51]
        assert isinstance(past.claim(past.due(there[-51]), has_floor=True), Taken)
        assert past.deliver(there[-51], None, has_floor=True) == Delivered((), True, is_wanted=False)
    assert past.sweep() == {}


def test_skips_alone_keep_history_at_its_limit(past: Past) -> None:
    """While a run lasts each tick is skipped: each skip removes surplus ticks, and the floor only rises."""
    past.write("j", [TICK - at for at in range(1, 91)], fires=past.lease_of("claims", 0))
    old: tuple[int, ...] = ()
    has_floor, floors = False, [0]
    for tick in range(TICK, TICK + 30):
        due = past.due(tick)
        won = past.claim_to_skip(due, "a run is alive", old, has_floor=has_floor)
        assert isinstance(won, Won)
        assert won.old is not None
        old = won.old
        assert len(old) <= TRIM
        has_floor = past.floor() > 0
        floors.append(past.floor())
        if has_floor:
            assert isinstance(past.claim(past.due(past.floor()), has_floor=True), Taken)
    assert floors == sorted(floors)
    assert len(past.ticks("fire", "j")) <= 51
    assert past.ticks("result", "j") == list(range(TICK, TICK + 30))


def test_skip_beside_a_floor_that_was_raised_removes_nothing(past: Past) -> None:
    """The ticks that it knows are below the new floor, which never falls."""
    past.write("j", [TICK - at for at in range(1, 91)], fires=past.lease_of("claims", 0))
    past.put(past.keys.cron("floor", "j"), str(TICK - 20).encode())
    due = past.due(TICK)
    stale = (TICK - 90, TICK - 89)
    won = past.claim_to_skip(due, "", stale, has_floor=True)
    assert not isinstance(won, Won)
    assert past.floor() == TICK - 20
    assert isinstance(past.claim_to_skip(due, has_floor=True), Won)


@pytest.mark.parametrize("odd", ["5", "1000000000x"])
def test_keys_that_are_no_ticks_do_not_cause_new_ticks_to_be_removed(past: Past, odd: str) -> None:
    """Although some sort before the oldest tick, the oldest ticks are removed, or none."""
    lease = past.lease_of("results", 0)
    past.write("j", [TICK + at for at in range(80)], fires=lease)
    past.write("j", [TICK + at for at in range(75, 80)], results=lease)
    for kind in ("fire", "result"):
        for at in range(10):
            past.put(past.keys.cron(kind, "j", f"{odd}{at}"), b"{}", lease)
    past.deliver(TICK + 80, None)  # which shows that there is much to remove: the next one reads more
    old = past.deliver(TICK + 81, None).old
    assert old
    assert list(old) == [TICK + at for at in range(len(old))]
    past.sweep()
    left = past.ticks("fire")
    assert left == [TICK + at for at in range(80)][-len(left) :]
    assert 30 <= len(left) <= 50
    assert past.ticks("result") == [TICK + at for at in range(75, 82)]


def test_sweep_beside_a_floor_that_is_higher(past: Past) -> None:
    """Surplus ticks are removed, and the floor stays."""
    past.write("j", [TICK + at for at in range(90)], fires=past.lease_of("claims", 0))
    past.put(past.keys.cron("floor", "j"), str(TICK + 1000).encode())
    assert past.sweep() == {"trimmed": 40}
    assert past.floor() == TICK + 1000


def test_history_of_a_job_whose_runs_are_long_stays_at_its_limit(fleet: Fleet) -> None:
    """The daemon alone does this, without a sweep, while one run lasts and ticks are skipped."""
    fleet.start("a")
    now, prefix = int(time.time()), fleet.bench.prefix
    lease = fleet.bench.etcd.lease(600)
    fleet.add("j", "@every 1s", "--paused", command="sleep 1000")
    for tick in range(now - 1020, now - 10):
        for kind in ("fire", "result"):
            fleet.bench.etcd.put(f"{prefix}/cron/{kind}/j/{tick}", "{}", lease)
    fleet.bench.run("cron", "resume", "j")
    wait_for(lambda: fleet.value("floor", "j"), "the first is removed")
    wait_for(lambda: len(fleet.ticks("fire", "j")) <= 1001, "all that is too much is removed")
    throughout(3.0, lambda: len(fleet.ticks("fire", "j")) <= 1002 or pytest.fail("it grows"))
    assert {one.get("state", "skipped") for one in fleet.ticks("result", "j").values()} == {"skipped"}
    lease.revoke()


# -- the newest stay ------------------------------------------------------------------------------------------


def test_newest_ticks_outlive_their_leases(past: Past) -> None:
    """The newest twenty of each job stay, with a result or only claimed; the others expire with their leases."""
    claims, ended = past.lease_of("claims", 25 * HOUR), past.lease_of("results", 14 * DAY)
    ticks = [TICK - at * DAY for at in range(30, 0, -1)]
    past.write("j", ticks, fires=claims, results=ended)
    past.write("j", [TICK], fires=claims)
    past.put(past.keys.cron("job", "few"), past.job.encode())
    past.write("few", ticks[:3], results=ended)
    before = {kind: past.get(kind, "j", TICK) for kind in ("fire", "result")}
    assert past.sweep() == {"kept": KEPT + 3}
    after = past.get("fire", "j", TICK)
    assert before["fire"] is not None
    assert after is not None
    assert (after.create_revision, after.value) == (before["fire"].create_revision, before["fire"].value)
    assert past.sweep() == {}, "they have new leases"
    past.end(claims)
    past.end(ended)
    assert past.ticks("result", "j") == ticks[-19:]
    assert past.ticks("fire", "j") == [TICK]
    assert past.ticks("result", "few") == ticks[:3]


def test_keys_that_do_not_expire_soon_are_not_written(past: Past) -> None:
    """A sweep writes nothing if no key needs it."""
    past.write("j", [TICK - at for at in range(30)], fires=past.lease_of("claims", 5 * HOUR))
    past.write("j", [TICK - at for at in range(1, 30)], results=past.lease_of("results", 6 * DAY))
    everything = Range(past.keys.prefix.encode(), prefix_end(past.keys.prefix.encode()))
    before = past.store.range(everything, timeout_s=5).kvs
    assert past.sweep() == {}
    assert past.store.range(everything, timeout_s=5).kvs == before


def test_key_that_changes_while_it_is_prolonged_is_left_as_it_is(past: Past) -> None:
    """The other key of the same transaction is still prolonged."""
    ended = past.lease_of("results", 14 * DAY)
    past.write("j", [TICK, TICK + 1, TICK + 2], results=ended)
    sweep = Sweep(past.store, past.keys, past.results, NOW, timeout_s=5)
    kvs = [kv for at in range(3) if (kv := past.get("result", "j", TICK + at)) is not None]
    past.store.txn([], [Delete(kvs[0].key)], timeout_s=5)
    past.put(kvs[1].key.decode(), b"changed", ended)
    for _ in sweep._prolong(kvs):
        pass
    assert sweep.counts["kept"] == 1
    past.end(ended)
    assert past.ticks("result", "j") == [TICK + 2]


def test_results_with_output_are_prolonged(tmp_path: Path) -> None:
    """Results with all the output that they may keep, on an etcd that takes only a dozen of them at once."""
    with Cluster(arguments=("--max-request-bytes", str(300 * 1024))) as cluster:
        past = Past(cluster.endpoints, "/large")
        output = Result("n", "failed", 1, NOW, 0.1, 1, output="\x01" * 4096).encode()
        ended = past.lease_of("results", 14 * DAY)
        for name in ("a", "b", "j"):
            past.put(past.keys.cron("job", name), past.job.encode())
            for at in range(KEPT):
                past.put(past.keys.cron("result", name, TICK + at), output, ended)
        assert past.sweep() == {"kept": 3 * KEPT}
        past.end(ended)
        assert past.ticks("result", "a") == [TICK + at for at in range(KEPT)]
        past.close()


# -- removed jobs ---------------------------------------------------------------------------------------------


def test_old_history_of_removed_jobs_is_removed(past: Past) -> None:
    """No other job's is removed, however similar the names; deeper and odd keys stay."""
    lease = past.lease_of("results", 0)
    old, young = [TICK - (20 + at) * DAY for at in range(70, 0, -1)], [TICK - at for at in range(70, 0, -1)]
    for name in ("a", "j-gone", "j.gone", "jgone", "z"):
        past.write(name, old + young, fires=lease, results=lease)
        past.put(past.keys.cron("result", name, old[0], "host"), RESULT, lease)  # of a tick that ran on every host
        past.put(past.keys.cron("floor", name), str(old[0] - 1).encode())
    past.write("j", old[-5:], fires=lease, results=lease)
    past.put(past.keys.cron("job", "unreadable"), b"junk")
    past.write("unreadable", old[-5:], fires=lease, results=lease)
    past.put(past.keys.cron("floor", "unreadable"), b"1000000001")
    odd = [f"fire/a/{old[0]}/host/x", "fire/a/x", "fire/x", f"fire/a/b/{old[0]}", "result/\N{SNOWMAN}/5"]
    for path in odd:
        past.put(past.keys.cron(*path.split("/", 1)), b"{}", lease)
    assert past.sweep() == {"orphans": 5 * (2 * 70 + 1), "floors": 5}
    for name in ("a", "j-gone", "j.gone", "jgone", "z"):
        found = past.store.range(Range(past.keys.cron("result", name, young[0]).encode()), timeout_s=5)
        assert found.kvs
        assert past.floor(name) == 0
    assert past.ticks("fire", "z") == past.ticks("result", "z") == young
    assert past.ticks("fire", "j") == past.ticks("fire", "unreadable") == old[-5:]
    assert past.floor("unreadable") == 1000000001
    for path in odd:
        assert past.store.range(Range(past.keys.cron(*path.split("/", 1)).encode()), timeout_s=5).kvs
    assert past.sweep() == {}


def test_job_that_comes_back_while_it_is_swept_keeps_its_history_and_floor(past: Past) -> None:
    """Each removal checks that the job does not exist."""
    lease = past.lease_of("results", 0)
    past.write("back", [TICK - 20 * DAY], results=lease)
    past.put(past.keys.cron("floor", "back"), b"1000000001")
    sweep = Sweep(past.store, past.keys, past.results, NOW, timeout_s=5)
    pages = sweep.pages()
    next(pages)  # it has listed the jobs
    past.put(past.keys.cron("job", "back"), past.job.encode())
    for _ in pages:
        pass
    assert not sweep.counts.total()
    assert past.floor("back") == 1000000001
    assert past.ticks("result", "back") == [TICK - 20 * DAY]


# -- in the daemon --------------------------------------------------------------------------------------------


def test_one_daemon_sweeps_at_a_time(conch: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One sweeps soon after the start; a daily job keeps its newest ticks, and nothing runs again."""
    sweeps: list[Sweep] = []

    class Counted(Sweep):
        def pages(self) -> Iterator[None]:
            sweeps.append(self)
            return super().pages()

    monkeypatch.setattr("conch.cron.sweeping._FIRST_S", 2.0)
    monkeypatch.setattr("conch.cron.sweeping.Sweep", Counted)
    fleet, now = Fleet(conch), int(time.time())
    lease = conch.etcd.lease(60)
    conch.etcd.put(
        f"{conch.prefix}/cron/job/j", json.dumps({"schedule": "@daily", "cmd": ["true"], "overlap": "replace"})
    )
    for at in range(1, 26):
        conch.etcd.put(f"{conch.prefix}/cron/fire/j/{now - at * DAY}", CLAIM, lease)
    hosts = [Host(conch, name, tmp_path / name) for name in ("a", "b", "c")]
    try:
        wait_for(lambda: [host for host in hosts if host.events("swept")], "a sweep")
        throughout(3.0, lambda: None)
        assert len(sweeps) == 1
        assert [note.text for host in hosts for note in host.events("swept")] == [{"kept": KEPT}]
        lease.revoke()
        assert sorted(fleet.ticks("fire", "j")) == [now - at * DAY for at in range(KEPT, 0, -1)]
        tick = fleet.request("j")
        assert fleet.result("j", tick)["state"] == "ok"
        assert [one for host in hosts for one, _ in host.runs] == [tick]
        assert not [note for host in hosts for note in host.events("unreadable")]
    finally:
        for host in hosts:
            host.close()
        conch.etcd.delete_prefix(conch.prefix + "/cron/")


def test_sweep_reads_many_jobs_per_request(conch: Bench) -> None:
    """The number of requests grows with pages of jobs; a job that needs no change costs none of its own."""
    past = Past(conch.endpoints, conch.prefix)
    past.store.txn(
        [], [Put(past.keys.cron("job", f"j{at}").encode(), past.job.encode()) for at in range(120)], timeout_s=5
    )
    lease = past.lease_of("results", 0)
    for at in range(120):
        past.write(f"j{at}", [TICK, TICK + 1], results=lease)
    sweep = Sweep(past.store, past.keys, past.results, NOW, timeout_s=5)
    assert sum(1 for _ in sweep.pages()) < 20
    assert isinstance(past.claims, ClaimStore)
    past.end(lease)
    past.close()
    conch.etcd.delete_prefix(conch.prefix)
