"""A daemon on an etcd that is full: what it asks, logs, counts and says of its health, and that it goes on after."""

import json
import re
import secrets
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from conch.dev import Cluster
from tests.support.conch import Bench, Wrapper, wait_for
from tests.support.cron import Fleet
from tests.support.etcdctl import etcdctl
from tests.support.metrics import difference, requests

JOBS, PERIOD_S, WINDOW_S = 40, 5, 10
# A window's requests: a probe every second or so, look-ups of what was missed, two renewals and reads every two seconds.
MOST_REQUESTS, MOST_LINES = 120, 20


@pytest.fixture
def small(tmp_path: Path) -> Iterator[tuple[Cluster, Fleet]]:
    """Daemons on an etcd with a quota of 4 MiB."""
    with Cluster(arguments=["--quota-backend-bytes", str(4 * 1024 * 1024)]) as cluster:
        bench = Bench(cluster.endpoints, secrets.token_hex(8), tmp_path)
        fleet = Fleet(bench)
        yield cluster, fleet
        fleet.clean()
        bench.finish()


def health(address: str) -> tuple[int, str]:
    """Code and body of /healthz."""
    try:
        with urllib.request.urlopen(f"http://{address}/healthz", timeout=15) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def ticks_missed(address: str) -> int:
    """What /metrics says of them."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=15) as answer:
        found = re.search(r"^conch_ticks_missed_total ([0-9.e+]+)$", answer.read().decode(), re.MULTILINE)
    assert found is not None
    return int(float(found[1]))


def fill(cluster: Cluster) -> None:
    """Put what is of no use until etcd takes nothing more."""
    with pytest.raises(AssertionError, match="space exceeded"):
        for number in range(200):
            etcdctl("--endpoints", cluster.endpoints, "put", f"/fill/{number}", "x" * 100_000)


def make_room(cluster: Cluster) -> None:
    """What an operator does about it."""
    ctl = ("--endpoints", cluster.endpoints)
    etcdctl(*ctl, "del", "/fill/", "--prefix")
    ((_, status),) = ((one, one["Status"]) for one in json.loads(etcdctl(*ctl, "endpoint", "status", "-w", "json")))
    etcdctl(*ctl, "compact", str(status["header"]["revision"]))
    etcdctl(*ctl, "defrag")
    etcdctl(*ctl, "alarm", "disarm")


def window(cluster: Cluster, daemon: Wrapper) -> tuple[int, int]:
    """The requests that etcd handles, and the lines that the daemon logs, in a while."""
    before, lines = requests(cluster.endpoints), daemon.err.count("\n")
    time.sleep(WINDOW_S)
    return sum(difference(before, requests(cluster.endpoints)).values()), daemon.err.count("\n") - lines


@pytest.mark.timeout(240)
def test_full_etcd_costs_little_is_said_and_is_survived(small: tuple[Cluster, Fleet]) -> None:
    """40 jobs whose ticks cannot be claimed: few requests and lines, not growing; 503 and why; missed ticks counted."""
    cluster, fleet = small
    daemon = fleet.start("a", "--status-addr", "0")
    address = daemon.wait_event("status")["addr"]
    job = json.dumps({"schedule": f"@every {PERIOD_S}s", "cmd": ["true"], "overlap": "allow"})
    for number in range(JOBS):
        fleet.bench.etcd.put(f"{fleet.bench.prefix}/cron/job/j{number}", job)
    fleet.results("j0", 1)
    assert health(address)[0] == 200
    fill(cluster)
    wait_for(lambda: health(address)[0] == 503, "503", 30)
    assert "space exceeded" in health(address)[1]
    wait_for(lambda: ticks_missed(address) >= JOBS, "missed ticks are counted", 40)
    windows = [window(cluster, daemon) for _ in range(3)]
    print(windows)
    assert all(asked <= MOST_REQUESTS and said <= MOST_LINES for asked, said in windows), windows
    assert health(address)[0] == 503
    missed = ticks_missed(address)
    assert missed >= 2 * WINDOW_S // PERIOD_S * JOBS
    make_room(cluster)
    wait_for(lambda: health(address) == (200, "ok\n"), "200 again", 30)
    known = len(fleet.ticks("result", "j0"))
    fleet.results("j0", known + 2)
    assert {"claim-failed"} <= {event["fault"] for event in daemon.events("fault-over")}
    missed = ticks_missed(address)
    time.sleep(PERIOD_S)
    assert ticks_missed(address) == missed
    claimed = [set(fleet.ticks("fire", f"j{number}")) for number in range(JOBS)]
    first = min(min(one) for one in claimed)
    last = min(max(one) for one in claimed)
    lost = [tick for one in claimed for tick in range(first, last + 1, PERIOD_S) if tick not in one]
    # each once: those of the very first tick may be from before a job was there
    assert missed <= len(lost) <= missed + JOBS
    said = sum(int(event["ticks"]) for event in daemon.events("missed"))
    wait_for(
        lambda: sum(int(event["ticks"]) for event in daemon.events("missed")) == missed, f"{missed} said, not {said}"
    )
    assert not re.search(r"Traceback", daemon.err)


@pytest.mark.timeout(180)
def test_full_etcd_is_noticed_and_forgotten_without_a_tick(small: tuple[Cluster, Fleet]) -> None:
    """There is nothing to be claimed: our own registration finds out, and within seconds that it is over."""
    cluster, fleet = small
    daemon = fleet.start("a", "--status-addr", "0")
    address = daemon.wait_event("status")["addr"]
    fill(cluster)
    other = fleet.start("b", ready=False)  # a's word is asked for by no one but the minute
    wait_for(lambda: health(address)[0] == 503, "503", 90)
    other.wait_event("not-registered")
    make_room(cluster)
    wait_for(lambda: health(address)[0] == 200, "200 again", 20)
    other.wait_event("registered")
