"""Which endpoint is called, and how many connections that takes."""

import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from conch.etcd.endpoints import Endpoint
from conch.etcd.store import Put, Range, Store, Unreachable
from tests.support.conch import TRANSPORT, Bench, new_store, wait_for
from tests.support.proxy import Proxy

MakeProxy = Callable[[], Proxy]


@pytest.fixture
def store_on(conch: Bench) -> Iterator[Callable[..., Store]]:
    """Make stores on proxies; close them after the test."""
    stores = []

    def make(*proxies: Proxy) -> Store:
        stores.append(new_store(",".join(proxy.endpoint for proxy in proxies)))
        return stores[-1]

    yield make
    for store in stores:
        store.close()


def test_all_requests_of_a_store_share_one_connection(proxied: MakeProxy, store_on: Callable[..., Store]) -> None:
    """Fifty reads take one connection."""
    proxy = proxied()
    store = store_on(proxy)
    for _ in range(50):
        store.range(Range(b"x"), timeout_s=5)
    assert proxy.connections == 1


def test_a_holding_wrapper_keeps_its_connections(conch: Bench, proxied: MakeProxy) -> None:
    """They serve its lease, transaction, renewals, watch and revocation."""
    proxy = proxied()
    wrapper = conch.hold("o", "--endpoints", proxy.endpoint, "--ttl", "2s")
    wait_for(lambda: proxy.calls.count("LeaseKeepAlive") >= 5, "renewals")
    assert proxy.connections <= (1 if TRANSPORT == "grpc" else 2)  # the gateway driver's watch has one of its own
    assert "Watch" in proxy.calls
    wrapper.signal(15)
    wrapper.wait()
    assert proxy.connections <= (1 if TRANSPORT == "grpc" else 2)  # the gateway driver's watch has one of its own


def test_a_fleet_spreads_over_the_endpoints(proxied: MakeProxy, store_on: Callable[..., Store]) -> None:
    """Each store tries its endpoints in random order."""
    proxies = [proxied(), proxied()]
    for _ in range(24):
        store_on(*proxies).range(Range(b"x"), timeout_s=5)
    assert all(proxy.connections > 2 for proxy in proxies)


def test_a_failed_request_goes_to_another_endpoint_immediately_and_stays_there(
    proxied: MakeProxy, store_on: Callable[..., Store]
) -> None:
    """The failed endpoint is not called again while another works."""
    proxies = [proxied(), proxied()]
    store = store_on(*proxies)
    store.range(Range(b"x"), timeout_s=5)
    used, other = sorted(proxies, key=lambda proxy: -proxy.connections)
    used.close()
    for _ in range(20):
        began = time.monotonic()
        store.range(Range(b"x"), timeout_s=5)
        assert time.monotonic() - began < 1
    assert (used.connections, other.connections) == (1, 1)


def test_each_endpoint_is_called_once_per_round_and_never_twice_in_a_row(
    proxied: MakeProxy, store_on: Callable[..., Store]
) -> None:
    """Rounds go on until the caller's time is up, with pauses in between."""
    proxies = [proxied() for _ in range(3)]
    for proxy in proxies:
        proxy.lose_requests.set()
        proxy.lose_replies.set()
        proxy.close()
    store = store_on(*proxies)
    order: list[str] = []
    driver: Any = getattr(store, "_store", store)
    opened = driver._open

    def note(endpoint: Endpoint) -> object:
        order.append(str(endpoint))
        return opened(endpoint)

    driver._open = note
    with pytest.raises(Unreachable):
        store.range(Range(b"x"), timeout_s=2)
    assert 6 <= len(order) < 60
    for at in range(0, len(order) - 2, 3):
        assert len(set(order[at : at + 3])) == 3
    assert all(a != b for a, b in itertools.pairwise(order))


@pytest.mark.parametrize("direction", ["lose_requests", "lose_replies"])
def test_a_silent_member_is_left_within_two_seconds(
    proxied: MakeProxy, store_on: Callable[..., Store], direction: str
) -> None:
    """Packets may vanish in either direction."""
    proxies = [proxied(), proxied()]
    store = store_on(*proxies)
    store.range(Range(b"x"), timeout_s=5)
    used = max(proxies, key=lambda proxy: proxy.connections)
    getattr(used, direction).set()
    began = time.monotonic()
    store.range(Range(b"x"), timeout_s=5)
    assert time.monotonic() - began < 3


def test_an_idle_connection_that_was_cut_is_replaced(
    conch: Bench, proxied: MakeProxy, store_on: Callable[..., Store]
) -> None:
    """A firewall may have cut it; the next request succeeds over a new one."""
    proxy = proxied()
    store = store_on(proxy)
    store.txn([], [Put(f"{conch.prefix}/k".encode(), b"v")], timeout_s=5)
    proxy.cut()
    assert store.range(Range(f"{conch.prefix}/k".encode()), timeout_s=5).count == 1
    assert proxy.connections == 2
    conch.etcd.delete(f"{conch.prefix}/k")


def test_lease_of_ten_seconds_survives_a_member_that_goes_silent(conch: Bench, proxied: MakeProxy) -> None:
    """The connection stays open but nothing arrives: renewals continue over another connection."""
    proxies = [proxied(), proxied()]
    wrapper = conch.hold("o", "--endpoints", ",".join(proxy.endpoint for proxy in proxies))
    used = max(proxies, key=lambda proxy: proxy.connections)
    used.blackhole()
    other = min(proxies, key=lambda proxy: proxy.connections)
    wait_for(lambda: other.calls.count("LeaseKeepAlive") >= 5, "renewals over the other", 30)
    assert not wrapper.events("lost")
    assert wrapper.process.poll() is None
