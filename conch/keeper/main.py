"""The keeper's start and end."""

import errno
import os
import threading

from conch.core.link import Link, Release
from conch.hints import Any
from conch.keeper.job import Job

_SHORTAGES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})


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
    from conch.keeper.warden import NotReady, Warden
    from conch.keeper.worker import Worker

    threading.excepthook = _crash
    try:
        warden = Warden(link)
        worker = Worker(job, open_store(job.connection, members_only=True), warden)
        threading.Thread(target=worker.run, name="worker", daemon=True).start()
    except (OSError, RuntimeError) as error:
        if not say_if_short(error):
            raise
        return
    try:
        warden.run(worker.deliver)
    except NotReady as error:
        say_if_short(error)
    # The supervisor is gone, and so is all that it ran; or it was never told of a hold.
    worker.deliver(Release())
    worker.released.wait(2 * job.connection.command_timeout_s)


def _crash(args: Any) -> None:
    """A thread died of a defect: so does the keeper, and the supervisor ends what runs under the hold."""
    if not say_if_short(args.exc_value):
        threading.__excepthook__(args)
    os._exit(1)


def say_if_short(error: BaseException | None) -> bool:
    """That the system has no more to give is no defect: one line on stderr says it."""
    if isinstance(error, RuntimeError) and "start new thread" in str(error):
        text = "cannot start a thread: the limit of processes is reached"
    elif isinstance(error, OSError) and error.errno in _SHORTAGES:
        text = f"cannot start the process that talks to etcd: {error.strerror}"
    else:
        return False
    os.write(2, f"conch: {text}\n".encode())
    return True
