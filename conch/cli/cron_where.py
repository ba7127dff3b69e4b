"""Warns of jobs that no live conchd may run, for the commands that write or list jobs."""

from conch.cli.cron_client import CronClient
from conch.static_typing import TYPE_CHECKING, Iterable, Sequence

if TYPE_CHECKING:
    from conch.cron.job import Job
    from conch.cron.placement import Host


def live_hosts(client: CronClient) -> "list[Host]":
    """Return the live hosts, by name."""
    from conch.cron.placement import hosts_of
    from conch.cron.views import everything

    reads = [everything(client.keys.node()), everything(client.keys.cron("cordon"))]
    nodes, cordons = client.store.txn([], reads, timeout_s=client.timeout_s).ranges
    return hosts_of(client.keys, nodes.kvs, cordons.kvs)


def warn_nowhere(client: CronClient, jobs: "Sequence[Job]") -> None:
    """Warn of jobs with ticks to come that no live conchd may run, and of one for which some hosts are too old."""
    import time

    from conch.cron.placement import too_old

    jobs = [job for job in jobs if job.next_tick(int(time.time())) is not None]
    if not jobs:
        return
    hosts = live_hosts(client)
    nowhere = Nowhere(client, hosts)
    nowhere.add(jobs)
    nowhere.warn()
    if len(jobs) == 1 and not nowhere.found and (old := too_old(jobs[0], hosts)):
        client.log("warning", "too-old", job=jobs[0].name, msg=f"{old}: the others run it")


class Nowhere:
    """Gathers the jobs of a list that no live conchd may run: one warning for all that share the reason."""

    def __init__(self, client: CronClient, hosts: "list[Host]") -> None:
        self._client = client
        self._hosts = hosts
        self._jobs: dict[str, list[str]] = {}
        self._known: dict[object, str] = {}

    def add(self, jobs: "Iterable[Job]") -> None:
        """Note which of these jobs have no host."""
        from conch.cron.placement import why_nowhere

        for job in jobs:
            wish = (job.on, job.needs)
            if wish not in self._known:
                self._known[wish] = why_nowhere(job, self._hosts)
            if self._known[wish]:
                self._jobs.setdefault(self._known[wish], []).append(job.name)

    @property
    def found(self) -> bool:
        """Whether there are such jobs."""
        return bool(self._jobs)

    def warn(self) -> None:
        """Warn of them."""
        from conch.cron.placement import named

        for why, names in self._jobs.items():
            which = {"job": names[0]} if len(names) == 1 else {"jobs": named(names)}
            self._client.log("warning", "nowhere", **which, msg=why)
