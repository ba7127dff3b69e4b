"""Schedules by their seeds, and the cluster that each worker keeps for them."""

from collections.abc import Generator, Iterator

import pytest

from conch.dev import Cluster, EtcdFailed


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test with `seed` runs once a schedule."""
    if "seed" in metafunc.fixturenames:
        first = metafunc.config.getoption("--seed")
        count = metafunc.config.getoption("--schedules") or 2
        metafunc.parametrize("seed", range(first, first + count))


# How a test failed; empty if it passed.
FAILURE: pytest.StashKey[str] = pytest.StashKey()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Let fixtures know how a test went."""
    report = yield
    if report.when == "call":
        item.stash[FAILURE] = "" if report.passed else report.longreprtext
    return report


@pytest.fixture(scope="session")
def members() -> Iterator[Cluster]:
    """Three members, healed after each schedule. Where many start at once, one may take too long at first."""
    for last in (False, False, True):
        cluster = Cluster(3)
        try:
            cluster.start()
            break
        except EtcdFailed:
            if last:
                raise
    yield cluster
    cluster.stop()
