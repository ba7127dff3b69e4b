"""An etcd whose revision goes back: wiped, or restored from a backup."""

import contextlib
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import OwnEtcd
from tests.support.conch import Wrapper, wait_for
from tests.support.cron import Fleet

TRANSPORTS = pytest.mark.parametrize("transport", ["http", "grpc"])


def grow(own: OwnEtcd, revisions: int = 50) -> None:
    """Let etcd's revision grow by writes that nobody watches."""
    for _ in range(revisions):
        own.bench.etcd.put("/other", "")


def replace_data(own: OwnEtcd, change: Callable[[Path], object]) -> None:
    """Stop etcd, change its data and start it again."""
    own.bench.went_back = True
    own.cluster.kill(own.member)
    change(own.member.folder / "data")
    own.cluster.restart(own.member)
    own.cluster.wait_ready()


def wipe(own: OwnEtcd) -> None:
    replace_data(own, shutil.rmtree)


def back_up(own: OwnEtcd) -> Path:
    copy = own.bench.folder / "backup"
    replace_data(own, lambda data: shutil.copytree(data, copy))
    return copy


def restore(own: OwnEtcd, copy: Path) -> None:
    def put_back(data: Path) -> None:
        shutil.rmtree(data)
        shutil.copytree(copy, data)

    replace_data(own, put_back)


def hears_of_growth(own: OwnEtcd, lease: int) -> None:
    """Wait until the lease was renewed: the keeper has then seen etcd's revision."""
    left = own.bench.etcd.get_lease_info(lease).TTL

    def renewed() -> bool:
        nonlocal left
        before, left = left, own.bench.etcd.get_lease_info(lease).TTL
        return bool(left > before)

    wait_for(renewed, "a renewal")


def warned_once(wrapper: Wrapper) -> None:
    wrapper.wait_event("revision-went-back")
    assert len(wrapper.events("revision-went-back")) == 1, wrapper.err


@contextlib.contextmanager
def frozen(daemon: Wrapper) -> Iterator[None]:
    """Stop both processes of a conch and continue them afterwards."""
    both = (daemon.pid, daemon.keeper())
    for pid in both:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in both:
            os.kill(pid, signal.SIGCONT)


@TRANSPORTS
def test_conchd_after_a_wipe_runs_what_is_added(own: OwnEtcd, own_fleet: Fleet, transport: str) -> None:
    """It registers again, and does not confuse a new job with an old one of the same revision."""
    own_fleet.add("same", "@every 1s", command="exit 3")
    at_first = own.bench.etcd.get(f"{own.bench.prefix}/cron/job/same")[1].mod_revision
    own_fleet.add("old", "@every 1s")
    daemon = own_fleet.start("a", "--transport", transport)
    own_fleet.results("same", 1)
    with frozen(daemon):
        grow(own)
        wipe(own)
        grow(own, at_first - 2)
        own_fleet.add("same", "@every 1s")
        own_fleet.add("fresh", "@every 1s")
    assert own.bench.etcd.get(f"{own.bench.prefix}/cron/job/same")[1].mod_revision == at_first
    own_fleet.results("fresh", 1)
    wait_for(lambda: any(one["exit"] == 0 for one in own_fleet.ticks("result", "same").values()), "the new job ran")
    warned_once(daemon)


def test_conchd_is_not_deaf_to_an_etcd_that_grew_past_what_it_knew(own: OwnEtcd, own_fleet: Fleet) -> None:
    """It lists again because its registration is gone; no revision shows the wipe."""
    grow(own)
    daemon = own_fleet.start("a", "--ttl", "2s")
    with frozen(daemon):
        wipe(own)
        own_fleet.add("fresh", "@every 1s")
        grow(own, 100)
    own_fleet.results("fresh", 1)
    assert daemon.events("revision-went-back") == []


def test_run_whose_key_a_restored_etcd_does_not_have_is_ended(own: OwnEtcd, own_fleet: Fleet) -> None:
    """It ends although the backup has brought the registration back."""
    own_fleet.add("j", "@yearly", command="sleep 1000")
    daemon = own_fleet.start("a", "--ttl", "60s")
    copy = back_up(own)
    wait_for(lambda: own_fleet.ticks("now", "j") == {}, "etcd answers")
    tick = own_fleet.run_now("j")
    daemon.wait_event("child-start")
    grow(own)
    restore(own, copy)
    warned_once(daemon)
    assert "run key is gone" in own_fleet.result("j", tick)["reason"]
    assert daemon.events("registration-lost") == []


@TRANSPORTS
def test_watch_shows_who_leads_in_a_wiped_etcd(own: OwnEtcd, transport: str) -> None:
    """Nothing but its own stream can show it the wipe."""
    grow(own)
    watch = own.bench.start("elect", "o", "--watch", "--transport", transport)
    wait_for(lambda: watch.out == "o -\n", "nobody leads")
    wipe(own)
    leader = own.bench.hold("o")
    wait_for(lambda: f"pid={leader.pid} " in watch.out, "the leader is shown")
    warned_once(watch)
    watch.signal(signal.SIGTERM)
    leader.signal(signal.SIGTERM)
    leader.wait()


def test_wrapper_whose_key_is_wiped_has_lost_it(own: OwnEtcd) -> None:
    """It exits 70; with --restart it queues again."""
    again = own.bench.hold("a", "--restart", "--restart-min", "0.1")
    once = own.bench.hold("o")
    grow(own)
    wipe(own)
    assert once.wait() == 70
    again.child(2)
    warned_once(again)
    again.signal(signal.SIGTERM)
    again.wait()


@TRANSPORTS
def test_hold_that_a_restored_etcd_still_has(own: OwnEtcd, transport: str) -> None:
    """The hold is kept; the waiter gets it after a release, and the watch notices a manual deletion."""
    how = ("--ttl", "10s", "--transport", transport)
    holder, waiter = own.bench.hold("o", *how), own.bench.queue("o", *how)
    copy = back_up(own)
    grow(own)
    for lease in (holder.lease(), int(waiter.wait_event("queued")["lease"], 16)):
        hears_of_growth(own, lease)
    restore(own, copy)
    warned_once(holder)
    warned_once(waiter)
    assert holder.events("lost") == [] == waiter.events("place-lost", "acquired")
    holder.signal(signal.SIGTERM)
    waiter.wait_event("acquired", timeout_s=10)
    wait_for(lambda: own.bench.etcd.delete(own.bench.key("o", waiter.lease())), "the key is deleted")
    assert "deleted" in waiter.wait_event("lost", timeout_s=10)["reason"]
    assert waiter.wait() == 70
