"""What the errors of a call say: whether a write was made, and why no endpoint served it."""

from pathlib import Path

import pytest

from conch.etcd.answers import BadAnswer
from conch.etcd.call_errors import CallError, classify
from conch.etcd.connection import Connection
from conch.etcd.endpoints import parse_endpoints
from conch.etcd.failover import FailOver, _Tries
from conch.etcd.store import Full, Range, RangeResult, Renewal, StoreError, Unreachable
from conch.static_typing import Any

NOT_MADE = [
    (3, "etcdserver: request is too large"),
    (3, "etcdserver: too many operations in txn request"),
    (3, "etcdserver: duplicate key given in txn request"),
    (3, "etcdserver: user name is empty"),
    (5, "etcdserver: requested lease not found"),
    (7, "etcdserver: permission denied"),
    (8, "etcdserver: mvcc: database space exceeded"),
    (8, "etcdserver: too many requests"),
    (9, "etcdserver: authentication is not enabled"),
    (15, "etcdserver: corrupt cluster"),
    (16, "etcdserver: invalid auth token"),
]
UNCLEAR = [
    (None, "connection reset by peer"),
    (1, "etcdserver: request cancelled"),
    (2, "etcdserver: something that it has no code for"),
    (4, "etcdserver: request timed out"),
    (4, "Deadline Exceeded"),
    (8, "grpc: received message larger than max (5 vs. 4)"),
    (13, "etcdserver: internal"),
    (14, "etcdserver: leader changed"),
    (14, "etcdserver: request timed out, possibly due to previous leader failure"),
    (14, "etcdserver: no leader"),
]
ALL = [(*one, False) for one in NOT_MADE] + [(*one, True) for one in UNCLEAR]


class Failed(Exception):
    """A call's failure as a driver reads it."""

    def __init__(self, code: int | None, details: str) -> None:
        super().__init__(details)
        self.error = CallError(code, details)


class Odd(Failed, BadAnswer):
    """An answer that etcd never gives."""


class Client:
    def __init__(self, endpoint: Any) -> None:
        self.conch_endpoint = endpoint

    def close(self) -> None:
        """There is nothing to close."""


class Failing(FailOver[Client]):
    """Answers each try with the next of these failures, then with the last again and again."""

    failures = (Failed,)

    def __init__(self, *failures: tuple[int | None, str], sent: bool = True, **login: Any) -> None:
        super().__init__(Connection(parse_endpoints("a:1,b:2"), **login))
        self._next = list(failures)
        self._sent = sent

    def _open(self, endpoint: Any) -> Client:
        if not self._sent:
            self._fail()
        return Client(endpoint)

    def _fail(self) -> Any:
        raise Failed(*(self._next.pop(0) if len(self._next) > 1 else self._next[0]))

    def _call_error(self, raised: Exception) -> CallError:
        assert isinstance(raised, Failed)
        return raised.error

    def _authenticate(self, client: Client, user: str, password: str, timeout_s: float) -> str:
        raise NotImplementedError

    def range(self, what: Range, *, timeout_s: float) -> RangeResult:
        """Not asked for."""
        raise NotImplementedError

    def raises(self) -> StoreError:
        with pytest.raises(StoreError) as raised:
            self._call("write", 0.05, lambda *_: self._fail())
        return raised.value


@pytest.mark.parametrize(("code", "details", "unclear"), ALL)
def test_write_is_unclear_unless_etcd_refused_it(code: int | None, details: str, unclear: bool) -> None:
    """Only what etcd itself refuses before it makes anything is known not to be made."""
    assert Failing((code, details)).raises().unclear == unclear


@pytest.mark.parametrize(("code", "details"), NOT_MADE)
def test_refusal_after_a_lost_answer_is_unclear(code: int, details: str) -> None:
    """The first try may have been made, or may yet be, whatever another endpoint says of the second."""
    assert Failing((14, "Socket closed"), (code, details)).raises().unclear


def test_what_was_never_sent_is_not_made() -> None:
    """There was no connection, or no login."""
    assert not Failing((14, "connection refused"), sent=False).raises().unclear


def test_full_is_an_error_of_its_own() -> None:
    """What it refuses may be there, and cannot come later."""
    assert isinstance(Failing((8, "etcdserver: mvcc: database space exceeded")).raises(), Full)


@pytest.mark.parametrize("code", [14, 9])
@pytest.mark.parametrize("text", ["rpc not supported for learner", "not capable"])
def test_what_a_member_cannot_do_another_may(code: int, text: str) -> None:
    """The code is 14 up to etcd 3.5, and 9 from 3.6 on."""
    assert isinstance(Failing((code, f"etcdserver: {text}")).raises(), Unreachable)


@pytest.mark.parametrize(
    ("first", "says"),
    [
        (Failed(14, "etcdserver: no leader"), "it has no leader"),
        (Odd(None, "an odd answer: no header"), "an odd answer: no header"),
        (Failed(14, "Connection refused"), "no answer in time"),
        (Failed(None, "deadline exceeded"), "no answer in time"),
    ],
)
def test_last_try_without_an_answer_hides_no_earlier_answer(first: Failed, says: str) -> None:
    """The end of the call cuts the last try short, which says nothing about the endpoint."""
    tries = _Tries("read", 1.0)
    (endpoint,) = parse_endpoints("a:1")
    for raised in (first, Failed(4, "Deadline Exceeded")):
        tries.note(endpoint, raised, raised.error, sent=True)
        tries.explain(endpoint, classify("read", raised.error))
    assert tries.reasons() == f"a:1: {says}"
    assert bool(tries.silent()) == (says == "no answer in time")


class Closing(Failing):
    """Another call closes the connection under the first login."""

    logins = 0

    def _authenticate(self, client: Client, user: str, password: str, timeout_s: float) -> str:
        self.logins += 1
        if self.logins == 1:
            self.drop_connection(client)
            raise Failed(None, "Channel closed!")
        return "token"


def test_password_is_renewed_although_another_call_closes_the_connection(tmp_path: Path) -> None:
    """That call's token is too old, because etcd has the new password already."""
    path = tmp_path / "password"
    path.write_text("second")
    store = Closing(user="u", password="first", password_file=str(path))
    assert store.renew(Range(b"k"), timeout_s=5) == [Renewal("password", "")]
    assert store.logins == 2
