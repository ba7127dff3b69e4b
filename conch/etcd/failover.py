"""What the drivers share: one endpoint after the other until one answers, a login, and what an error means."""

import math
import os
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

from conch.etcd.auth import Login
from conch.etcd.certificates import unusable_files
from conch.etcd.connection import Connection
from conch.etcd.dial import accepts
from conch.etcd.endpoints import Endpoint
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
    LEARNER,
    LEASE_EXISTS,
    LEASE_GONE,
    NOT_FOUND,
    OUT_OF_RANGE,
    OWN,
    PERMISSION_DENIED,
    RESOURCE_EXHAUSTED,
    UNAUTHENTICATED,
    UNAVAILABLE,
    UNKNOWN,
    USER_EMPTY,
)
from conch.etcd.error_text import NO_ANSWER, reason
from conch.etcd.store import (
    Full,
    Header,
    Lease,
    LeaseExists,
    LeaseGone,
    Range,
    RangeResult,
    Refused,
    Rejected,
    Renewal,
    StoreError,
    Unfit,
    Unreachable,
)
from conch.etcd.timeline import Timeline
from conch.etcd.watch import DriverWatch, Stream
from conch.record import Record, replace
from conch.static_typing import Any, Generic, Protocol, TypeVar

# One try on one endpoint; it doubles from round to round, for an etcd that is slow rather than gone.
_TRY_S = 2.0
# What an endpoint gets at least, when many are to be asked in little time.
_SHARE_LEAST_S = 0.3
# What a slow one gets at most of it while others are still to be asked.
_PATIENT_SHARE = 0.7
# For a read that tells whether a watch may go on.
_CONFIRM_S = 5.0
# Short to the end: sleeping through the end of a fault may cost a hold, and there is one requester a lease.
_PAUSE_S, _PAUSE_MOST_S = 0.05, 0.25
# To find out whether anybody takes connections at an endpoint that did not answer.
_ACCEPT_S = 0.5

