"""Parametrizes schedules by seed, and keeps one cluster per worker for them."""

from collections.abc import Generator, Iterator

import pytest

from conch.dev import Cluster, EtcdFailed


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test with `seed` once per schedule."""
    if "seed" in metafunc.fixturenames:
        first = metafunc.config.getoption("--seed")
        count = metafunc.config.getoption("--schedules") or 2
        metafunc.parametrize("seed", range(first, first + count))


# The text of a test's failure; empty if it passed.
FAILURE: pytest.StashKey[str] = pytest.StashKey()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Keep the outcome of a test for its fixtures."""
    report = yield
    if report.when == "call":
        item.stash[FAILURE] = "" if report.passed else report.longreprtext
    return report


@pytest.fixture(scope="session")
def members() -> Iterator[Cluster]:
    """Three members, healed after each schedule. Where many clusters start together, one may need a second try."""
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
