"""A holder that had to wait says in its key since when it holds; its hold does not depend on that."""

import json
import secrets
from collections.abc import Iterator

import pytest

from conch.etcd.store import Delete, ModRevisionIs, Put, Range, Store
from conch.keeper.hold_spec import QueueSpec
from conch.keeper.queue import Queue
from tests.support.conch import Bench, Wrapper, new_store, throughout, wait_for

WHO = '{"host": "h", "pid": 1, "started": "2026-01-01T00:00:00Z", "cmd": "c"}'


@pytest.fixture(params=["grpc", "http"])
def store(conch: Bench, request: pytest.FixtureRequest) -> Iterator[Store]:
    """A store on the test run's etcd, over each driver."""
    store = new_store(conch.endpoints, transport=str(request.param))
    yield store
    store.close()


@pytest.fixture
def queue(conch: Bench, store: Store) -> Iterator[Queue]:
    """A queue that nobody else is in, under a lease of a minute."""
    lease = secrets.randbits(62) | 1
    store.grant(lease, 60, timeout_s=5)
    yield Queue(store, QueueSpec(f"{conch.prefix}/elect/o/", 1), lease)
    store.revoke(lease, timeout_s=5)


def read(queue: Queue) -> tuple[bytes, int, int] | None:
    """Return the value, the create-revision and the lease of our key."""
    found = queue.store.range(Range(queue.key.encode()), timeout_s=5).kvs
    return (found[0].value, found[0].create_revision, found[0].lease) if found else None


def test_value_is_replaced_once_under_the_same_lease(queue: Queue) -> None:
    """A second try, as after an answer that was lost, changes nothing; our place is the same."""
    place = queue.enter(WHO.encode(), timeout_s=5)
    assert queue.describe(place.rev, b"new", timeout_s=5)
    assert not queue.describe(place.rev, b"again", timeout_s=5)
    assert read(queue) == (b"new", place.rev, queue.lease)
    assert queue.read(place.rev, timeout_s=5).held


def test_key_that_is_gone_is_not_made_again(queue: Queue) -> None:
    """Not while its lease lives, either: others would wait for a key that nobody watches."""
    place = queue.enter(WHO.encode(), timeout_s=5)
    queue.store.txn([], [Delete(queue.key.encode())], timeout_s=5)
    assert not queue.describe(place.rev, b"new", timeout_s=5)
    assert read(queue) is None


def test_what_somebody_else_wrote_stays(queue: Queue) -> None:
    place = queue.enter(WHO.encode(), timeout_s=5)
    other = Put(queue.key.encode(), b"other", queue.lease)
    assert queue.store.txn([ModRevisionIs(other.key, place.rev)], [other], timeout_s=5).succeeded
    assert not queue.describe(place.rev, b"new", timeout_s=5)
    assert read(queue) == (b"other", place.rev, queue.lease)


def value(conch: Bench, office: str, wrapper: Wrapper) -> dict[str, object]:
    """Return what a holder's key says."""
    raw, _ = conch.etcd.get(conch.key(office, wrapper.lease()))
    return dict(json.loads(raw))


def test_one_that_waited_says_since_when_it_holds(conch: Bench) -> None:
    """`--who` shows that; the key has the lease and the create-revision that it had."""
    first = conch.hold("o")
    second = conch.queue("o")
    first.signal(15)
    second.child()
    wait_for(lambda: "held_since" in value(conch, "o", second), "the time")
    said = value(conch, "o", second)
    _, meta = conch.etcd.get(conch.key("o", second.lease()))
    assert meta.create_revision == int(second.wait_event("acquired")["rev"])
    assert meta.lease_id == second.lease()
    assert f" since={said['held_since']} " in conch.run("elect", "o", "--who").stdout
    (shown,) = conch.jsons(conch.run("elect", "o", "--who", "--json").stdout)
    assert (shown["since"], shown["started"]) == (said["held_since"], said["started"])
    assert str(said["started"]) <= str(said["held_since"])


def test_one_that_did_not_wait_writes_nothing(conch: Bench) -> None:
    """It holds since it started."""
    holder = conch.hold("o")
    rev = int(holder.wait_event("acquired")["rev"])

    def unwritten() -> None:
        _, meta = conch.etcd.get(conch.key("o", holder.lease()))
        assert meta.mod_revision == rev

    throughout(0.6, unwritten)


def test_second_run_of_a_restart_says_since_when_it_holds(conch: Bench) -> None:
    """Its key says when conch started, which was before the first."""
    wrapper = conch.start("elect", "o", "--restart", "--restart-min", "10ms", "--", "sh", "-c", "sleep 1")
    wrapper.wait_event("acquired", 2)

    def said() -> bool:
        lease = int(wrapper.events("acquired")[-1]["lease"], 16)
        raw, _ = conch.etcd.get(conch.key("o", lease))
        return raw is not None and b"held_since" in raw

    wait_for(said, "the time")
    wrapper.signal_until_it_ends(15)
    wrapper.wait()


def test_watch_shows_one_line_for_a_holder_that_says_it_later(conch: Bench) -> None:
    """The line has the time of the change, not that at which the new holder began to wait."""
    first = conch.hold("o")
    second = conch.queue("o")
    watcher = conch.start("elect", "o", "--watch", "--json")
    wait_for(lambda: watcher.out.count("\n") == 1, "the first line")
    first.signal(15)
    wait_for(lambda: "held_since" in value(conch, "o", second), "the time")
    second.signal(15)
    wait_for(lambda: "vacant" in watcher.out, "the last line")
    lines = list(conch.jsons(watcher.out))
    assert [line.get("pid") for line in lines] == [first.pid, second.pid, None]
    assert lines[1]["since"] >= lines[1]["started"]
    watcher.signal(15)
    watcher.wait()