_TRY_ELSEWHERE = frozenset({UNAVAILABLE, DEADLINE_EXCEEDED, CANCELLED, UNKNOWN, INTERNAL, UNAUTHENTICATED})
# With these codes etcd says that a request is refused before anything of it is made; the one exception is that the
# request which crosses the quota is made first.
_FIRM = frozenset(
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
    """What etcd or the way to it said instead of an answer: gRPC's code, None if it never came to that; and words."""

    code: int | None
    details: str


class Client(Protocol):
    """An open connection to one endpoint."""

    conch_endpoint: Endpoint

    def close(self) -> None: ...


_Client = TypeVar("_Client", bound=Client)
_Answer = TypeVar("_Answer")
_Self = TypeVar("_Self", bound="FailOver[Any]")


class FailOver(ABC, Generic[_Client]):
    """One connection serves all calls; it moves to another endpoint when one fails."""

    # what a failed call raises; `_trouble` reads it
    failures: tuple[type[Exception], ...]

    def __init__(self, connection: Connection, timeline: Timeline | None = None) -> None:
        self._connection = connection
        self.timeline = timeline or Timeline()
        # a fleet spreads over the members
        self._endpoints = sorted(connection.endpoints, key=lambda _: os.urandom(4))
        self._lock = threading.Lock()
        self._client: _Client | None = None
        self._login = Login(connection)
        self._try_s = _TRY_S
        # what a try gets at least: all, after a call that nobody answered in time, for an etcd that is slow all over
        self._patience_s = 0.0

    @abstractmethod
    def _open(self, endpoint: Endpoint) -> _Client:
        """A connection to this endpoint; may be made at its first use."""

    @abstractmethod
    def _trouble(self, raised: Exception) -> CallError:
        """What a failure means."""

    @abstractmethod
    def _authenticate(self, client: _Client, user: str, password: str, timeout_s: float) -> str:
        """A token of etcd's authentication."""

    @abstractmethod
    def range(self, what: Range, *, timeout_s: float) -> RangeResult:
        """See `Store`."""

    def confirm(self, what: Range) -> None:
        """Have the timeline judge etcd's revision by a small linearizable read. May raise `StoreError`."""
        self.range(replace(what, limit=1, keys_only=True), timeout_s=_CONFIRM_S)

    def connected(self) -> _Client:
        """The open client, or a new one to the next endpoint of the list."""
        with self._lock:
            if self._client is None:
                # rotated first: one that cannot be opened is not the next to be tried
                self._endpoints.append(self._endpoints.pop(0))
                self._client = self._open(self._endpoints[-1])
            return self._client

    def drop_connection(self, client: _Client) -> None:
        """Close a client that failed; the next call opens one to another endpoint."""
        with self._lock:
            if client is self._client:
                self._client = None
        client.close()

    def each_member(self: _Self) -> list[_Self]:
        """See `Store`; the one that was asked last comes last. A try has all the time of its call."""
        members = []
        with self._lock:
            endpoints = list(self._endpoints)
        for endpoint in endpoints:
            member = type(self)(replace(self._connection, endpoints=(endpoint,)), self.timeline)
            member._login = self._login
            member._try_s = math.inf
            members.append(member)
        return members

    def renew(self: _Self, probe: Range, *, timeout_s: float) -> list[Renewal]:
        """See `Store`."""
        renewed = []
        if any(endpoint.tls for endpoint in self._endpoints):
            renewed.append(Renewal("certificates", self._renew_connection(probe, timeout_s)))
        path = self._connection.password_file
        if path is not None and (os.path.isfile(path) or not os.path.exists(path)):  # a pipe has said all it had to say
            renewed.append(Renewal("password", self._renew_password(path, timeout_s)))
        return renewed

    def _renew_connection(self: _Self, probe: Range, timeout_s: float) -> str:
        """Go over to a new connection, made with the files as they are now; or say why the old one stays."""
        problem = unusable_files(self._connection)
        members = [] if problem else self.each_member()
        for member in reversed(members):  # the one in use is asked first
            try:
                member.range(replace(probe, limit=1, keys_only=True), timeout_s=timeout_s / len(members))
                with member._lock:
                    new, member._client = member._client, None
                if new is not None:
                    self._go_over(new, timeout_s)
                    return ""
            except StoreError as error:
                problem = problem or str(error)
            finally:
                member.close()
        return problem or "the new connection was lost"

    def _go_over(self, new: _Client, timeout_s: float) -> None:
        """Use this connection from now on; the old one ends when all calls on it must be done."""
        with self._lock:
            old, self._client = self._client, new
            others = [endpoint for endpoint in self._endpoints if endpoint != new.conch_endpoint]
            self._endpoints = [*others, new.conch_endpoint]
        if old is None:
            return
        closing = threading.Timer(timeout_s, old.close)
        closing.daemon = True
        try:
            closing.start()
        except RuntimeError:  # no more threads
            old.close()

    def _renew_password(self, path: str, timeout_s: float) -> str:
        try:
            client = self.connected()
        except self.failures as raised:
            return self._trouble(raised).details
        return self._login.renew(
            path, timeout_s, lambda u, p, left_s: self._authenticate(client, u, p, left_s), self._trouble
        )

    def _new_watch(
        self,
        what: Sequence[tuple[Range, int]],
        open_stream: Callable[[Sequence[tuple[Range, int]]], Stream],
        failures: tuple[type[Exception], ...],
        report: Callable[[str], None],
        on_unavailable: Callable[[], None],
    ) -> DriverWatch:
        return DriverWatch(
            what,
            open_stream,
            drop_connection=self.drop_connection,
            invalidate_token=self._login.invalidate_token,
            failures=failures,
            report=report,
            on_unavailable=on_unavailable,
            timeline=self.timeline,
            confirm=self.confirm,
        )

    def moments(self, revision: int) -> tuple[float | None, float | None]:
        """See `Store`."""
        return self.timeline.moments(revision)

    def close(self) -> None:
        """Close the connection."""
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            client.close()

    def _call(
        self,
        what: str,
        timeout_s: float,
        call: Callable[[_Client, str | None, float], _Answer],
        verdict: Callable[[CallError, bool], _Answer | None] = lambda _trouble, _again: None,
    ) -> _Answer:
        """Call on one endpoint after the other until one answers; in rounds, with back-off, until the timeout.

        `verdict(error, again)` may turn an error into an answer; `again` says that the call was tried before.
        """
        until = time.monotonic() + timeout_s
        try_s, pause_s, tries = self._try_s, _PAUSE_S, 0
        failures: dict[Endpoint, str] = {}
        answered = False
        unfit: set[Endpoint] = set()
        mixed = False  # not all that failed is unfit
        unclear = False  # a try may have been served all the same, or may yet be
        while True:
            for still in range(len(self._endpoints), 0, -1):
                left_s = until - time.monotonic()
                if left_s <= 0:
                    break
                # those that are still to be asked in this round get their share of the time
                most_s = left_s if still == 1 else left_s * _PATIENT_SHARE
                share_s = min(try_s, max(_SHARE_LEAST_S, left_s / still))
                limit_s = min(left_s, max(min(self._patience_s, most_s), share_s))
                ends_at = time.monotonic() + limit_s
                client, sent_at = None, None
                try:
                    client = self.connected()
                    token = self._token(client, limit_s)
                    before, sent_at = self.timeline.newest, time.clock_gettime(time.CLOCK_BOOTTIME)
                    answer = call(client, token, max(0.001, ends_at - time.monotonic()))
                    self._patience_s = 0.0
                    return self.timeline.note_answer(answer, before, sent_at)
                except self.failures as raised:
                    trouble = self._trouble(raised)
                    if trouble.code is not None and client is not None:
                        settled = verdict(trouble, tries > 0)
                        if settled is not None:
                            return settled
                    tries += 1
                    unclear = unclear or (sent_at is not None and not _refused(trouble))
                    endpoint = client.conch_endpoint if client is not None else self._endpoints[-1]
                    try:
                        failures[endpoint] = self._judge(what, trouble, str(endpoint))
                    except StoreError as error:
                        error.unclear = unclear
                        raise
                    # a learner serves nothing, however long one waits for it
                    answered = answered or (OWN in trouble.details and not LEARNER.is_in(trouble.details))
                    if isinstance(raised, Unfit):
                        unfit.add(endpoint)
                    else:
                        mixed = True
                    if client is not None:
                        self.drop_connection(client)
            left_s = until - time.monotonic()
            if len(unfit) == len(self._endpoints) and not mixed:
                refused = Refused(f"cannot {what}: {_tried(failures)}")
                refused.unclear = unclear
                raise refused
            if left_s <= 0:
                gone = self._unreachable(what, timeout_s, failures, answered=answered)
                gone.unclear = unclear
                raise gone
            time.sleep(min(left_s, pause_s * (0.5 + os.urandom(1)[0] / 512)))
            pause_s, try_s = min(2 * pause_s, _PAUSE_MOST_S), 2 * try_s

    def _unreachable(
        self, what: str, timeout_s: float, failures: dict[Endpoint, str], *, answered: bool
    ) -> Unreachable:
        silent = [endpoint for endpoint, why in failures.items() if why == NO_ANSWER]
        if silent and timeout_s >= _TRY_S:
            self._patience_s = math.inf
        return Unreachable(
            f"cannot {what}: no endpoint answered within {timeout_s:.3g} s ({_tried(failures)})",
            lambda: answered or any(accepts(endpoint, _ACCEPT_S) for endpoint in silent),
        )

    def _token(self, client: _Client, limit_s: float) -> str | None:
        return self._login.token(limit_s, lambda u, p, left_s: self._authenticate(client, u, p, left_s), self._trouble)

    def _judge(self, what: str, trouble: CallError, endpoint: str) -> str:
        """Why another endpoint is worth a try; raises what is an answer."""
        code, details = trouble.code, trouble.details.partition("\n")[0]
        if code is None or self._login.handle_auth_error(code, details, endpoint):
            return reason(code, trouble.details)
        if any(error.matches(code, details) for error in BAD_LOGIN):
            raise Refused(f"cannot {what}: etcd refuses the user or password")
        if code == PERMISSION_DENIED or USER_EMPTY.matches(code, details):
            raise Refused(f"cannot {what}: etcd refuses it ({details})")
        if LEASE_GONE.matches(code, details):
            raise LeaseGone(f"cannot {what}: the lease is gone")
        if FULL.matches(code, details):
            raise Full(f"cannot {what}: etcd answered: {details}")
        if code in _TRY_ELSEWHERE or any(error.matches(code, details) for error in ELSEWHERE):
            return reason(code, trouble.details)
        raise Rejected(f"cannot {what}: etcd answered: {details or f'code {code}'}")


def _refused(trouble: CallError) -> bool:
    """Whether etcd itself says that nothing was made, or (when it is full) that nothing will be made later."""
    return trouble.code in _FIRM and trouble.details.startswith(OWN)


def _tried(failures: dict[Endpoint, str]) -> str:
    return "; ".join(f"{endpoint}: {why}" for endpoint, why in failures.items()) or "no time was left"


def granted(trouble: CallError, again: bool, lease: int, ttl_s: int) -> Lease | None:
    """A grant that is refused because its lease is there: an earlier try was made, or it is another's."""
    if not LEASE_EXISTS.matches(trouble.code, trouble.details):
        return None
    if again:
        return Lease(Header(0, 0, 0), ttl_s)
    raise LeaseExists(f"cannot get lease {lease:x}: it exists already")
