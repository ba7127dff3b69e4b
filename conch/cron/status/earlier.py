"""The last results of jobs, as etcd has them: what an earlier conchd of this host counted in its metrics."""

from collections.abc import Iterator, Sequence

from conch.cron.values import STATES, fields_of, seconds_of
from conch.cron.views import newest
from conch.etcd.store import Store
from conch.keys import Keys

_JOBS_AT_ONCE = 100

Earlier = tuple[str, str, float, float]


def earlier_results(
    store: Store, keys: Keys, names: Sequence[str], host: str, *, timeout_s: float
) -> Iterator[list[Earlier]]:
    """Read the newest result of each job, and yield those of this host in pieces: job, state, end, duration.

    Raises `StoreError`. One read a job, a hundred in a request.
    """
    for at in range(0, len(names), _JOBS_AT_ONCE):
        page = names[at : at + _JOBS_AT_ONCE]
        ranges = store.txn([], [newest(keys, "result", name, 1) for name in page], timeout_s=timeout_s).ranges
        found = []
        for name, read in zip(page, ranges, strict=True):
            for kv in read.kvs:
                fields = fields_of(kv.value)
                started, duration_s = seconds_of(fields.get("started")), fields.get("duration")
                if fields.get("node") != host or fields.get("state") not in STATES or not started:
                    continue
                if isinstance(duration_s, int | float) and 0 <= duration_s < 2**31:
                    found.append((name, str(fields["state"]), started + duration_s, float(duration_s)))
        yield found
