"""More jobs than one read of etcd returns: each is listed once, and what changes between two reads is not missed."""

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from conch.cron.views import everything, pages
from conch.cron.watcher import Listing, Watcher, keys_of
from conch.etcd.connection import Connection
from conch.etcd.endpoints import parse_endpoints
from conch.etcd.grpc_store import GrpcStore
from conch.etcd.store import Delete, Event, Operation, Put, Range, RangeResult
from conch.keys import Keys
from tests.support.conch import Bench, wait_for
from tests.support.cron import Fleet

JOB = {"schedule": "0 3 1 1 *", "cmd": ["true"]}
MANY = 1203
# The first job of each page of 500, and the last job of the page before.
EDGES = (0, 499, 500, 999, 1000, 1202)


class Jobs:
    """Many jobs in a real etcd."""

    def __init__(self, endpoints: str, prefix: str) -> None:
        self.store = GrpcStore(Connection(parse_endpoints(endpoints)))
        self.keys = Keys(prefix)
        self.names = [f"j{number:05d}" for number in range(MANY)]
        puts = [self.put(name) for name in self.names]
        for at in range(0, MANY, 100):
            self.write(*puts[at : at + 100])

    def put(self, name: str, **fields: Any) -> Put:
        return Put(self.keys.cron("job", name).encode(), json.dumps({**JOB, **fields}).encode())

    def delete(self, name: str) -> Delete:
        return Delete(self.keys.cron("job", name).encode())

    def write(self, *operations: Operation) -> None:
        self.store.txn([], operations, timeout_s=5)

    def values(self) -> dict[bytes, bytes]:
        """Return what is there, in one read."""
        found = self.store.range(everything(self.keys.cron("job")), timeout_s=5)
        return {kv.key: kv.value for kv in found.kvs}


@pytest.fixture
def jobs(conch: Bench) -> Iterator[Jobs]:
    jobs = Jobs(conch.endpoints, conch.prefix)
    yield jobs
    jobs.store.close()
    conch.etcd.delete_prefix(conch.prefix)


class Between:
    """A store that calls something after each read of a page, and counts the reads."""

    def __init__(self, jobs: Jobs, after: Callable[[int], None]) -> None:
        self._store = jobs.store
        self._prefix = jobs.keys.cron("job").encode()
        self._after = after
        self.sizes: list[int] = []

    def range(self, what: Range, *, timeout_s: float) -> RangeResult:
        found = self._store.range(what, timeout_s=timeout_s)
        if what.key.startswith(self._prefix):
            self.sizes.append(len(found.kvs))
            self._after(len(self.sizes))
        return found


def test_each_job_is_listed_once(conch: Bench, jobs: Jobs) -> None:
    """In the order of their names, with or without their newest ticks, for people and for programs."""
    jobs.write(jobs.put(jobs.names[700], cmd="unreadable"))
    claims = {jobs.names[at]: 1_800_000_000 + at for at in EDGES}
    holder = json.dumps({"host": "h", "pid": 1, "started": "2026-01-01T00:00:00Z", "cmd": "conchd"}).encode()
    jobs.write(*(Put(jobs.keys.cron("fire", name, tick).encode(), holder) for name, tick in claims.items()))
    readable = [name for name in jobs.names if name != jobs.names[700]]

    for flags in ([], ["--last"]):
        done = conch.run("cron", "ls", *flags)
        assert (done.returncode, done.stderr.count("unreadable")) == (0, 1)
        assert [line.split()[0] for line in done.stdout.splitlines()[1:]] == readable
        done = conch.run("cron", "ls", "--json", *flags)
        assert [job["name"] for job in conch.jsons(done.stdout)] == readable
    last = {job["name"]: job["last_tick"] for job in conch.jsons(done.stdout) if job["last_tick"] is not None}
    assert {name: Fleet.unix(tick) for name, tick in last.items()} == claims


def test_no_read_returns_more_than_a_page(jobs: Jobs) -> None:
    """Neither etcd nor conch holds an answer with all jobs, and none is read for nothing."""
    store: Any = Between(jobs, lambda _: None)
    found = [kv.key for page in pages(store, everything(jobs.keys.cron("job")), timeout_s=5) for kv in page.kvs]
    assert found == list(jobs.values())
    assert store.sizes == [500, 500, 203]


def test_changes_between_two_reads_of_a_listing_come_as_events(jobs: Jobs) -> None:
    """In pages read already and in pages still to come: added, changed, removed, and removed and added again."""
    names = jobs.names

    def change(page: int) -> None:
        jobs.write(
            *(jobs.put(names[at], note=f"after page {page}") for at in EDGES),
            *(jobs.delete(names[at + page]) for at in (10, 510, 1010)),
            *(jobs.put(f"{names[at]}-{page}") for at in EDGES),
        )
        again = [names[at + page] for at in (20, 520, 1020)]
        jobs.write(*map(jobs.delete, again))
        jobs.write(*(jobs.put(name, note="again") for name in again))

    heard: list[tuple[Listing, set[str]]] = []
    store: Any = Between(jobs, change)
    watcher = Watcher(
        *(store, jobs.keys, lambda *_, **__: None),
        call=lambda function, *arguments: function(*arguments),
        run_ids=set,
        listed=lambda listing, run_ids: heard.append((listing, run_ids)),
        events=lambda _: None,
        watching=lambda _: None,
        timeout_s=5.0,
    )
    watched = watcher.list_all(5.0, set())
    known = {key: kv.value for key, kv in keys_of(heard[0][0]).items()}
    assert known != jobs.values()
    jobs.write(jobs.put("z-last"))

    watch = jobs.store.watch(watched)
    try:
        for events in watch:
            follow(known, events)
            if any(event.kv.key.endswith(b"/z-last") for event in events):
                break
    finally:
        watch.cancel()
    assert known == jobs.values()


def follow(known: dict[bytes, bytes], events: Sequence[Event]) -> None:
    for event in events:
        if event.deleted:
            known.pop(event.kv.key, None)
        else:
            known[event.kv.key] = event.kv.value


def test_daemon_follows_jobs_of_every_page(conch: Bench, jobs: Jobs) -> None:
    """Those that were there when it started are due as any other."""
    due = [jobs.names[at] for at in EDGES]
    jobs.write(*(jobs.put(name, schedule="@every 1s", overlap="allow") for name in due))
    fleet = Fleet(conch)
    try:
        fleet.start("h")
        wait_for(lambda: all(fleet.ticks("result", name) for name in due), "a result of each job that is due")
    finally:
        fleet.clean()
