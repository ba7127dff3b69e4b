"""When a call logs in, what it sends, and what an error of etcd says about its token."""

import re
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from conch.errors import IllegalTransition
from conch.etcd import auth, error_codes
from conch.etcd.auth import Login, LoginState
from conch.etcd.call_errors import CallError
from conch.etcd.connection import Connection
from conch.etcd.endpoints import parse_endpoints
from conch.etcd.error_codes import EtcdError

OUT, IN, NONE = LoginState.LOGGED_OUT, LoginState.LOGGED_IN, LoginState.NOT_NEEDED


class Answered(Exception):
    """An error that a call was answered with."""

    def __init__(self, known: EtcdError) -> None:
        super().__init__(known.text)
        self.code = known.codes[0]


def call_error(raised: Exception) -> CallError:
    code = raised.code if isinstance(raised, Answered) else None
    return CallError(code, str(raised))


class Bed:
    """A login, and the password that is accepted; `off` and `fails` say otherwise."""

    def __init__(self, *, user: str | None = "u", members: int = 1, file: Path | None = None) -> None:
        endpoints = parse_endpoints(",".join(f"127.0.0.1:{1000 + at}" for at in range(members)))
        self.login = Login(Connection(endpoints, user=user, password="old", password_file=str(file) if file else None))
        self.accepted = "old"
        self.off = False
        self.fails: Exception | None = None
        self.logins: list[tuple[str, float]] = []
        self.during: Callable[[], object] = lambda: None

    def authenticate(self, user: str, password: str, timeout_s: float) -> str:
        self.logins.append((password, timeout_s))
        self.during()
        if self.fails is not None:
            raise self.fails
        if self.off:
            raise Answered(error_codes.NOT_ENABLED)
        if password != self.accepted:
            raise Answered(error_codes.WRONG_PASSWORD)
        return f"{user}-{len(self.logins)}"

    def token(self, timeout_s: float = 5.0) -> str | None:
        return self.login.token(timeout_s, self.authenticate, call_error)

    def renew(self, path: Path) -> str:
        return self.login.renew(str(path), 5.0, self.authenticate, call_error)

    def answers(self, known: EtcdError, endpoint: str = "a") -> bool:
        return self.login.handle_auth_error(known.codes[0], known.text, endpoint)

    def reaches(self, state: LoginState) -> "Bed":
        self.off = state is NONE
        if state is not OUT:
            self.token()
        self.off = False
        assert self.login.state is state
        return self


# -- what a call sends ----------------------------------------------------------------------------------------


def test_calls_log_in_once() -> None:
    bed = Bed()
    assert (bed.token(), bed.token()) == ("u-1", "u-1")
    assert bed.login.state is IN


def test_without_a_user_there_is_no_login() -> None:
    """And no error is worth one."""
    bed = Bed(user=None)
    assert bed.token() is None
    assert not any(bed.answers(known) for known in (error_codes.INVALID_TOKEN, error_codes.USER_EMPTY))
    assert bed.logins == []


def test_user_is_harmless_where_authentication_is_off() -> None:
    """Known after one try; no further call asks again."""
    bed = Bed()
    bed.off = True
    assert (bed.token(), bed.token()) == (None, None)
    assert len(bed.logins) == 1
    assert bed.login.state is NONE


def test_login_that_fails_is_tried_again_by_the_next_call() -> None:
    bed = Bed()
    bed.fails = Answered(error_codes.NO_LEADER)
    with pytest.raises(Answered):
        bed.token()
    bed.fails = None
    assert bed.token() == "u-2"


@pytest.mark.parametrize(("members", "limit_s"), [(1, 3.0), (3, 0.5)])
def test_login_at_a_single_endpoint_may_take_longer_than_the_call(members: int, limit_s: float) -> None:
    """Where there is another endpoint, it is asked in time."""
    bed = Bed(members=members)
    bed.token(0.5)
    assert [asked_s for _, asked_s in bed.logins] == [limit_s]


@pytest.mark.parametrize(("off", "sent"), [(False, "u-1"), (True, None)])
def test_calls_that_wait_for_a_login_do_not_repeat_it(off: bool, sent: str | None) -> None:
    bed = Bed()
    bed.off = off
    under_way, go_on = threading.Event(), threading.Event()
    tokens: list[str | None] = []

    def wait() -> None:
        under_way.set()
        assert go_on.wait(10)

    bed.during = wait
    threads = [threading.Thread(target=lambda: tokens.append(bed.token()), daemon=True) for _ in range(3)]
    threads[0].start()
    assert under_way.wait(10)
    for thread in threads[1:]:
        thread.start()
    with pytest.raises(ValueError, match="no login within the time"):
        bed.token(0.001)
    go_on.set()
    for thread in threads:
        thread.join(10)
    assert tokens == [sent] * 3
    assert len(bed.logins) == 1


# -- what an error says ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "known", "helps", "after"),
    [
        (IN, error_codes.INVALID_TOKEN, True, OUT),
        (IN, error_codes.OLD_REVISION, True, OUT),
        (IN, error_codes.OLD_REVISION_RAW, True, OUT),
        (IN, error_codes.USER_EMPTY, True, IN),  # of a call that was sent before the login
        (IN, error_codes.DENIED, False, IN),
        (NONE, error_codes.USER_EMPTY, True, OUT),  # authentication was switched on
        (NONE, error_codes.NO_LEADER, False, NONE),
        (OUT, error_codes.INVALID_TOKEN, True, OUT),  # of a call that was sent with the token before
    ],
)
def test_error(state: LoginState, known: EtcdError, helps: bool, after: LoginState) -> None:
    bed = Bed().reaches(state)
    assert bed.answers(known) is helps
    assert bed.login.state is after


