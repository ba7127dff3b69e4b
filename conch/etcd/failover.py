"""The base of the drivers: asks one endpoint after the other until one answers, within the caller's deadline."""

import os
import time
from abc import ABC, abstractmethod

from conch.etcd.answers import BadAnswer
from conch.etcd.auth import Login
from conch.etcd.backoff import Backoff
from conch.etcd.call_errors import CallError, classify
from conch.etcd.certificates import unusable_files
from conch.etcd.connection import Connection
from conch.etcd.dial import accepts
from conch.etcd.endpoints import Endpoint
from conch.etcd.error_codes import LEARNER, OWN
from conch.etcd.error_text import NO_ANSWER, describe
from conch.etcd.store import Put, Range, RangeResult, Refused, Renewal, StoreError, Txn, Unfit, Unreachable
from conch.etcd.timeline import Timeline
from conch.etcd.watch import DriverWatch, Stream
from conch.record import replace
from conch.static_typing import Any, Callable, Generic, Protocol, Sequence, TypeVar
from conch.threads import Lock, start_later

# One try on one endpoint; it doubles from round to round, for an etcd that is slow rather than gone.
_TRY_S = 2.0
# The least share of an endpoint, when many are to be asked in little time.
_LEAST_SHARE_S = 0.3
# The largest share of a slow endpoint while others are still to be asked.
_SLOW_SHARE = 0.7
# The timeout of a read that shows whether a watch may go on.
_CONFIRM_S = 5.0
# Never long: sleeping through the end of a fault may cost a hold, and there is one requester per lease.
_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 0.25
# The timeout for finding out whether an endpoint that did not answer accepts connections.
_ACCEPT_S = 0.5


class Client(Protocol):
    """An open connection to one endpoint."""

    conch_endpoint: Endpoint

    def close(self) -> None: ...


_Client = TypeVar("_Client", bound=Client)
_Answer = TypeVar("_Answer")
_Self = TypeVar("_Self", bound="FailOver[Any]")


