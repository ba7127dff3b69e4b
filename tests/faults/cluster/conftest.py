"""Clusters of three members, and proxies in front of a member."""

import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from conch.dev import Cluster, Member
from tests.support.conch import Bench, wait_for
from tests.support.etcdctl import leader
from tests.support.proxy import Proxy


class Three:
    """A cluster of three members and a conch on all of its endpoints."""

    def __init__(self, cluster: Cluster, bench: Bench) -> None:
        self.cluster = cluster
        self.bench = bench

    def leader(self) -> Member:
        """Wait for a leader and return it."""
        member = wait_for(lambda: leader(self.cluster), "a leader")
        assert member is not None
        return member

    def leader_last(self) -> list[Member]:
        """Return all members, the leader last."""
        first = self.leader()
        return [member for member in self.cluster.members if member is not first] + [first]


@pytest.fixture
def three(tmp_path: Path) -> Iterator[Three]:
    """Three members; stopped ones are restarted for the check of leftovers at the end."""
    with Cluster(3) as cluster:
        bench = Bench(cluster.endpoints, secrets.token_hex(8), tmp_path)
        yield Three(cluster, bench)
        bench.finish()
        for member in cluster.members:
            if not member.running():
                cluster.restart(member)
        cluster.wait_ready()
        bench.check_etcd()


@pytest.fixture
def proxied(conch: Bench) -> Iterator[Callable[[], Proxy]]:
    """A factory of proxies in front of the test run's etcd."""
    proxies: list[Proxy] = []

    def make() -> Proxy:
        proxies.append(Proxy(conch.endpoints))
        return proxies[-1]

    yield make
    for proxy in proxies:
        proxy.heal()
    conch.finish()  # while etcd can still be reached: leases are revoked, and need not run out
    for proxy in proxies:
        proxy.close()
