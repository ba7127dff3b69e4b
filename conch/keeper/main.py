"""The keeper's start and end."""

import threading
from functools import partial

from conch.core.link import Failed, Link, Note, Release
from conch.errors import EXIT_UNAVAILABLE, ConchError, end_unexpectedly, shortage
from conch.hints import TYPE_CHECKING, Any
from conch.keeper.job import Job
from conch.record import replace

if TYPE_CHECKING:
    from conch.keeper.warden import Warden


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

    def tell(event: str, text: str) -> None:
        warden.send(Note("warning", event, {"msg": text}))

    try:
        warden = Warden(link)
        threading.excepthook = partial(crash, warden)
        worker = Worker(job, open_store(job.connection, tell, members_only=True), warden)
        threading.Thread(target=worker.run, name="worker", daemon=True).start()
    except (OSError, RuntimeError, MemoryError, ConchError) as error:
        link.send(failure(error))
        return
    failed = None
    try:
        warden.run(worker.deliver)
    except NotReady as error:
        failed = failure(error)
    # The supervisor is gone, and so is all that it ran; or it was never told of a hold.
    worker.deliver(Release())
    worker.released.wait(2 * job.connection.command_timeout_s)
    if failed is not None:
        link.send(failed)


def failure(error: BaseException) -> Failed:
    """What the supervisor is told of a keeper that cannot be; a defect is raised again."""
    if isinstance(error, ConchError):
        return Failed(error.code, str(error))
    short = shortage(error)
    if not short:
        raise error
    return Failed(EXIT_UNAVAILABLE, f"cannot start the process that talks to etcd: {short}")


def crash(warden: "Warden", args: Any) -> None:
    """A thread died, of a defect or for want of something: so does the keeper, and the supervisor sees to the rest."""
    if shortage(args.exc_value):
        warden.quit(replace(failure(args.exc_value), leftovers=True))
        threading.Event().wait()
    end_unexpectedly(args.exc_value)