class FailOver(ABC, Generic[_Client]):
    """One connection serves all calls; it moves to another endpoint when one fails."""

    # the exceptions of a failed call; `_call_error` reads them
    failures: tuple[type[Exception], ...]

    def __init__(self, connection: Connection, timeline: Timeline | None = None) -> None:
        self._connection = connection
        self.timeline = timeline or Timeline()
        # in random order, so that a fleet spreads over the members
        self._endpoints = sorted(connection.endpoints, key=lambda _: os.urandom(4))
        self._lock = Lock()
        self._client: _Client | None = None
        self._login = Login(connection)
        self._try_s = _TRY_S
        # the least time for a try: all of it after a call that nobody answered in time, as every member may be slow
        self._slow_s = 0.0

    @abstractmethod
    def _open(self, endpoint: Endpoint) -> _Client:
        """Open a connection to this endpoint; it may really be made at its first use."""

    @abstractmethod
    def _call_error(self, raised: Exception) -> CallError:
        """Read the exception of a failed call."""

    @abstractmethod
    def _authenticate(self, client: _Client, user: str, password: str, timeout_s: float) -> str:
        """Log in and return a token of etcd's authentication."""

    @abstractmethod
    def range(self, what: Range, *, timeout_s: float) -> RangeResult:
        """See `Store`."""

    @staticmethod
    def never_taken(parts: Sequence[Txn]) -> list[Put]:
        """Return a branch, never taken, that names the keys written by transactions made as one.

        3.4.23 checks our role, and whether its quota is used up, by the branches of the outer transaction alone.
        """
        return [Put(key, b"") for part in parts for key in part.written()]

    def confirm(self, what: Range) -> None:
        """Have the timeline check etcd's revision, by a small linearizable read. May raise `StoreError`."""
        self.range(replace(what, limit=1, keys_only=True), timeout_s=_CONFIRM_S)

    def connected(self) -> _Client:
        """Return the open client, or a new one to the next endpoint of the list."""
        with self._lock:
            if self._client is None:
                # rotated before it is opened: an endpoint that cannot be opened must not be the next to be tried
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
        """See `Store`; the endpoint in use comes last. A try has all the time of its call."""
        members = []
        with self._lock:
            endpoints = list(self._endpoints)
        for endpoint in endpoints:
            member = type(self)(replace(self._connection, endpoints=(endpoint,)), self.timeline)
            member._login = self._login
            member._try_s = float("inf")
            members.append(member)
        return members

    def renew(self: _Self, probe: Range, *, timeout_s: float) -> list[Renewal]:
        """See `Store`."""
        renewed = []
        if any(endpoint.tls for endpoint in self._endpoints):
            renewed.append(Renewal("certificates", self._renew_connection(probe, timeout_s)))
        path = self._connection.password_file
        if path is not None and (os.path.isfile(path) or not os.path.exists(path)):  # a pipe cannot be read again
            renewed.append(Renewal("password", self._renew_password(path, timeout_s)))
        return renewed

    def _renew_connection(self: _Self, probe: Range, timeout_s: float) -> str:
        """Replace the connection by one made with the files as they are now; or say why the old one stays."""
        problem = unusable_files(self._connection)
        members = [] if problem else self.each_member()
        for member in reversed(members):  # the one in use is asked first
            try:
                member.range(replace(probe, limit=1, keys_only=True), timeout_s=timeout_s / len(members))
                with member._lock:
                    new, member._client = member._client, None
                if new is not None:
                    self._replace_client(new, timeout_s)
                    return ""
            except StoreError as error:
                problem = problem or str(error)
            finally:
                member.close()
        return problem or "the new connection was lost"

    def _replace_client(self, new: _Client, timeout_s: float) -> None:
        """Replace the connection; the old one is closed when all calls on it must be done."""
        with self._lock:
            old, self._client = self._client, new
            others = [endpoint for endpoint in self._endpoints if endpoint != new.conch_endpoint]
            self._endpoints = [*others, new.conch_endpoint]
        if old is None:
            return
        try:
            start_later(timeout_s, old.close)
        except RuntimeError:  # no more threads
            old.close()

    def _renew_password(self, path: str, timeout_s: float) -> str:
        from functools import partial  # late: it is slow to import

        until = time.monotonic() + timeout_s
        while True:
            try:
                client = self.connected()
            except self.failures as raised:
                return self._call_error(raised).details
            problem = self._login.renew(
                path,
                max(0.001, until - time.monotonic()),
                partial(self._authenticate, client),
                self._call_error,
            )
            # a call whose token has just become too old closes the connection, also under this login
            if not problem or client is self._client or time.monotonic() > until:
                return problem

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
        settle: Callable[[CallError, bool], _Answer | None] = lambda _error, _tried_before: None,
    ) -> _Answer:
        """Call on one endpoint after the other until one answers; in rounds, with back-off, until the timeout.

        `settle(error, tried_before)` may turn an error into an answer.
        """
        tries = _Tries(what, timeout_s)
        backoff, try_s = Backoff(_PAUSE_S, _LONGEST_PAUSE_S, jitter=True), self._try_s
        while True:
            for unasked in range(len(self._endpoints), 0, -1):
                left_s = tries.left_s()
                if left_s <= 0:
                    break
                limit_s = self._limit_s(left_s, unasked, try_s)
                ends_at = time.monotonic() + limit_s
                client, sent_at = None, None
                try:
                    client = self.connected()
                    token = self._token(client, limit_s)
                    before, sent_at = self.timeline.newest, time.clock_gettime(time.CLOCK_BOOTTIME)
                    answer = call(client, token, max(0.001, ends_at - time.monotonic()))
                    self._slow_s = 0.0
                    return self.timeline.note_answer(answer, before, sent_at)
                except self.failures as raised:
                    error = self._call_error(raised)
                    if error.code is not None and client is not None:
                        settled = settle(error, tries.count > 0)
                        if settled is not None:
                            return settled
                    endpoint = client.conch_endpoint if client is not None else self._endpoints[-1]
                    tries.note(endpoint, raised, error, sent=sent_at is not None)
                    try:
                        tries.explain(endpoint, self._classify(what, error, str(endpoint)))
                    except StoreError as refusal:
                        refusal.unclear = tries.unclear
                        raise
                    if client is not None:
                        self.drop_connection(client)
            self._raise_if_over(tries)
            time.sleep(min(max(0.0, tries.left_s()), backoff.next_s()))
            try_s *= 2

    def _limit_s(self, left_s: float, unasked: int, try_s: float) -> float:
        """Return the time for the next try, while `unasked` endpoints of this round are still to be asked."""
        # all of them get their share of the time that is left
        share_s = min(try_s, max(_LEAST_SHARE_S, left_s / unasked))
        most_s = left_s if unasked == 1 else left_s * _SLOW_SHARE
        return min(left_s, max(min(self._slow_s, most_s), share_s))

    def _raise_if_over(self, tries: "_Tries") -> None:
        """Raise the error of a call that no endpoint can serve, or whose time is up."""
        error: StoreError
        if tries.all_unfit(len(self._endpoints)):
            error = Refused(f"cannot {tries.what}: {tries.reasons()}")
        elif tries.left_s() <= 0:
            if tries.silent() and tries.timeout_s >= _TRY_S:
                self._slow_s = float("inf")
            error = tries.unreachable()
        else:
            return
        error.unclear = tries.unclear
        raise error

    def _token(self, client: _Client, limit_s: float) -> str | None:
        return self._login.token(
            limit_s, lambda u, p, left_s: self._authenticate(client, u, p, left_s), self._call_error
        )

    def _classify(self, what: str, error: CallError, endpoint: str) -> str:
        """Return why another endpoint, or another login, is worth a try; raise the error that is an answer."""
        first_line = error.details.partition("\n")[0]
        if error.code is not None and self._login.handle_auth_error(error.code, first_line, endpoint):
            return describe(error.code, error.details)
        return classify(what, error)


