"""Warns of jobs that no live daemon can run."""

from conch.cli.cron_client import CronClient
from conch.static_typing import TYPE_CHECKING, Sequence

if TYPE_CHECKING:
    from conch.cron.job import Job


def warn_nowhere(client: CronClient, jobs: "Sequence[Job]") -> None:
    """Warn if there are jobs with ticks to come and no conchd is alive."""
    import time

    from conch.cron.views import everything, live_nodes

    if all(job.paused and job.paused_until is None for job in jobs):
        return
    nodes = client.store.range(everything(client.keys.node()), timeout_s=client.timeout_s).kvs
    now = int(time.time())
    if not live_nodes(client.keys, nodes) and any(job.next_tick(now) is not None for job in jobs):
        which = jobs[0].name if len(jobs) == 1 else None
        client.log("warning", "no-conchd", job=which, msg="no conchd is alive: nothing will run")
