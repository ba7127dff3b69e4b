"""Many daemons and one job a second: what a tick costs etcd, and the daemons that do not run it."""

import re
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from tests.support.conch import Wrapper
from tests.support.cron import Fleet
from tools.bench.daemons import metrics_of, new_fleet, proposals, sample, start_daemons
from tools.bench.measure import daemon_cpu_s
from tools.bench.table import header, row

FEW, MANY = 3, 50
# as often as a daemon writes its time, so that this costs the same with and without ticks
SPELL_S = 60
_SETTLED_S = 300
_WATCH_MESSAGES = re.compile(r'^grpc_server_msg_sent_total{.*grpc_method="Watch".*} (\S+)', re.MULTILINE)


def settle(endpoint: str, hosts: int) -> None:
    """Wait until etcd writes no more than the times that the daemons publish: their start is over."""
    until = time.monotonic() + _SETTLED_S
    while True:
        before = proposals(endpoint)
        time.sleep(SPELL_S / 10)
        if proposals(endpoint) - before <= 2 + hosts / 5:
            return
        assert time.monotonic() < until, f"{hosts} daemons do not come to rest"


class Counts(NamedTuple):
    """What etcd and each daemon have counted."""

    proposals: float
    messages: float  # sent to watches
    sent_kb: float  # all that etcd has sent
    cpu_s: list[float]


def read_counts(fleet: Fleet, daemons: Sequence[Wrapper]) -> Counts:
    """Read all counters now."""
    text = metrics_of(fleet.bench.endpoints)
    return Counts(
        proposals(fleet.bench.endpoints),
        sum(map(float, _WATCH_MESSAGES.findall(text))),
        sample(text, "etcd_network_client_grpc_sent_bytes_total") / 1000,
        [daemon_cpu_s(daemon) for daemon in daemons],
    )


def growth(fleet: Fleet, daemons: Sequence[Wrapper]) -> Counts:
    """Return by how much they grow in one spell."""
    before = read_counts(fleet, daemons)
    time.sleep(SPELL_S)
    after = read_counts(fleet, daemons)
    return Counts(
        after.proposals - before.proposals,
        after.messages - before.messages,
        after.sent_kb - before.sent_kb,
        [last - first for first, last in zip(before.cpu_s, after.cpu_s, strict=True)],
    )


class Tick(NamedTuple):
    """What a tick cost more than the time without ticks."""

    proposals: float
    messages: float  # to each daemon
    sent_kb: float  # to each daemon
    idle_cpu_ms: float  # a daemon that did not run it
    idle_daemons: int


def ticks(hosts: int) -> Tick:
    """Measure a fleet first without any job, then with one that runs every second."""
    with new_fleet() as fleet:
        daemons = start_daemons(fleet, hosts)
        settle(fleet.bench.endpoints, hosts)
        rest = growth(fleet, daemons)
        fleet.add("j", "@every 1s", "--overlap", "allow", command=":")
        fleet.results("j", 2)
        first = time.time()
        work = growth(fleet, daemons)
        last = time.time()
        ran_by = Counter(str(row["node"]) for tick, row in fleet.ticks("result", "j").items() if first < tick < last)
    number = ran_by.total()
    extra_s = [busy - idle for busy, idle in zip(work.cpu_s, rest.cpu_s, strict=True)]
    # with few daemons there is none that ran no tick
    idle_s = [extra for extra, host in zip(extra_s, range(hosts), strict=True) if not ran_by[f"h{host}"]]
    return Tick(
        (work.proposals - rest.proposals) / number,
        (work.messages - rest.messages) / number / hosts,
        (work.sent_kb - rest.sent_kb) / number / hosts,
        statistics.fmean(idle_s) / number * 1000 if idle_s else float("nan"),
        len(idle_s),
    )


def main() -> None:
    """Compare many daemons with few."""
    header("a job a second", f"{MANY} daemons", f"{FEW} daemons", "ratio", "wanted")
    few, many = ticks(FEW), ticks(MANY)

    def compare(what: str, form: str, ours: float, other: float, limit: str) -> None:
        row(what, form.format(ours), form.format(other), f"{ours / other:.2f}", limit)

    compare("proposals a tick", "{:.2f}", many.proposals, few.proposals, "at most 1.1 times")
    compare("messages to each daemon's watch a tick", "{:.2f}", many.messages, few.messages, "-")
    compare("sent by etcd to each daemon a tick", "{:.2f} kB", many.sent_kb, few.sent_kb, "-")
    what = f"CPU of a daemon for a tick that it does not run (mean of {many.idle_daemons} that ran none)"
    row(what, f"{many.idle_cpu_ms:.2f} ms", "-", "-", "at most 0.3 ms")