def test_token_that_one_member_has_lost_is_kept_for_the_others() -> None:
    """It is replaced when each has refused it, and the refusals of an old token do not count against the next."""
    bed = Bed(members=3).reaches(IN)
    for endpoint in ("a", "a", "b"):
        assert bed.answers(error_codes.INVALID_TOKEN, endpoint)
    assert bed.token() == "u-1"
    bed.answers(error_codes.INVALID_TOKEN, "c")
    bed.answers(error_codes.INVALID_TOKEN, "a")  # late
    assert bed.token() == "u-2"
    for endpoint in ("b", "c"):
        bed.answers(error_codes.INVALID_TOKEN, endpoint)
    assert bed.login.state is IN


@pytest.mark.parametrize("state", LoginState)
def test_token_can_be_dropped_at_any_time(state: LoginState) -> None:
    """A watch does so when it is refused, from a thread of its own."""
    bed = Bed().reaches(state)
    bed.login.invalidate_token()
    assert bed.login.state is OUT
    assert bed.token() == f"u-{len(bed.logins)}"


def test_token_dropped_during_the_login_is_that_of_before() -> None:
    bed = Bed()
    bed.during = bed.login.invalidate_token
    assert bed.token() == "u-1"
    assert bed.login.state is IN


def test_login_is_never_found_unneeded_while_there_is_a_token() -> None:
    bed = Bed().reaches(IN)
    with pytest.raises(IllegalTransition, match="from logged in to not needed"):
        bed.login._enter(NONE)


# -- passwords ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "passwords", "logged_in"),
    [
        ("new\n", ["old", "new"], True),  # the file was changed: once more
        ("old\n", ["old"], False),
        ("", ["old"], False),  # it is being written
        (None, ["old"], False),
        ("also wrong", ["old", "also wrong"], False),
    ],
)
def test_refused_password_is_read_again(
    tmp_path: Path, text: str | None, passwords: list[str], logged_in: bool
) -> None:
    file = tmp_path / "password"
    if text is not None:
        file.write_text(text)
    bed = Bed(file=file)
    bed.accepted = "new"
    if logged_in:
        assert bed.token() == "u-2"
    else:
        with pytest.raises(Answered, match="invalid user ID or password"):
            bed.token()
    assert [password for password, _ in bed.logins] == passwords


@pytest.mark.parametrize("state", LoginState)
def test_new_password_is_used_once_etcd_accepts_it(tmp_path: Path, state: LoginState) -> None:
    """Also where no login was needed until now."""
    file = tmp_path / "password"
    file.write_text("new")
    bed = Bed().reaches(state)
    bed.accepted = "new"
    assert bed.renew(file) == ""
    assert bed.login.state is IN
    assert bed.token() == f"u-{len(bed.logins)}"
    bed.login.invalidate_token()
    bed.token()
    assert bed.logins[-1][0] == "new"


@pytest.mark.parametrize(
    ("text", "fails", "why"),
    [
        (None, None, "cannot read .*: No such file"),
        ("", None, "is empty"),
        ("new", None, "etcd refuses what is in"),
        ("new", Answered(error_codes.NO_LEADER), "cannot log in: etcdserver: no leader"),
        ("old", Answered(error_codes.NO_LEADER), "^$"),  # nothing changed: nothing is asked
    ],
)
def test_old_password_and_token_stay(tmp_path: Path, text: str | None, fails: Exception | None, why: str) -> None:
    file = tmp_path / "password"
    if text is not None:
        file.write_text(text)
    bed = Bed().reaches(IN)
    bed.fails = fails
    message = bed.renew(file)
    assert re.search(why, message), message
    assert bed.token() == "u-1"
    bed.fails = None
    bed.login.invalidate_token()
    bed.token()
    assert bed.logins[-1][0] == "old"


def test_password_is_taken_where_authentication_is_off(tmp_path: Path) -> None:
    """Etcd cannot say whether it is right; it is used once authentication is on."""
    file = tmp_path / "password"
    file.write_text("new")
    bed = Bed().reaches(NONE)
    bed.off = True
    assert bed.renew(file) == ""
    assert bed.login.state is NONE
    bed.off, bed.accepted = False, "new"
    bed.login.invalidate_token()
    bed.token()
    assert bed.logins[-1][0] == "new"


class Server:
    """Takes so long for each login, on a clock of its own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, endpoints: str, takes_s: float) -> None:
        self.login = auth.Login(Connection(parse_endpoints(endpoints), user="u", password="p"))
        self.takes_s = takes_s
        self.limits: list[float] = []
        self._now = 0.0
        monkeypatch.setattr(auth, "time", SimpleNamespace(monotonic=lambda: self._now))

    def _answer(self, user: str, password: str, limit_s: float) -> str:
        self.limits.append(limit_s)
        self._now += min(limit_s, self.takes_s)
        if limit_s < self.takes_s:
            raise TimeoutError
        return "token"

    def ask(self, timeout_s: float) -> None:
        """Call something that needs a token."""
        try:
            self.login.token(timeout_s, self._answer, lambda raised: CallError(None, type(raised).__name__))
        except TimeoutError:
            pass


def test_login_after_one_that_was_cut_short_may_take_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    """etcd computes each one to its end: many that are cut short and begun again would keep all from an answer."""
    server = Server(monkeypatch, "a:1", 20)
    for _ in range(4):
        server.ask(0.4)
    assert server.limits == [3, 12, 30]
    server.login.invalidate_token()
    server.ask(0.4)
    assert server.limits[3:] == [30]


def test_login_on_one_of_several_endpoints_takes_no_more_than_its_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another member may be faster."""
    server = Server(monkeypatch, "a:1,b:2", 20)
    for _ in range(3):
        server.ask(0.4)
    assert server.limits == [0.4, 0.4, 0.4]
