"""The one path of all edits of jobs, on a real etcd: answers that are lost, and others who edit at the same time."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from conch.cron.definition import build
from conch.cron.job_store import Change, Edit, JobStore, Stored
from conch.errors import ConchError
from conch.etcd.connection import Connection
from conch.etcd.endpoints import parse_endpoints
from conch.etcd.grpc_store import GrpcStore
from conch.etcd.store import Delete, Put, Range, TooBig, TxnResult
from conch.keys import Keys
from tests.support.conch import Bench

DAILY = {"schedule": "@daily", "cmd": ["true"]}


class Interposed:
    """A store that calls something before and after each transaction that writes.

    `repeated` makes each of those twice and returns the second answer, as after a lost answer to the first.
    """

    def __init__(self, store: GrpcStore) -> None:
        self.store = store
        self.before: Callable[[], object] = lambda: None
        self.after: Callable[[], object] = lambda: None
        self.repeated = False
        self.most = 1000
        self.sizes: list[int] = []

    def range(self, what: Range, *, timeout_s: float) -> Any:
        return self.store.range(what, timeout_s=timeout_s)

    def txn(self, compare: Any, success: Any, failure: Any = (), *, timeout_s: float) -> TxnResult:
        if not any(isinstance(operation, Put | Delete) for operation in success):
            return self.store.txn(compare, success, failure, timeout_s=timeout_s)
        if len(success) > self.most:
            raise TooBig("too many operations")
        self.sizes.append(len(success))
        self.before()
        answer = self.store.txn(compare, success, failure, timeout_s=timeout_s)
        self.after()
        return self.store.txn(compare, success, failure, timeout_s=timeout_s) if self.repeated else answer


class Jobs:
    """The jobs under test, and somebody else's."""

    def __init__(self, bench: Bench) -> None:
        self.etcd = GrpcStore(Connection(parse_endpoints(bench.endpoints)))
        self.store = Interposed(self.etcd)
        store: Any = self.store
        self.keys = Keys(bench.prefix)
        self.ours = JobStore(store, self.keys, timeout_s=5.0)
        self.theirs = JobStore(self.etcd, self.keys, timeout_s=5.0)

    @staticmethod
    def edit(jobs: JobStore, *names: str, **fields: Any) -> list[tuple[str, str, str | None]]:
        """Write these jobs; return for each what was done and the note that it had before."""

        def decide(name: str, before: Stored | None) -> Edit | None:
            job = build(name, {**DAILY, **fields})
            is_same = before is not None and before.job is not None and before.job.raw.get("note") == fields.get("note")
            return None if is_same else Edit(job)

        return [(change.name, Jobs.kind(change), Jobs.note(change.before)) for change in jobs.change(names, decide)]

    @staticmethod
    def kind(change: Change) -> str:
        if not change.is_write:
            return "unchanged"
        return "added" if change.before is None else "changed" if change.after is not None else "removed"

    @staticmethod
    def note(stored: Stored | None) -> str | None:
        return None if stored is None or stored.job is None else stored.job.raw.get("note")

    def notes(self) -> dict[str, str | None]:
        return {stored.name: self.note(stored) for page in self.theirs.pages() for stored in page}


@pytest.fixture
def jobs(conch: Bench) -> Iterator[Jobs]:
    jobs = Jobs(conch)
    yield jobs
    jobs.etcd.close()
    conch.etcd.delete_prefix(conch.prefix)


def test_lost_answer_is_recognised(jobs: Jobs) -> None:
    """What was added is said to be added, what was removed to be removed, and nothing is written again."""
    jobs.store.repeated = True
    assert jobs.edit(jobs.ours, "a", "b", note="x") == [("a", "added", None), ("b", "added", None)]
    assert jobs.edit(jobs.ours, "a", "b", note="y") == [("a", "changed", "x"), ("b", "changed", "x")]
    removed = jobs.ours.change(["a", "b", "c"], lambda _name, _before: Edit(None))
    assert [(change.name, change.is_write) for change in removed] == [("a", True), ("b", True), ("c", False)]
    assert len(jobs.store.sizes) == 3


def test_edit_of_others_after_a_lost_answer_stays(jobs: Jobs) -> None:
    """Ours came first: of two jobs written together, the one that they left shows that it was made."""
    jobs.store.repeated = True
    jobs.store.after = lambda: jobs.edit(jobs.theirs, "b", note="theirs")
    assert jobs.edit(jobs.ours, "a", "b", note="ours") == [("a", "added", None), ("b", "added", None)]
    assert jobs.notes() == {"a": "ours", "b": "theirs"}


def test_the_same_edit_by_others_is_not_taken_for_ours(jobs: Jobs) -> None:
    """Both write the same job in the same second; only the first has added it."""
    said = []
    jobs.store.before = lambda: said.extend(jobs.edit(jobs.theirs, "a", note="x"))
    assert jobs.edit(jobs.ours, "a", note="x") == [("a", "unchanged", "x")]
    assert said[0] == ("a", "added", None)


def test_batch_is_decided_anew_when_others_edit_one_of_its_jobs(jobs: Jobs) -> None:
    """Nothing of the first try is written, and the second one says what it replaced."""
    jobs.edit(jobs.theirs, "a", "b", note="old")

    def once() -> None:
        jobs.store.before = lambda: None
        jobs.edit(jobs.theirs, "b", note="new")

    jobs.store.before = once
    assert jobs.edit(jobs.ours, "a", "b", note="ours") == [("a", "changed", "old"), ("b", "changed", "new")]
    assert len(jobs.store.sizes) == 2


def test_others_who_never_stop_are_an_error(jobs: Jobs) -> None:
    """It names the job and says that nothing was done."""
    count = iter(range(1000))
    jobs.store.before = lambda: jobs.edit(jobs.theirs, "b", note=f"{next(count)}")
    with pytest.raises(
        ConchError, match="cannot write job a: others keep changing it; of 2 jobs 0 are done, 2 are not"
    ):
        jobs.edit(jobs.ours, "a", "b", note="ours")
    assert set(jobs.notes()) == {"b"}


def test_batch_that_etcd_finds_too_big_is_split(jobs: Jobs) -> None:
    """An etcd may have a limit of its own (--max-txn-ops)."""
    jobs.store.most = 16
    names = [f"j{at:02d}" for at in range(60)]
    assert jobs.edit(jobs.ours, *names, note="x") == [(name, "added", None) for name in names]
    assert max(jobs.store.sizes) <= 16
    jobs.store.most = 0
    with pytest.raises(TooBig):
        jobs.edit(jobs.ours, "a", note="x")


def test_batches_have_at_most_60_jobs_and_a_megabyte(jobs: Jobs) -> None:
    """Jobs that are not written do not count."""
    names = [f"j{at:03d}" for at in range(150)]
    jobs.edit(jobs.ours, *names[:50], note="x")
    jobs.edit(jobs.ours, *names, note="x")
    assert jobs.store.sizes == [50, 60, 40]
    jobs.edit(jobs.ours, *names[:60], note="y" * 30_000)
    assert all(size * 30_000 < 1_000_000 for size in jobs.store.sizes[3:])
    assert sum(jobs.store.sizes[3:]) == 60
