"""Serves conchd's status over HTTP: what is scheduled, held and running, whether it could claim, and its metrics.

Read-only. It runs in a thread of its own, and only that thread loads the web server, so a failure there costs no more
than the status.
"""

import os
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from conch.cron.run_log import RunLog
from conch.etcd.connection import Connection
from conch.etcd.store import Store
from conch.keys import Keys

if TYPE_CHECKING:
    from conch.cron.scheduler import Scheduler

Log = Callable[..., None]


def own_names(host: str) -> list[str]:
    """Return the names of this host: the system's and `host`, each in full and up to its first dot."""
    names = [os.uname().nodename, host]
    return [*names, *(name.partition(".")[0] for name in names)]


def serve(
    address: tuple[str, int],
    names: Sequence[str],
    scheduler: "Scheduler",
    run_log: RunLog,
    store: Store,
    connection: Connection,
    keys: Keys,
    log: Log,
) -> None:
    """Start serving the status to clients that address this host by IP address, `localhost` or one of the names.

    Never waits. If the address cannot be bound, that is logged and conchd runs on without the status.
    """

    def run() -> None:
        try:
            from conch.cron.status import server
            from conch.cron.status.views import Status

            server.run(address, names, Status(scheduler, run_log, store, connection, keys, log), log)
        except Exception as error:  # the top of a thread: whatever it is, the keeper must go on
            failed(error)

    def failed(error: Exception) -> None:
        log("error", "status-failed", msg=f"cannot serve on {address[0]}:{address[1]}: {error}")

    try:
        threading.Thread(target=run, name="status", daemon=True).start()
    except RuntimeError as error:  # no more threads
        failed(error)
