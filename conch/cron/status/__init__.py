"""conchd's status over HTTP: what is scheduled, held and running, whether it could claim, and its metrics.

Read-only. It has a thread of its own, which alone loads the web server; whatever goes wrong there costs the status.
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

Tell = Callable[..., None]


def own_names(host: str) -> list[str]:
    """The names of this host: the system's and `host`, each in full and short."""
    names = [os.uname().nodename, host]
    return [*names, *(name.partition(".")[0] for name in names)]


def serve(
    address: tuple[str, int],
    names: Sequence[str],
    scheduler: "Scheduler",
    ledger: RunLog,
    store: Store,
    connection: Connection,
    keys: Keys,
    tell: Tell,
) -> None:
    """Serve the status to clients that ask for this host by an address, `localhost` or one of the names.

    An address that cannot be had is logged, and costs nothing else. Never waits.
    """

    def work() -> None:
        try:
            from conch.cron.status import server
            from conch.cron.status.views import Status

            server.run(address, names, Status(scheduler, ledger, store, connection, keys, tell), tell)
        except Exception as error:  # the top of a thread, and the keeper must not end with it
            failed(error)

    def failed(error: Exception) -> None:
        tell("error", "status-failed", msg=f"cannot serve on {address[0]}:{address[1]}: {error}")

    try:
        threading.Thread(target=work, name="status", daemon=True).start()
    except RuntimeError as error:  # no more threads
        failed(error)
