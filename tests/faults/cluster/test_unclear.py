"""Calls whose reply is lost, late or reset: conch cannot know whether they were made, but the invariants hold."""

import signal
from collections.abc import Callable

import pytest

from conch.etcd.store import CreateRevisionIs, Delete, Put, Range
from tests.support.conch import Bench, alive, boottime, new_store, wait_for
from tests.support.proxy import Proxy

MakeProxy = Callable[[], Proxy]
HOW = ["reset", "hang", "delay"]


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("method", ["LeaseGrant", "Txn"])
def test_an_acquisition_whose_reply_is_lost_acquires_once(
    conch: Bench, proxied: MakeProxy, method: str, how: str
) -> None:
    """The command runs once, with the token of the only key."""
    proxy = proxied()
    fault = proxy.fault(method, how, delay_s=1.0)
    wrapper = conch.hold("o", "--endpoints", proxy.endpoint, command="echo $CONCH_REV >> revs; exec sleep 1000")
    assert fault.hit.is_set()
    ((_, meta),) = conch.etcd.get_prefix(conch.prefix)
    assert conch.read("revs").split() == [str(meta.create_revision)]
    assert meta.lease_id == wrapper.lease()
    waiter = conch.queue("o", command="true")
    wrapper.signal(signal.SIGTERM)
    assert waiter.wait() == 0
    assert len(wrapper.events("child-start")) == 1
    assert not wrapper.events("place-lost")


@pytest.mark.parametrize("how", HOW)
def test_a_waiter_whose_read_is_lost_is_still_promoted(conch: Bench, proxied: MakeProxy, how: str) -> None:
    """It is promoted once, and in its turn."""
    proxy = proxied()
    first = conch.hold("o")
    waiter = conch.queue("o", "--endpoints", proxy.endpoint, command="echo ran >> ran; exec sleep 1000")
    last = conch.queue("o")
    fault = proxy.fault("Range", how, delay_s=1.0)
    first.signal(signal.SIGTERM)
    waiter.child()
    assert fault.hit.is_set()
    assert not last.events("acquired")
    assert len(conch.keys()) == 2


@pytest.mark.parametrize("how", HOW)
def test_a_release_whose_reply_is_lost_releases_no_other_hold(conch: Bench, proxied: MakeProxy, how: str) -> None:
    """When the revocation is repeated, the next in line has started."""
    proxy = proxied()
    first = conch.hold("o", "--endpoints", proxy.endpoint)
    second = conch.queue("o")
    third = conch.queue("o")
    fault = proxy.fault("LeaseRevoke", how, delay_s=1.0)
    first.signal(signal.SIGTERM)
    child = second.child()
    assert first.wait() == 128 + signal.SIGTERM
    assert fault.hit.is_set()
    until = boottime() + 1.5
    while boottime() < until:
        assert alive(child)
        assert not third.events("acquired")
    assert len(conch.keys()) == 2


@pytest.mark.parametrize("how", ["reset", "hang"])
def test_renewals_whose_replies_are_lost_are_repeated(conch: Bench, proxied: MakeProxy, how: str) -> None:
    """They prove nothing: the deadline counts from the renewal that was answered."""
    proxy = proxied()
    wrapper = conch.hold("o", "--endpoints", proxy.endpoint)
    faults = [proxy.fault(method, how) for method in ("LeaseKeepAlive", "Range")]
    wait_for(lambda: all(fault.hit.is_set() for fault in faults), "both faults", 30)
    seen = proxy.calls.count("LeaseKeepAlive")
    wait_for(lambda: proxy.calls.count("LeaseKeepAlive") >= seen + 2, "more renewals", 30)
    assert wrapper.process.poll() is None
    assert not wrapper.events("lost")


@pytest.mark.parametrize("direction", ["lose_requests", "lose_replies"])
def test_a_network_that_swallows_one_direction_ends_the_tree_in_time(
    conch: Bench, proxied: MakeProxy, direction: str
) -> None:
    """Renewals that arrive prove nothing without a reply: the tree is dead before the TTL is over."""
    proxy = proxied()
    wrapper = conch.hold(
        "o", "--ttl", "4s", "--endpoints", proxy.endpoint, command="trap '' TERM; while :; do sleep 0.02; done"
    )
    child = wrapper.child()
    getattr(proxy, direction).set()
    lost_at = boottime()
    wait_for(lambda: not alive(child), "the child is dead")
    assert boottime() <= lost_at + 4
    assert wrapper.wait() == 70
    proxy.heal()


def test_a_failed_acquisition_leaves_no_key_beyond_a_ttl(conch: Bench, proxied: MakeProxy) -> None:
    """etcd made the transaction and then became unreachable: the key goes with its lease."""
    proxy = proxied()
    fault = proxy.fault("Txn", "hang")
    flags = ["--ttl", "2s", "--command-timeout", "1s", "--dial-timeout", "1s"]
    wrapper = conch.start("elect", "o", "-n", *flags, "--endpoints", proxy.endpoint, "--", "touch", "ran")
    assert fault.hit.wait(20)
    proxy.blackhole()
    assert wrapper.wait() == 69
    assert not conch.file("ran").exists()
    wait_for(lambda: not conch.keys(), "the key is gone with its lease", 10)


@pytest.mark.parametrize("how", HOW)
def test_a_write_or_deletion_whose_reply_is_lost_is_repeated_safely(conch: Bench, proxied: MakeProxy, how: str) -> None:
    """A repeated create finds the key that it made; a repeated deletion finds nothing to delete."""
    proxy = proxied()
    store = new_store(proxy.endpoint)
    key = f"{conch.prefix}/k".encode()
    for operation in (Put(key, b"v"), Delete(key)):
        fault = proxy.fault("Txn", how, delay_s=1.0)
        before = [CreateRevisionIs(key, 0)] if isinstance(operation, Put) else []
        result = store.txn(before, [operation], [Range(key)], timeout_s=10)
        assert fault.hit.is_set()
        assert result.succeeded or result.ranges[0].kvs[0].value == b"v"
        there = store.range(Range(key), timeout_s=5).kvs
        assert [kv.value for kv in there] == ([b"v"] if isinstance(operation, Put) else [])
    store.close()


def test_turn_is_not_lost_because_no_renewal_was_answered(conch: Bench, proxied: MakeProxy) -> None:
    """Replies to renewals are lost: once promoted, it waits for one that proves enough time, and then starts."""
    proxy = proxied()
    first = conch.hold("o")
    waiter = conch.queue("o", "--ttl", "3s", "--endpoints", proxy.endpoint)
    last = conch.queue("o")
    proxy.fault("LeaseKeepAlive", "drop", times=1000)
    waiter.wait_event("doubt")
    until = boottime() + 3
    while boottime() < until:
        assert len(conch.keys()) == 3
    first.signal(signal.SIGTERM)
    wait_for(lambda: len(conch.keys()) == 2, "the first is gone")
    until = boottime() + 1
    while boottime() < until:
        assert not waiter.events("child-start")
        assert not last.events("acquired")
    proxy.heal()
    waiter.child()
    assert not waiter.events("lost")
    assert not waiter.events("place-lost")
