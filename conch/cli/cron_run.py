"""`conch cron run`: have a job run now."""

from conch.cli.connection_options import COMMON
from conch.cli.cron_client import CronClient
from conch.cli.output import put_line
from conch.cli.spec import NAME_ARGUMENT, Command, Line


def run(line: Line) -> int:
    """Request a run and print the tick that a daemon claimed for it."""
    from conch.cli.cron_request import request_run
    from conch.times import rfc3339

    with CronClient(line) as client:
        tick = request_run(client, line.values["name"])
    put_line(rfc3339(tick))
    return 0


RUN = Command(
    "cron run",
    "Run a job now, even if it is paused, and print the tick that the run gets. Exit 1 if no conchd takes it.",
    COMMON,
    run,
    NAME_ARGUMENT,
)
