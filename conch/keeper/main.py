"""The keeper's start and end."""

import threading
from functools import partial

from conch.core.channel import Channel
from conch.core.messages import Failed, Note, Release
from conch.errors import EXIT_UNAVAILABLE, ConchError, end_unexpectedly, shortage
from conch.keeper.hold_spec import Job
from conch.record import replace
from conch.static_typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from conch.keeper.watchdog import Watchdog


def keep_when_told(channel: Channel) -> None:
    """Get ready, then be the keeper for the job that the supervisor finds in its command line, if it does."""
    from conch.etcd.open import open_store  # noqa: F401 - ready when the job comes
    from conch.keeper.acquirer import Acquirer  # noqa: F401
    from conch.keeper.watchdog import Watchdog  # noqa: F401

    data = channel.wait_for_spec()
    if data:
        keep(Job.unpack(data), channel)


def keep(job: Job, channel: Channel) -> None:
    """Be the keeper until the supervisor is gone and everything was given back. Runs in the forked process."""
    # late: the supervisor must never have loaded these
    from conch.etcd.open import open_store
    from conch.keeper.acquirer import Acquirer
    from conch.keeper.watchdog import NotReady, Watchdog

    def tell(event: str, text: str) -> None:
        watchdog.send(Note("warning", event, {"msg": text}))

    try:
        watchdog = Watchdog(channel)
        threading.excepthook = partial(crash, watchdog)
        acquirer = Acquirer(job, open_store(job.connection, tell, members_only=True), watchdog)
        threading.Thread(target=acquirer.run, name="worker", daemon=True).start()
    except (OSError, RuntimeError, MemoryError, ConchError) as error:
        channel.send(failure(error))
        return
    failed = None
    try:
        watchdog.run(acquirer.deliver)
    except NotReady as error:
        failed = failure(error)
    # The supervisor is gone, and so is all that it ran; or it was never told of a hold.
    acquirer.deliver(Release())
    acquirer.released.wait(2 * job.connection.command_timeout_s)
    if failed is not None:
        channel.send(failed)


def failure(error: BaseException) -> Failed:
    """What the supervisor is told of a keeper that cannot be; a defect is raised again."""
    if isinstance(error, ConchError):
        return Failed(error.code, str(error))
    short = shortage(error)
    if not short:
        raise error
    return Failed(EXIT_UNAVAILABLE, f"cannot start the process that talks to etcd: {short}")


def crash(watchdog: "Watchdog", args: Any) -> None:
    """A thread died, of a defect or for want of something: so does the keeper, and the supervisor sees to the rest."""
    if shortage(args.exc_value):
        watchdog.quit(replace(failure(args.exc_value), leftovers=True))
        threading.Event().wait()
    end_unexpectedly(args.exc_value)
