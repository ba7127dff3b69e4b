"""What the error of a call means: an answer for its caller, or a reason to ask another endpoint."""

from conch.etcd.error_codes import (
    BAD_LOGIN,
    CANCELLED,
    DATA_LOSS,
    DEADLINE_EXCEEDED,
    ELSEWHERE,
    FAILED_PRECONDITION,
    FULL,
    INTERNAL,
    INVALID_ARGUMENT,
    LEASE_EXISTS,
    LEASE_GONE,
    NOT_FOUND,
    OUT_OF_RANGE,
    OWN,
    PERMISSION_DENIED,
    RESOURCE_EXHAUSTED,
    TOO_BIG,
    UNAUTHENTICATED,
    UNAVAILABLE,
    UNKNOWN,
    USER_EMPTY,
)
from conch.etcd.error_text import describe
from conch.etcd.store import Full, Header, Lease, LeaseExists, LeaseGone, Refused, Rejected, TooBig
from conch.record import Record

_TRY_ELSEWHERE = frozenset({UNAVAILABLE, DEADLINE_EXCEEDED, CANCELLED, UNKNOWN, INTERNAL, UNAUTHENTICATED})
# With these codes etcd says that it refused a request before it wrote anything. The one exception is that the request
# which crosses the quota is written first.
_NOT_WRITTEN = frozenset(
    {
        INVALID_ARGUMENT,
        NOT_FOUND,
        PERMISSION_DENIED,
        RESOURCE_EXHAUSTED,
        FAILED_PRECONDITION,
        OUT_OF_RANGE,
        DATA_LOSS,
        UNAUTHENTICATED,
    }
)


class CallError(Record):
    """The failure of a call: gRPC's code, None if the call never got that far, and the text that came with it."""

    code: int | None
    details: str

    @property
    def nothing_written(self) -> bool:
        """Whether etcd itself says that nothing was written, or (when it is full) will be written later."""
        return self.code in _NOT_WRITTEN and self.from_etcd

    @property
    def from_etcd(self) -> bool:
        """Whether etcd itself answered, and no proxy, library or system on the way."""
        return self.details.startswith(OWN)


def classify(what: str, error: CallError) -> str:
    """Return why another endpoint is worth a try; raise the `StoreError` for an error that is an answer."""
    code, details = error.code, error.details.partition("\n")[0]
    if code is None:
        return describe(code, error.details)
    if any(known.matches(code, details) for known in BAD_LOGIN):
        raise Refused(f"cannot {what}: etcd refuses the user or password")
    if code == PERMISSION_DENIED or USER_EMPTY.matches(code, details):
        raise Refused(f"cannot {what}: etcd refuses it ({details})")
    if LEASE_GONE.matches(code, details):
        raise LeaseGone(f"cannot {what}: the lease is gone")
    if FULL.matches(code, details):
        raise Full(f"cannot {what}: etcd answered: {details}")
    if any(known.matches(code, details) for known in TOO_BIG):
        raise TooBig(f"cannot {what}: etcd answered: {details}")
    if code in _TRY_ELSEWHERE or any(known.matches(code, details) for known in ELSEWHERE):
        return describe(code, error.details)
    raise Rejected(f"cannot {what}: etcd answered: {details or f'code {code}'}")


def granted_before(lease: int, ttl_s: int, error: CallError, tried_before: bool) -> Lease | None:
    """Turn "the lease exists" into a grant if an earlier try of ours may have made it; else it is another's."""
    if not LEASE_EXISTS.matches(error.code, error.details):
        return None
    if tried_before:
        return Lease(Header(0, 0, 0), ttl_s)
    raise LeaseExists(f"cannot get lease {lease:x}: it exists already")
