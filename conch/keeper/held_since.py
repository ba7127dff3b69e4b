"""Notes in the value of our key since when we hold, for those who look: nothing waits for it, or depends on it."""

import time

from conch import threads
from conch.etcd.store import StoreError
from conch.keeper.hold_spec import HoldSpec
from conch.keeper.queue import Queue
from conch.static_typing import Callable

# A shorter hold costs no write, and no hand-over shares etcd with one.
_AFTER_S = 0.2


def write_later(queue: Queue, rev: int, spec: HoldSpec, is_held: Callable[[], bool], log: Callable[..., None]) -> None:
    """Have a thread of its own add the time of now to our key with create-revision `rev`, if it is held until then.

    If etcd does not take it, that changes nothing for the hold.
    """
    try:
        threads.start_later(_AFTER_S, _write, queue, rev, spec, time.time(), is_held, log)
    except RuntimeError:
        pass  # no room for a thread


def _write(
    queue: Queue, rev: int, spec: HoldSpec, since: float, is_held: Callable[[], bool], log: Callable[..., None]
) -> None:
    if not is_held():
        return
    from conch.holder import with_held_since  # late: a keeper that need not wait does not need it
    from conch.times import rfc3339

    try:
        value = with_held_since(spec.value, rfc3339(since))
        queue.describe(rev, value, timeout_s=spec.connection.command_timeout_s)
    except (StoreError, ValueError) as error:
        if spec.verbose:
            log("debug", "since-not-written", msg=str(error))
