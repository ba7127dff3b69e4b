"""Events for an acquirer's inbox, besides the supervisor's messages; numbers tell those of earlier watches apart."""

from conch.record import Record


class KeyDeleted(Record):
    """A key that watch number `watch` is on was deleted."""

    watch: int
    key: bytes


class WatchBroken(Record):
    """Watch number `watch` may have missed a deletion and has ended: read again and watch anew."""

    watch: int


class WatchUnavailable(Record):
    """Watch number `watch` has heard nothing for some seconds, because no endpoint allows it; it goes on trying."""

    watch: int


class SessionLost(Record):
    """The lease or key of session number `session` is gone for certain."""

    session: int
    reason: str


class RenewalConfirmed(Record):
    """The session has a later deadline; sent only while the acquirer waits for one."""


WatchEvent = KeyDeleted | WatchBroken | WatchUnavailable
Event = WatchEvent | SessionLost | RenewalConfirmed
