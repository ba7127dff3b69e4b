"""One etcd per run, one prefix per test, and a check that nothing is left behind."""

import os

# Tests fork while a client of etcd3 is open; gRPC's own support for that sometimes aborts the process.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from conch.dev import Cluster, Member
from tests.support.conch import CONTAIN, Bench
from tests.support.cron import Fleet

# On a busy machine everything is slow, also making examples.
settings.register_profile("conch", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("conch")

_ENDPOINTS = "CONCH_TESTS_ETCD"
# The seed of the first schedule of faults in `tests/faults/invariant`.
FIXED_SEED = 20261120
_cluster: Cluster | None = None


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--contain`, `--seed` and `--schedules`, with which a failure is replayed, and `--report`."""
    parser.addoption(
        "--contain",
        choices=("auto", "cgroup", "tree"),
        default="auto",
        help="what contains the runs of each conch whose test does not say it itself (CONCH_CONTAIN)",
    )
    parser.addoption("--seed", type=int, default=FIXED_SEED, help="the first schedule's seed")
    parser.addoption("--schedules", type=int, default=0, help="how many schedules of each kind (0: a few)")
    parser.addoption(
        "--report", help="append a line of JSON a schedule to this file: see tests/faults/invariant/report.py"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Start the run's etcd in the process that starts the workers, unless only tests without etcd are chosen."""
    global _cluster
    os.environ[CONTAIN] = config.option.contain
    needs_no_etcd = ("tests/unit", "tests/tools", "tests/test_architecture.py")
    only_units = bool(config.args) and all(any(path in arg for path in needs_no_etcd) for arg in config.args)
    if hasattr(config, "workerinput") or _ENDPOINTS in os.environ or only_units or config.option.collectonly:
        return
    _cluster = Cluster()
    _cluster.start()
    os.environ[_ENDPOINTS] = _cluster.endpoints


def pytest_unconfigure() -> None:
    """Stop the run's etcd."""
    global _cluster
    if _cluster is not None:
        _cluster.stop()
        _cluster = None
        os.environ.pop(_ENDPOINTS, None)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that is marked with kinds of holds once for each kind."""
    marker = metafunc.definition.get_closest_marker("kinds")
    if marker is not None:
        metafunc.fixturenames.append("kind")
        metafunc.parametrize("kind", marker.args, indirect=True)


@pytest.fixture
def kind(request: pytest.FixtureRequest) -> str:
    """The command that holds in this test: `elect` or `sema`."""
    return str(getattr(request, "param", "elect"))


@pytest.fixture
def conch(tmp_path: Path, kind: str) -> Iterator[Bench]:
    """The installed conch on the run's etcd."""
    bench = Bench(os.environ[_ENDPOINTS], secrets.token_hex(8), tmp_path, kind)
    yield bench
    bench.finish()
    bench.check_etcd()


class OwnEtcd:
    """A test's own member of etcd, which the test may stop and freeze."""

    def __init__(self, bench: Bench, cluster: Cluster) -> None:
        self.bench = bench
        self.cluster = cluster

    @property
    def member(self) -> Member:
        return self.cluster.members[0]


@pytest.fixture
def own(tmp_path: Path, kind: str) -> Iterator[OwnEtcd]:
    """The installed conch on an etcd of the test's own."""
    with Cluster() as cluster:
        bench = Bench(cluster.endpoints, secrets.token_hex(8), tmp_path, kind)
        yield OwnEtcd(bench, cluster)
        bench.finish()
        if cluster.members[0].running():
            bench.check_etcd()


@pytest.fixture
def fleet(conch: Bench) -> Iterator[Fleet]:
    """Daemons on the run's etcd."""
    fleet = Fleet(conch)
    yield fleet
    fleet.clean()


@pytest.fixture
def own_fleet(own: OwnEtcd) -> Iterator[Fleet]:
    """Daemons on an etcd of the test's own."""
    fleet = Fleet(own.bench)
    yield fleet
    fleet.clean()
