"""Warns of jobs that no live conchd may run, for the commands that write or list jobs."""

from conch.cli.cron_client import CronClient
from conch.static_typing import TYPE_CHECKING, Iterable

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


def warn_of_place(client: CronClient, job: "Job") -> None:
    """Warn if no live conchd may run the job now, or if some of those with its tags are too old for it."""
    from conch.cron.placement import too_old, why_nowhere

    hosts = live_hosts(client)
    why = why_nowhere(job, hosts)
    if why:
        client.log("warning", "nowhere", job=job.name, msg=why)
    elif old := too_old(job, hosts):
        client.log("warning", "too-old", job=job.name, msg=f"{old}: the others run it")


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

    def warn(self) -> None:
        """Warn of them."""
        from conch.cron.placement import named

        for why, names in self._jobs.items():
            self._client.log("warning", "nowhere", jobs=named(names), msg=why)
