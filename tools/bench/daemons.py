"""Fleets of daemons to measure, each on an etcd of its own: many jobs at once, counters, the status server."""

import json
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from conch.etcd.store import Range
from conch.keys import prefix_end
from tests.support.conch import Wrapper, new_store, wait_for
from tests.support.cron import Fleet
from tools.bench.measure import new_bench

# etcd takes 128 operations in a transaction
_BATCH = 100
_START_S = 120.0
_ASK_EVERY_S = 0.2
_COUNT_EVERY_S = 0.1
_STALLED_S = 60.0
_LONGEST_ANSWER_S = 60.0


@contextmanager
def new_fleet() -> Iterator[Fleet]:
    """A fleet on an etcd of its own."""
    with new_bench("bench") as (bench, _):
        fleet = Fleet(bench)
        yield fleet
        fleet.clean()


def start_daemons(fleet: Fleet, hosts: int, *flags: str) -> list[Wrapper]:
    """Start daemons on hosts h0, h1 … at the same time, and wait until all are registered, on a busy machine too."""
    daemons = [fleet.start(f"h{number}", *flags, ready=False) for number in range(hosts)]
    for daemon in daemons:
        daemon.wait_event("registered", timeout_s=_START_S)
    return daemons


def put_jobs(fleet: Fleet, jobs: int, schedule: str | Callable[[int], str], **fields: Any) -> None:
    """Add the jobs j0, j1 … in large transactions; each runs `true` and may overlap unless the fields say otherwise.

    `schedule` is that of all, or returns that of a number.
    """
    etcd, puts = fleet.bench.etcd, []
    for number in range(jobs):
        due = schedule if isinstance(schedule, str) else schedule(number)
        job = json.dumps({"schedule": due, "cmd": ["true"], "overlap": "allow", **fields})
        puts.append(etcd.transactions.put(f"{fleet.bench.prefix}/cron/job/j{number}", job))
    for first in range(0, jobs, _BATCH):
        etcd.transaction(compare=[], success=puts[first : first + _BATCH], failure=[])


class KeyCount:
    """Counts keys below `cron/` without reading them."""

    def __init__(self, fleet: Fleet) -> None:
        self._prefix = f"{fleet.bench.prefix}/cron/"
        self._store = new_store(fleet.bench.endpoints)

    def __call__(self, kind: str) -> int:
        """Count the keys of one kind, such as `result`."""
        prefix = f"{self._prefix}{kind}/".encode()
        return self._store.range(Range(prefix, prefix_end(prefix), limit=1), timeout_s=30).count

    def wait(self, kind: str, number: int) -> None:
        """Wait until there are so many keys, or no more of them have come for a minute; without loading etcd."""
        found, changed_at = 0, time.monotonic()
        while found < number and time.monotonic() - changed_at < _STALLED_S:
            time.sleep(_COUNT_EVERY_S)
            earlier, found = found, self(kind)
            if found != earlier:
                changed_at = time.monotonic()


def metrics_of(address: str) -> str:
    """Return the metrics that etcd or a daemon serves there, as text."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=_LONGEST_ANSWER_S) as answer:
        return str(answer.read().decode())


def metrics_when_idle(address: str) -> str:
    """Return a daemon's metrics; wait while it says that it is busy."""
    until = time.monotonic() + _LONGEST_ANSWER_S
    while True:
        try:
            return metrics_of(address)
        except urllib.error.HTTPError as refusal:
            refusal.close()
            if time.monotonic() > until:
                raise
        time.sleep(1)


def sample(text: str, name: str) -> float:
    """Return the value of a metric that has no labels."""
    return next(float(line.split()[1]) for line in text.splitlines() if line.startswith(f"{name} "))


def proposals(endpoint: str) -> float:
    """Return how many raft proposals etcd has committed."""
    return sample(metrics_of(endpoint), "etcd_server_proposals_committed_total")


def _ill_health(address: str) -> str:
    """Return why `/healthz` does not answer 200; empty if it does."""
    try:
        urllib.request.urlopen(f"http://{address}/healthz", timeout=_LONGEST_ANSWER_S).close()
    except urllib.error.HTTPError as refusal:
        with refusal:
            return refusal.read().decode().strip()
    except OSError as error:
        return str(error)
    return ""


class StatusProbe:
    """Asks the status servers of daemons five times a second, one thread each, while the `with` block lasts.

    `slowest_s` is the longest time that `/healthz` took, `unhealthy` says how many answers were not 200, and why, and
    `lowest_lease_s` is the shortest time that a lease had left without a renewal.
    """

    def __init__(self, daemons: Sequence[Wrapper]) -> None:
        """The daemons were started with `--status-addr`."""
        self._addresses = [daemon.wait_event("status")["addr"] for daemon in daemons]
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(address,)) for address in self._addresses]
        # each thread appends to these lists, which needs no lock
        self._answers_s: list[float] = []
        self._leases_s: list[float] = []
        self._refusals: list[str] = []

    def __enter__(self) -> "StatusProbe":
        wait_for(lambda: not any(map(_ill_health, self._addresses)), "healthy daemons")
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    @property
    def slowest_s(self) -> float:
        return max(self._answers_s)

    @property
    def lowest_lease_s(self) -> float:
        return min(self._leases_s)

    @property
    def unhealthy(self) -> str:
        reasons = "".join(f" ({number}: {why})" for why, number in Counter(self._refusals).most_common(2))
        return f"{len(self._refusals)} of {len(self._answers_s)} not 200{reasons}"

    def missed(self) -> int:
        """Return how many ticks the daemons have counted as missed."""
        return int(sum(sample(metrics_when_idle(address), "conch_ticks_missed_total") for address in self._addresses))

    def _ask(self, address: str) -> None:
        while not self._stop.wait(_ASK_EVERY_S):
            began = time.monotonic()
            why = _ill_health(address)
            self._answers_s.append(time.monotonic() - began)
            if why:
                self._refusals.append(why)
            try:
                self._leases_s.append(sample(metrics_of(address), "conch_lease_left_seconds"))
            except OSError:
                pass  # /healthz has shown it