class _Tries:
    """The tries of one call: how each endpoint failed, and whether a write may have been made."""

    def __init__(self, what: str, timeout_s: float) -> None:
        self.what = what
        self.timeout_s = timeout_s
        self.count = 0
        self.failures: dict[Endpoint, str] = {}  # why the tries on each endpoint failed
        self._deadline = time.monotonic() + timeout_s
        self.unclear = False  # a try may have been served, or may yet be
        self._etcd_answered = False  # etcd itself said that it cannot serve now
        self._answered: set[Endpoint] = set()  # with an error or oddly, but in time
        self._unfit: set[Endpoint] = set()
        self._others_failed = False  # for another reason than being unfit

    def left_s(self) -> float:
        return self._deadline - time.monotonic()

    def note(self, endpoint: Endpoint, raised: Exception, error: CallError, *, sent: bool) -> None:
        """Note a try that failed; `sent`: its request may have reached etcd."""
        self.count += 1
        self.unclear = self.unclear or (sent and not error.nothing_written)
        # a learner serves nothing, however long one waits for it
        self._etcd_answered = self._etcd_answered or (OWN in error.details and not LEARNER.is_in(error.details))
        if error.from_etcd or isinstance(raised, BadAnswer):
            self._answered.add(endpoint)
        if isinstance(raised, Unfit):
            self._unfit.add(endpoint)
        else:
            self._others_failed = True

    def explain(self, endpoint: Endpoint, why: str) -> None:
        """Keep why a try failed. One without an answer, which the call may have cut short, hides no earlier answer."""
        if why != NO_ANSWER or endpoint not in self._answered:
            self.failures[endpoint] = why

    def all_unfit(self, endpoints: int) -> bool:
        """Return whether none of so many endpoints will ever do."""
        return len(self._unfit) == endpoints and not self._others_failed

    def silent(self) -> list[Endpoint]:
        """Return the endpoints that answered nothing in time."""
        return [endpoint for endpoint, why in self.failures.items() if why == NO_ANSWER]

    def reasons(self) -> str:
        return "; ".join(f"{endpoint}: {why}" for endpoint, why in self.failures.items()) or "no time was left"

    def unreachable(self) -> Unreachable:
        silent, answered = self.silent(), self._etcd_answered
        return Unreachable(
            f"cannot {self.what}: no endpoint answered within {self.timeout_s:.3g} s ({self.reasons()})",
            lambda: answered or any(accepts(endpoint, _ACCEPT_S) for endpoint in silent),
        )
