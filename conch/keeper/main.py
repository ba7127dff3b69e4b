"""The keeper from start to end."""

from conch import threads
from conch.core.cgroup import remove_left
from conch.core.channel import Channel
from conch.core.keeper_process import collect_garbage
from conch.core.messages import Failed, Note, Release
from conch.errors import EXIT_UNAVAILABLE, ConchError, end_unexpectedly, shortage
from conch.keeper.hold_spec import HoldSpec
from conch.record import replace
from conch.static_typing import TYPE_CHECKING

if TYPE_CHECKING:
    from conch.keeper.watchdog import Watchdog


def keep_when_told(channel: Channel) -> None:
    """Load what a keeper needs, then run it for the hold that the supervisor finds in its command line, if any."""
    from conch.etcd.open import open_store  # noqa: F401 - loaded by the time the spec arrives
    from conch.keeper.acquirer import Acquirer  # noqa: F401
    from conch.keeper.watchdog import Watchdog  # noqa: F401

    data = channel.wait_for_spec()
    if data:
        keep(HoldSpec.unpack(data), channel)


def keep(spec: HoldSpec, channel: Channel) -> None:
    """Run the keeper until the supervisor has ended and everything is released. Called in the forked process."""
    # late: the supervisor must never have loaded these
    from conch.etcd.open import open_store
    from conch.keeper.acquirer import Acquirer
    from conch.keeper.watchdog import NotReady, Watchdog

    collect_garbage()

    def log(event: str, text: str) -> None:
        watchdog.send(Note("warning", event, {"msg": text}))

    try:
        watchdog = Watchdog(channel)
        threads.guard(lambda error: crash(watchdog, error))
        acquirer = Acquirer(spec, open_store(spec.connection, log, members_only=True), watchdog)
        threads.start(acquirer.run)
    except (OSError, RuntimeError, MemoryError, ConchError) as error:
        channel.send(failure(error))
        return
    not_ready = None
    try:
        watchdog.run(acquirer.deliver)
    except NotReady as error:
        not_ready = error
    # The supervisor has ended and so has all that it ran; or it was never told of a hold.
    orderly = acquirer.released.is_set()
    acquirer.deliver(Release())
    acquirer.released.wait(2 * spec.connection.command_timeout_s)
    if not orderly:
        remove_left(spec.cgroups)  # as that of a command that waited for its hold, and has died with the supervisor
    if not_ready is not None:
        channel.send(failure(not_ready))


def failure(error: BaseException) -> Failed:
    """Return what to tell the supervisor of a keeper that cannot start or go on; raise a defect again."""
    if isinstance(error, ConchError):
        return Failed(error.code, str(error))
    short = shortage(error)
    if not short:
        raise error
    return Failed(EXIT_UNAVAILABLE, f"cannot start the process that talks to etcd: {short}")


def crash(watchdog: "Watchdog", error: BaseException) -> None:
    """End the keeper because a thread died, of a defect or of a shortage; the supervisor handles the rest."""
    if shortage(error):
        watchdog.quit(replace(failure(error), leftovers=True))
        threads.Event().wait()  # until the watchdog's thread has ended this process
    end_unexpectedly(error)
