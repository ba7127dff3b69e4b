"""The keeper's start and end."""

import os
import threading

from conch.core.link import Link, Release
from conch.hints import Any
from conch.keeper.job import Job


def keep_when_told(link: Link) -> None:
    """Get ready, then be the keeper for the job that the supervisor finds in its command line, if it does."""
    from conch.etcd.connect import open_store  # noqa: F401 - ready when the job comes
    from conch.keeper.warden import Warden  # noqa: F401
    from conch.keeper.worker import Worker  # noqa: F401

    data = link.wait_for_brief()
    if data:
        keep(Job.unpack(data), link)


def keep(job: Job, link: Link) -> None:
    """Be the keeper until the supervisor is gone and everything was given back. Runs in the forked process."""
    # late: the supervisor must never have loaded these
    from conch.etcd.connect import open_store
    from conch.keeper.warden import Warden
    from conch.keeper.worker import Worker

    threading.excepthook = _crash
    warden = Warden(link)
    worker = Worker(job, open_store(job.connection), warden)
    thread = threading.Thread(target=worker.run, name="worker", daemon=True)
    try:
        thread.start()
    except RuntimeError as error:
        if not say_if_no_thread(error):
            raise
        return
    warden.run(worker.deliver)
    # The supervisor is gone, and so is all that it ran.
    worker.deliver(Release())
    worker.released.wait(2 * job.connection.command_timeout_s)


def _crash(args: Any) -> None:
    """A thread died of a defect: so does the keeper, and the supervisor ends what runs under the hold."""
    if not say_if_no_thread(args.exc_value):
        threading.__excepthook__(args)
    os._exit(1)


def say_if_no_thread(error: BaseException | None) -> bool:
    """The system's limit of processes is no defect: one line on stderr says it."""
    if not isinstance(error, RuntimeError) or "start new thread" not in str(error):
        return False
    os.write(2, b"conch: cannot start a thread: the limit of processes is reached\n")
    return True
